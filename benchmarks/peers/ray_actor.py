"""Ray: an actor in another environment (runtime_env py_executable), arrays through its object store."""

from __future__ import annotations

import logging
import sys
from typing import Any

import ray
from _driver import serve


class Echo:
    def echo(self, value: Any) -> Any:
        return value


class Ray:
    def __init__(self) -> None:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=3 * 10**9,
        )
        actor = ray.remote(Echo)
        self.actor = actor.options(num_cpus=1, runtime_env={"py_executable": sys.argv[1]}).remote()
        ray.get(self.actor.echo.remote(None))

    def echo(self, value: Any) -> Any:
        return ray.get(self.actor.echo.remote(value))

    def close(self) -> None:
        ray.shutdown()


serve(Ray)
