"""One call: what is asked, who may answer it, and the future that stands for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.errors import DeadlineExceeded, OrchestratorError
from orchestrator.links import RemoteFuture
from orchestrator.waiting import GLANCE
from orchestrator.worker.interrupts import listening

__all__ = ["Call", "CallFuture", "Link", "Mover", "Schedulable"]

DRAIN_PAUSE = 0.02  # seconds between two looks whether a replica that is to move has finished its other calls


class Link(Protocol):
    """What the scheduler needs of a `WorkerLink`."""

    def overrun(self) -> float:
        """Seconds that a cancelled call has gone on; 0 when there is none."""

    def when_free(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when such a call has ended."""

    def call(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        timeout: float | None,
        notes: list[str] | None,
    ) -> Any: ...
    def submit(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        timeout: float | None,
        notes: list[str] | None,
    ) -> Future[Any]: ...
    def stream(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, timeout: float | None
    ) -> Iterator[Any]: ...


class Schedulable(Protocol):
    """What the scheduler needs of a replica."""

    in_flight: int

    @property
    def link(self) -> Link | None:
        """The link while the replica is ready, else None."""

    def wake(self) -> None:
        """Starts the replica in the background if it is cold."""

    def refusal(self) -> OrchestratorError | None:
        """Why this replica will never be ready, or None while it is or may become so."""

    def move(self) -> bool:
        """Starts the replica, which has no calls, anew on other accelerators; False where it must stay."""


@dataclass(slots=True)
class Call:
    """One method call. `deadline` is on the monotonic clock; `retries` only for calls declared idempotent.

    `notes` gets, in words and in order, what was done because memory ran out; `avoid` is where it ran out for good.
    """

    method: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None
    retries: int = 0
    notes: list[str] = field(default_factory=list)
    avoid: Schedulable | None = None

    def remaining(self) -> float | None:
        """Seconds left, or None without a deadline; raises `DeadlineExceeded` when there are none."""
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"call of {self.method!r}: the deadline passed before it could run")
        return left


class CallFuture(RemoteFuture):
    """A future whose `cancel()` reaches the call wherever it is: queued, or running in a worker.

    `undo` takes the call back from where it is now.
    """

    def __init__(self, notes: Sequence[str] = ()) -> None:
        super().__init__(self._take_back)
        self.undo: Callable[[], object] | None = None
        self._notes = notes

    @property
    def recovered(self) -> tuple[str, ...]:
        """What was done, in words and in order, because memory ran out on the way to the result; empty if it did not."""
        return tuple(self._notes)

    def _take_back(self) -> None:
        undo = self.undo
        if undo is not None:
            undo()


class Mover:
    """Moves a replica to another device: it gets no new calls, finishes those it has, and starts there anew."""

    def __init__(self, withdrawn: Callable[[Schedulable], AbstractContextManager[None]]) -> None:
        self._withdrawn = withdrawn
        self._lock = threading.Lock()

    def move(self, call: Call, replica: Schedulable, link: Link | None) -> bool:
        """Whether the replica that had this link is on another device now; several calls may ask at once.

        Raises:
            DeadlineExceeded: the call's deadline passed before the move began.
            PlacementError, WorkerError, LoadError: as `Replica.move`.
        """
        while not self._lock.acquire(timeout=min(GLANCE, call.remaining() or GLANCE)):
            with listening():
                pass
        try:
            if replica.link is not link:
                return replica.link is not None  # another call has moved it already
            with self._withdrawn(replica):
                while replica.in_flight:
                    call.remaining()
                    with listening():
                        time.sleep(DRAIN_PAUSE)
                return replica.move()
        finally:
            self._lock.release()
