"""Appose: a Python service in another environment, arrays as its NDArray in shared memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import appose
from _driver import serve
from appose import NDArray

ECHO = """
y = NDArray(x.dtype, x.shape)
y.ndarray()[...] = x.ndarray()
task.outputs["y"] = y
x.shm.close()
y.shm.close()
"""


class Appose:
    def __init__(self) -> None:
        environment = appose.custom().bin_paths(str(Path(sys.argv[1]).parent)).base("/tmp").build()
        self.service = environment.python()
        self.service.init("import numpy\nfrom appose import NDArray")
        self.last: Any = None

    def run(self, script: str, inputs: dict[str, Any]) -> Any:
        task = self.service.task(script, inputs)
        task.wait_for()
        if str(task.status).endswith("FAILED"):
            raise RuntimeError(task.error)
        return task.outputs

    def echo(self, value: Any) -> Any:
        if self.last is not None:
            self.last.shm.unlink()
            self.last = None
        if value is None:
            self.run("1", {})
            return None
        if isinstance(value, dict):
            raise TypeError("a dict of 200 arrays is not measured here")
        there = NDArray(str(value.dtype), list(value.shape))
        there.ndarray()[...] = value
        self.last = self.run(ECHO, {"x": there})["y"]
        there.shm.close()
        there.shm.unlink()
        return self.last.ndarray()

    def close(self) -> None:
        self.service.close()


serve(Appose)
