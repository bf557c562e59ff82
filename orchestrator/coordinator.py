"""The coordinator: finds the environment, the checkpoint and the place for a model, and watches over it."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.checkpoints import Checkpoint, CheckpointStore
from orchestrator.deployments import Deployment
from orchestrator.devices import parse_size
from orchestrator.environments import Catalog, Environment, EnvironmentStore, Family
from orchestrator.environments.catalog import builtin_root
from orchestrator.errors import ConfigError, OrchestratorError, WorkerError
from orchestrator.events import Event, Listener, ignore
from orchestrator.processes import require_bubblewrap
from orchestrator.room import SharedRoom
from orchestrator.running import Presence
from orchestrator.scheduling import Call
from orchestrator.settings import Settings
from orchestrator.specification import Specification
from orchestrator.status import Status, status_of
from orchestrator.waiting import result_of
from orchestrator.worker.interrupts import listening, undisturbed

__all__ = ["Coordinator", "LoadRequest"]

log = logging.getLogger(__name__)

TICK = 0.25  # seconds between two looks at deadlines, heartbeats and idle deployments
PUBLISH_EVERY = 2.0  # seconds
PLACEMENT_DEFAULTS = ("dtype", "device_map", "max_memory")


@dataclass(frozen=True)
class LoadRequest:
    """What `load` was asked for, before anything is looked up."""

    family: str
    checkpoint: str | os.PathLike[str] | None = None
    with_: Sequence[str] = ()
    name: str | None = None
    replicas: int = 1
    dtype: str | None = None
    device_map: str | Mapping[str, str] | None = None
    devices: Sequence[str | int] | None = None
    max_memory: Mapping[str | int, int | str] | None = None
    python: str | None = None
    keep_alive: float | None = None
    trust_remote_code: bool = False
    allow_ignored_keys: bool = False
    sandbox: bool | None = None
    environment: Environment | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Coordinator:
    """Owns the deployments of one process. Every method may be called from any thread."""

    def __init__(self, settings: Settings, listener: Listener = ignore) -> None:
        self.settings = settings
        self.listener = listener
        self.catalog = Catalog.default(settings)
        self.environments = EnvironmentStore(settings)
        self.checkpoints = CheckpointStore(settings, self.environments, self.catalog)
        self.deployments: dict[str, Deployment] = {}
        self.room = SharedRoom(settings, self._deployed, self._tell)
        self._presence = Presence(settings)
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._changed = threading.Event()
        self._pid = os.getpid()
        self._clock = threading.Thread(
            target=_run_clock, args=(weakref.ref(self),), name="clock", daemon=True
        )
        self._clock.start()

    # -- loading ----------------------------------------------------------------------------------------

    def load(self, request: LoadRequest) -> Deployment:
        """Makes the environment, fetches the checkpoint, places, spawns and loads; returns when calls may come.

        Raises:
            ConfigError, ProvisioningError, CheckpointError, PlacementError, WorkerError, LoadError.
        """
        self.check_usable()
        with undisturbed:
            with listening():
                specification = self._specify(request)
            return self._deploy(specification, renamed=request.name is None)

    def self_test(self, family_name: str, with_: Sequence[str] = ()) -> Mapping[str, Any]:
        """Runs a family's self-test in its environment; `ok` tells whether its numbers are the recorded ones.

        Raises:
            LoadError: the family has none, or cannot be imported. RemoteError: it broke.
        """
        self.check_usable()
        family = self.catalog.get(family_name, tuple(with_))
        tested = {"worker_file": str(family.worker_file), "worker_class": family.worker_class}
        runner = replace(
            family, worker_file=builtin_root() / "workers" / "self_test.py", worker_class="SelfTest"
        )
        environment = self.environments.ensure(family, self.listener)
        name = f"self-test of {family.label}"
        what = Specification(name, runner, environment, None, tested, device_map="cpu")
        with undisturbed:
            deployment = self._deploy(what, renamed=True)
            try:
                result: Mapping[str, Any] = deployment.call(Call("run"))
                return result
            finally:
                self.unload(deployment.name)

    def _deploy(self, specification: Specification, *, renamed: bool = False) -> Deployment:
        """Loads it, under another name if its own is taken and it may be `renamed`."""
        with self._lock:
            self.check_usable()  # it may have been closed while the environment was made
            if renamed:
                specification = replace(specification, name=self._free_name(specification.name))
            there = self.deployments.get(specification.name)
            if there is not None and there.refusal() is None:
                raise ConfigError(
                    f"a model named {specification.name!r} is loaded already",
                    hint="unload it, or load this one under another name",
                )
            deployment = Deployment(
                specification, self.settings, self.room, lambda _: self._changed.set(), self._tell
            )
            self.deployments[specification.name] = deployment
        try:
            if there is not None:  # quarantined, or being unloaded: this request is what replaces it
                there.unload(self.settings.stop_grace)
            deployment.load(self.listener)
        except BaseException:
            deployment.unload(grace=0.0)
            self._forget(deployment)
            raise
        return deployment

    def unload(self, name: str, grace: float | None = None) -> None:
        """Ends a deployment's workers; nothing happens when it is gone already.

        Its queue is refused at once. Calls that a worker has may finish in `grace` seconds (by default the setting
        `stop_grace`); then it is killed.
        """
        if self._pid != os.getpid():
            return  # as `close`: a block that a forked child leaves ends nobody's workers
        with undisturbed:
            with self._lock:
                deployment = self.deployments.get(name)
            if deployment is not None:
                try:
                    deployment.unload(self.settings.stop_grace if grace is None else grace)
                finally:
                    self._forget(deployment)

    def _forget(self, deployment: Deployment) -> None:
        with self._lock:
            if self.deployments.get(deployment.name) is deployment:
                del self.deployments[deployment.name]
        self._changed.set()

    def _tell(self, event: Event) -> None:
        """News that nobody's call depends on: a listener that fails must not harm the workers."""
        try:
            self.listener(event)
        except Exception:
            log.exception("a listener failed")

    def status(self) -> Status:
        """What runs now."""
        return Status(tuple(status_of(deployment) for deployment in self._deployed()))

    def _deployed(self) -> list[Deployment]:
        with self._lock:
            return list(self.deployments.values())

    def close(self) -> None:
        """Ends every worker. Safe to call twice, and from an exit hook."""
        if self._pid != os.getpid():
            return  # a forked child owns none of this
        with undisturbed:
            self._close()

    def _close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock:
            deployments, self.deployments = list(self.deployments.values()), {}
        end = time.monotonic() + self.settings.stop_grace
        for deployment in deployments:  # no threads: the interpreter may be ending
            deployment.refuse()
        try:
            for deployment in deployments:
                deployment.unload(max(end - time.monotonic(), 0.0))
        except BaseException:  # Ctrl-C: then at once
            for deployment in deployments:
                deployment.unload(0.0)
            raise
        finally:
            self._presence.withdraw()

    def check_usable(self) -> None:
        """Raises `WorkerError` after `close` and in a forked child, where the sockets are another process's."""
        if self._pid != os.getpid():
            raise WorkerError(
                f"this Orchestrator belongs to process {self._pid}; it was carried into {os.getpid()} by a fork",
                hint="make an Orchestrator in the child, or start children with the 'spawn' method",
            )
        if self._closed.is_set():
            raise WorkerError("this Orchestrator is closed", hint="make a new one")

    # -- what a request means -----------------------------------------------------------------------------

    def _specify(self, request: LoadRequest) -> Specification:
        _check_numbers(request)
        family = self.catalog.get(request.family, tuple(request.with_))
        if request.python is not None:
            family = family.on_python(request.python)
        if request.sandbox is not None:
            family = replace(family, sandbox=request.sandbox)
        if family.sandbox:
            require_bubblewrap()  # before anything is built or fetched
        with self._environment(request, family) as building:
            checkpoint = self._checkpoint(request, family)
            options = self._options(request, family)
            environment = result_of(building)
        if checkpoint is not None:
            self._check_readable(checkpoint, environment, request.allow_ignored_keys)
        placing = {key: family.defaults.get(key) for key in PLACEMENT_DEFAULTS}
        return Specification(
            name=request.name or family.name,
            family=family,
            environment=environment,
            checkpoint=checkpoint,
            options=options,
            replicas=request.replicas,
            dtype=request.dtype or placing["dtype"] or "auto",
            device_map=request.device_map or placing["device_map"] or "sequential",
            devices=_devices(request.devices),
            max_memory={
                str(device): parse_size(size)
                for device, size in (request.max_memory or placing["max_memory"] or {}).items()
            },
            keep_alive=request.keep_alive,
        )

    @contextmanager
    def _environment(self, request: LoadRequest, family: Family) -> Iterator[Future[Environment]]:
        if request.environment is None:
            with self.environments.ensuring(family, self.listener) as building:
                yield building
            return
        given: Future[Environment] = Future()
        given.set_result(request.environment)
        self.environments.usage.stamp(request.environment.id, family.label)
        yield given

    def _checkpoint(self, request: LoadRequest, family: Family) -> Checkpoint | None:
        spec = request.checkpoint if request.checkpoint is not None else family.defaults.get("checkpoint")
        if spec is None:
            return None
        checkpoint = self._resolved(spec, request)
        for note in checkpoint.notes:
            self.listener(Event("checkpoint", checkpoint.spec, note, finished=True))
        return checkpoint

    def _resolved(self, spec: str | os.PathLike[str], request: LoadRequest) -> Checkpoint:
        checkpoint = self.checkpoints.resolve(os.fspath(spec), self.listener)
        if request.trust_remote_code and not checkpoint.pinned:
            raise ConfigError(
                f"trust_remote_code needs a pinned revision, and {checkpoint.spec!r} names none",
                hint=f"this time it resolved to {checkpoint.revision!r}: read that code, then pin it",
            )
        return checkpoint

    def _options(self, request: LoadRequest, family: Family) -> dict[str, Any]:
        defaults = {k: v for k, v in family.defaults.items() if k not in (*PLACEMENT_DEFAULTS, "checkpoint")}
        options = {**defaults, **request.options}
        for key in family.resolve:
            if isinstance(options.get(key), (str, os.PathLike)):
                options[key] = str(self._resolved(options[key], request).path)
        if options.get("trust_remote_code") and not request.trust_remote_code:
            raise ConfigError(
                f"{family.name}: trust_remote_code is no default and no option: whoever loads a checkpoint allows it",
                hint="read that code, then add trust_remote_code=True",
            )
        if request.trust_remote_code:
            options["trust_remote_code"] = True
        return {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}

    def _check_readable(self, checkpoint: Checkpoint, environment: Environment, allowed: bool) -> None:
        from orchestrator.checkpoints import check_readable

        problems = check_readable(checkpoint.path, environment.versions)
        for problem in problems:
            if not allowed:
                raise problem.error()
            log.warning("%s", problem)

    def _free_name(self, wanted: str) -> str:
        """`wanted`, or that with a number. The caller holds the lock until the name is taken."""
        if wanted not in self.deployments:
            return wanted
        return next(name for n in itertools.count(2) if (name := f"{wanted}-{n}") not in self.deployments)

    # -- the clock ----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Everything that depends on time: deadlines, heartbeats, keep-alive, stop requests."""
        for deployment in self._deployed():
            deployment.scheduler.expire()
            deployment.scheduler.pump()  # a worker may be free again that a cancelled call held
            deployment.evict_if_expired(self.settings.stop_grace)
            for replica in deployment.replicas:
                replica.check_health()
        for name in self._presence.stop_requests():
            threading.Thread(target=self.unload, args=(name,), name=f"stop {name}", daemon=True).start()

    def publish(self) -> None:
        """Writes what `orchestrator ps` shows."""
        import msgspec

        status = self.status()
        self._presence.publish([msgspec.to_builtins(deployment) for deployment in status.deployments])


def _run_clock(reference: weakref.ref[Coordinator]) -> None:
    """Ticks as long as the coordinator lives; holds it only while it ticks."""
    published = 0.0
    while True:
        coordinator = reference()
        if coordinator is None or coordinator._closed.is_set():  # noqa: SLF001 - the clock is its part
            return
        try:
            coordinator.tick()
            if coordinator._changed.is_set() or time.monotonic() - published > PUBLISH_EVERY:  # noqa: SLF001
                coordinator._changed.clear()  # noqa: SLF001
                published = time.monotonic()
                coordinator.publish()
        except OSError as error:
            log.warning("the coordinator's files cannot be written: %s", error)
        except OrchestratorError as error:
            log.warning("%s", error)
        except Exception:  # without it deadlines would not hold, nor would what hangs be ended
            log.exception("a tick of the clock failed")
        del coordinator
        time.sleep(TICK)


def _check_numbers(request: LoadRequest) -> None:
    """Refuses what is no number of its kind, before anything is built for it."""
    count: Any = request.replicas
    keep_alive: Any = request.keep_alive
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"replicas must be a whole number from 1, not {count!r}")
    if keep_alive is not None and not isinstance(keep_alive, int | float):
        raise ConfigError(
            f"keep_alive must be a number of seconds, not {keep_alive!r}", hint="negative is for ever"
        )
    for size in (request.max_memory or {}).values():
        parse_size(size)


def _devices(asked: Sequence[str | int] | str | int | None) -> tuple[str, ...]:
    """The devices by name; one alone is taken for a list of one."""
    if asked is None:
        return ()
    return (str(asked),) if isinstance(asked, str | int) else tuple(map(str, asked))
