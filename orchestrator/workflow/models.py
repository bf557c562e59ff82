"""The models of a workflow: the slice of the client that a run uses, and their loading, all at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

from orchestrator.environments.commands import cancel, cancellable
from orchestrator.errors import Cancelled, OrchestratorError, WorkflowError
from orchestrator.events import Event as News
from orchestrator.events import Listener
from orchestrator.workflow.references import compile_value, evaluate
from orchestrator.workflow.schema import Model as ModelSpec
from orchestrator.workflow.values import as_argument

__all__ = ["LoadedModel", "Models", "Roster", "Seat"]


class LoadedModel(Protocol):
    """What `Orchestrator.load` gives."""

    @property
    def name(self) -> str: ...
    @property
    def environment(self) -> Any: ...
    @property
    def checkpoint(self) -> Any: ...
    @property
    def methods(self) -> Mapping[str, str]: ...
    @property
    def report(self) -> Mapping[str, Any]: ...
    def submit(
        self, method: str, *args: Any, timeout: float | None = None, retries: int = 0, **kwargs: Any
    ) -> Future[Any]: ...
    def stream(
        self, method: str, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Iterator[Any]: ...
    def unload(self) -> None: ...


class Models(Protocol):
    """The slice of `Orchestrator` that a run uses."""

    @property
    def catalog(self) -> Any: ...
    @property
    def environments(self) -> Any: ...
    @property
    def checkpoints(self) -> Any: ...
    def load(self, family: str, **arguments: Any) -> LoadedModel: ...


@dataclass
class Seat:
    """One model of the file: what to load, and the model or the error once that is over."""

    name: str
    spec: ModelSpec
    family: str
    checkpoint: str | None
    options: Mapping[str, Any]
    sandbox: bool | None = None
    environment: Any = None
    """The one to run in, in place of what the family resolves to."""
    found: Any = None
    """The environment, once it was looked for and is there."""
    model: LoadedModel | None = None
    error: OrchestratorError | None = None
    asked: bool = False
    started: float = 0.0
    since_epoch: float = 0.0
    seconds: float = 0.0

    @property
    def slots(self) -> int:
        """Calls that may be under way at a time."""
        return self.spec.concurrency or self.spec.replicas

    @property
    def known_environment(self) -> Any:
        """Its environment, as far as nobody has to be asked."""
        return self.model.environment if self.model is not None else self.environment or self.found

    def arguments(self) -> dict[str, Any]:
        """What `load` is called with."""
        spec = self.spec
        given = {
            "checkpoint": self.checkpoint,
            "dtype": spec.dtype,
            "device_map": spec.device_map,
            "devices": spec.devices,
            "max_memory": spec.max_memory,
            "trust_remote_code": spec.trust_remote_code or None,
            "allow_ignored_keys": spec.allow_ignored_keys or None,
            "sandbox": self.sandbox,
            "environment": self.environment,
        }
        known = {key: value for key, value in given.items() if value is not None}
        if spec.python is not None:
            known["python"] = spec.python
        return {"with_": spec.with_, "name": self.name, "replicas": spec.replicas, **known, **self.options}


class Roster:
    """All models of a workflow. Loading runs on one thread for each; `loaded` is told when one is over."""

    def __init__(
        self,
        models: Models,
        specs: Mapping[str, ModelSpec],
        inputs: Mapping[str, Any],
        base: Path,
        *,
        sandbox: bool | None = None,
    ) -> None:
        self.client = models
        self._stopped = Event()
        self.seats = {name: _seat(name, spec, inputs, base) for name, spec in specs.items()}
        for seat in self.seats.values():
            seat.sandbox = seat.spec.sandbox if sandbox is None else sandbox

    def family(self, seat: Seat) -> Any:
        """The `Family` of a model, with what the file gives in place of its own.

        Raises:
            ConfigError: there is none of that name, or `with` is no list of requirements.
        """
        family = self.client.catalog.get(seat.family, tuple(seat.spec.with_))
        if seat.spec.python is not None:
            family = family.on_python(seat.spec.python)
        return family

    def environment(self, seat: Seat) -> Any:
        """A model's environment, loaded or not; None: it is not built.

        Raises:
            OrchestratorError: it cannot be one.
        """
        if seat.known_environment is None:
            seat.found = self.client.environments.find(self.family(seat))
        return seat.known_environment

    def load(self, names: Iterator[str] | list[str], loaded: Any, listener: Listener) -> None:
        """Starts loading those that nobody has asked for yet, and returns."""
        for name in names:
            seat = self.seats[name]
            if not seat.asked:
                seat.asked, seat.started, seat.since_epoch = True, time.monotonic(), time.time()
                Thread(
                    target=self._load, args=(seat, loaded, listener), name=f"load-{name}", daemon=True
                ).start()

    def _load(self, seat: Seat, loaded: Any, listener: Listener) -> None:
        try:
            with cancellable(self._stopped):
                seat.model = self.client.load(seat.family, **seat.arguments())
        except KeyboardInterrupt:
            seat.error = Cancelled("the run was stopped")
        except OrchestratorError as error:
            if not error.message.startswith(f"{seat.name}: "):  # as those of its worker do
                error.message = f"model {seat.name!r}: {error.message}"
            seat.error = error
        except Exception as error:  # a fault of ours must end the run, not one thread
            seat.error = WorkflowError(f"model {seat.name!r}: {type(error).__name__}: {error}")
        seat.seconds = time.monotonic() - seat.started
        if seat.error is not None and not self._stopped.is_set():
            listener(News("load", seat.name, "failed", finished=True))
        loaded(seat)

    def stop(self) -> None:
        """Ends what models under way are being made of: builds of environments, downloads of packages."""
        cancel(self._stopped)

    def unload(self) -> None:
        """Ends the workers of this run."""
        for seat in self.seats.values():
            if seat.model is not None:
                seat.model.unload()
                seat.model = None


def _seat(name: str, spec: ModelSpec, inputs: Mapping[str, Any], base: Path) -> Seat:
    def value(part: Any) -> Any:
        return as_argument(evaluate(compile_value(part), lambda ref: ref.follow(inputs[ref.name])))

    options = {key: _from(base, item) for key, item in value(spec.options).items()}
    return Seat(name, spec, _from(base, spec.family), _from(base, value(spec.checkpoint)), options)


def _from(base: Path, text: Any) -> Any:
    """What begins with `./` or `../` is a path from the workflow's folder."""
    return str(base / text) if isinstance(text, str) and text.startswith(("./", "../")) else text
