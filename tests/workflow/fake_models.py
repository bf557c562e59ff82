"""A fake of the slice of `Orchestrator` that a workflow uses: methods are plain functions, on threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.errors import ConfigError


@dataclass
class FakeModel:
    name: str
    methods_of: Mapping[str, Callable[..., Any]]
    environment: Any
    log: list[tuple[str, str, dict[str, Any]]]
    checkpoint: Any = None
    report: Mapping[str, Any] = field(default_factory=dict)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))
    unloaded: bool = False
    streams: bool = True
    """Whether every method has a twin that streams."""

    @property
    def methods(self) -> dict[str, str]:
        twins = {f"{name}_stream": "stream" for name in self.methods_of if self.streams}
        return dict.fromkeys(self.methods_of, "call") | twins

    def submit(self, method: str, *, timeout: float | None = None, **kwargs: Any) -> Future[Any]:
        self.log.append((self.name, method, kwargs))
        return self.pool.submit(self.methods_of[method], **kwargs)

    def stream(self, method: str, *, timeout: float | None = None, **kwargs: Any) -> Iterator[Any]:
        self.log.append((self.name, method, kwargs))
        yield from self.methods_of[method](**kwargs)

    def unload(self) -> None:
        self.unloaded = True
        self.pool.shutdown(wait=False)


class FakeModels:
    """`families`: name -> method name -> function. `log`: every call made, in order."""

    def __init__(self, **families: Mapping[str, Callable[..., Any]]) -> None:
        self.families = families
        self.log: list[tuple[str, str, dict[str, Any]]] = []
        self.loads: list[tuple[str, dict[str, Any]]] = []
        self.loaded: list[FakeModel] = []
        self.load_errors: dict[str, Exception] = {}
        self.packages: dict[str, Path] = {}
        self.checkpoints = SimpleNamespace(fetch_package=self._fetch)
        self.worker_file = Path(__file__)
        self.store = Path("/envs")
        self.revision: str | None = None
        self.streams = True
        self.built: dict[str, str] = {family: f"env-{family}" for family in families}
        self.catalog = SimpleNamespace(get=self._family)
        self.environments = SimpleNamespace(find=self._find)
        self._lock = threading.Lock()

    def load(self, family: str, *, name: str, **arguments: Any) -> FakeModel:
        with self._lock:
            self.loads.append((family, {"name": name, **arguments}))
        if family in self.load_errors:
            raise self.load_errors[family]
        if family not in self.families:
            raise ConfigError(f"no family {family!r}")
        environment = arguments.get("environment") or SimpleNamespace(
            id=self.built.setdefault(family, f"env-{family}"), family=family, path=self.store / self.built[family], python_version="3.11.9",
            versions={"numpy": "1.26.4", "transformers": "4.36.2"},
        )  # fmt: skip
        model = FakeModel(name, self.families[family], environment, self.log, streams=self.streams)
        if self.revision is not None and arguments.get("checkpoint"):
            spec = arguments["checkpoint"]
            model.checkpoint = SimpleNamespace(
                hub="pypi", id="weights", revision=self.revision, spec=spec, path=Path("/w"), notes=()
            )
        self.loaded.append(model)
        return model

    def calls(self, method: str) -> list[dict[str, Any]]:
        return [kwargs for _, called, kwargs in self.log if called == method]

    def _family(self, name: str, with_: tuple[str, ...] = ()) -> Any:
        if name not in self.families:
            raise ConfigError(f"no family {name!r}")
        return SimpleNamespace(
            name=name,
            label=name,
            defaults={},
            resolve=("target",),
            worker_file=self.worker_file,
            script=None,
            worker_class="C",
        )

    def _find(self, family: Any) -> Any:
        found = self.built.get(family.name)
        return None if found is None else SimpleNamespace(id=found, path=self.store / found)

    def _fetch(self, requirement: str, _: Any = None) -> Path:
        if requirement not in self.packages:
            raise ConfigError(f"no package {requirement!r}")
        return self.packages[requirement]
