"""A deployment: one model (family, checkpoint, options), its replicas and the scheduler in front of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from orchestrator.errors import OrchestratorError, RemoteError, WorkerError
from orchestrator.events import Listener, ignore
from orchestrator.links import LoadReport
from orchestrator.replicas import Replica
from orchestrator.scheduling import Call, Scheduler
from orchestrator.settings import Settings
from orchestrator.specification import Room, Specification
from orchestrator.states import ReplicaState
from orchestrator.waiting import join
from orchestrator.worker.interrupts import undisturbed

__all__ = ["Deployment", "Values"]

FIRST_USE = 10.0  # seconds that a model which has just become ready is kept for its first call


class Values(Iterator[Any]):
    """What a generator method yields. Closing it, or dropping it, cancels the rest."""

    def __init__(self, values: Generator[Any]) -> None:
        self._values = values

    def __next__(self) -> Any:
        with undisturbed:
            return next(self._values)

    def close(self) -> None:
        """Cancels the method if it still runs."""
        with undisturbed:
            self._values.close()


class Deployment:
    """The replicas of one model and the scheduler in front of them."""

    def __init__(
        self,
        specification: Specification,
        settings: Settings,
        room: Room,
        changed: Callable[[Deployment], None],
        listener: Listener = ignore,
    ) -> None:
        self.specification = specification
        self.name = specification.name
        self.settings = settings
        self._changed = changed
        self._evicting: threading.Thread | None = None
        self.replicas = [
            Replica(specification, index, settings, room, self._replica_changed, listener)
            for index in range(specification.replicas)
        ]
        self.scheduler = Scheduler(self.name, self.replicas, settings.queue_depth, self.explained, listener)

    @property
    def report(self) -> LoadReport | None:
        """What the first replica said when it had loaded."""
        return next((replica.report for replica in self.replicas if replica.report is not None), None)

    def load(self, listener: Listener) -> None:
        """Starts all replicas, at once when there are several; the first failure stops the others.

        Raises:
            PlacementError, WorkerError, LoadError: what the first failure was.
        """
        failures: list[BaseException] = []

        def start(replica: Replica) -> None:
            try:
                replica.start(listener)
            except BaseException as error:
                failures.append(error)
                self.unload(grace=0.0)

        threads = [threading.Thread(target=start, args=(r,), daemon=True) for r in self.replicas[1:]]
        for thread in threads:
            thread.start()
        start(self.replicas[0])
        for thread in threads:
            join(thread)
        if failures:
            raise self.explained(failures[0])

    def call(self, call: Call) -> Any:
        """Runs a call in the caller's thread.

        Raises:
            RemoteError, WorkerDied, DeadlineExceeded, Overloaded, Quarantined: as `Model.call`.
        """
        with undisturbed:
            return self.scheduler.call(call)

    def submit(self, call: Call) -> Future[Any]:
        """Queues a call; `cancel()` on its future reaches it wherever it is."""
        with undisturbed:
            return self.scheduler.submit(call)

    def stream(self, call: Call) -> Values:
        """Yields a generator method's values."""
        return Values(self.scheduler.stream(call))

    @property
    def ready(self) -> bool:
        """Whether a replica is."""
        return any(replica.state is ReplicaState.READY for replica in self.replicas)

    def idle_for(self) -> float:
        """Seconds since the last call ended; 0 while one runs or waits."""
        if self.scheduler.waiting or any(replica.in_flight for replica in self.replicas):
            return 0.0
        return time.monotonic() - self.scheduler.last_used

    def expired(self) -> bool:
        """Whether it has been idle for longer than its `keep_alive`; one that was of no use yet gets a moment."""
        keep_alive = self.specification.keep_alive
        if keep_alive is None or keep_alive < 0:
            return False
        return self.idle_for() > (max(keep_alive, FIRST_USE) if self.scheduler.unused else keep_alive)

    def evict(self, grace: float) -> None:
        """Ends the workers; the next call brings them back. Calls that they have may finish in `grace` seconds."""
        end = time.monotonic() + grace
        for replica in self.replicas:
            with self.scheduler.withdrawn(replica):
                replica.rest(max(end - time.monotonic(), 0.0))

    def evict_if_expired(self, grace: float) -> None:
        """Evicts in the background what has been idle for longer than its `keep_alive`. For the clock's thread alone."""
        evicting = self._evicting is not None and self._evicting.is_alive()
        if not evicting and self.ready and self.expired():
            name = f"evict {self.name}"
            self._evicting = threading.Thread(target=self.evict, args=(grace,), name=name, daemon=True)
            self._evicting.start()

    def refuse(self) -> None:
        """Takes no more calls: those that wait are refused, those that a worker has may finish."""
        for replica in self.replicas:
            replica.refuse()
        self.scheduler.fail_waiting(WorkerError(f"{self.name} was unloaded", hint="load the model again"))

    def unload(self, grace: float) -> None:
        """Ends the workers for good. What they have to do may finish in `grace` seconds; then they are killed."""
        end = time.monotonic() + grace
        self.refuse()
        try:
            for replica in self.replicas:
                replica.stop(max(end - time.monotonic(), 0.0))
        except BaseException:  # Ctrl-C: then at once
            for replica in self.replicas:
                replica.stop(0.0)
            raise

    def refusal(self) -> OrchestratorError | None:
        """Why no replica is ever ready again by itself, or None."""
        refusals: Sequence[OrchestratorError | None] = [replica.refusal() for replica in self.replicas]
        return refusals[0] if all(refusals) else None

    def explained(self, error: BaseException) -> BaseException:
        """The error with the hint that the diagnosis table has for it."""
        if isinstance(error, RemoteError) and error.hint is None:
            from orchestrator.diagnosis import diagnose

            found = diagnose(
                error.remote_type,
                error.message,
                error.remote_traceback,
                self.specification.environment.versions,
                self.specification.family.name,
            )
            if found is not None:
                error.hint = f"{found.cause} {found.remedy}"
        return error

    def _replica_changed(self, replica: Replica) -> None:
        if replica.state is ReplicaState.READY:
            self.scheduler.last_used, self.scheduler.unused = time.monotonic(), True
            self.scheduler.pump()
        elif replica.state is ReplicaState.COLD and replica.no_room is not None:
            if not any(other.alive for other in self.replicas if other is not replica):
                self.scheduler.fail_waiting(replica.no_room)
        elif replica.state is ReplicaState.COLD and self.scheduler.waiting:
            replica.wake()  # a call came while it was being evicted
        elif replica.state is ReplicaState.QUARANTINED and (refusal := self.refusal()) is not None:
            self.scheduler.fail_waiting(refusal)
        self._changed(self)
