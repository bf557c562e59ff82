"""Which replica runs a call, and who waits: slots, a bounded queue, deadlines and declared retries."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import contextmanager
from typing import Any

from orchestrator.calls import Call, CallFuture, Link, Mover, Schedulable
from orchestrator.errors import (
    Cancelled,
    DeadlineExceeded,
    OrchestratorError,
    OutOfMemory,
    Overloaded,
    RemoteError,
    WorkerDied,
)
from orchestrator.events import Event, Listener, ignore
from orchestrator.links import NotBegun
from orchestrator.waiting import result_of
from orchestrator.worker.interrupts import undisturbed

__all__ = ["Call", "CallFuture", "Link", "Schedulable", "Scheduler"]

HELD_AFTER = 0.5  # seconds that a cancelled call may take before others are kept from its worker
SLOTS = 2  # one call runs, the next one's arguments already wait in the worker


class Scheduler:
    """Hands out the replicas' slots, least loaded first, in the order of asking."""

    def __init__(
        self,
        name: str,
        replicas: Sequence[Schedulable],
        depth: int,
        explained: Callable[[BaseException], BaseException] = lambda error: error,
        listener: Listener = ignore,
    ) -> None:
        self.name = name
        self.explained = explained
        self.listener = listener
        self.replicas = replicas
        self.depth = depth
        self.waiting: deque[tuple[Future[Schedulable], float | None, Schedulable | None]] = deque()
        self.recovered = 0
        """Calls that ran out of memory and came to their result all the same."""
        self.leaving: set[Schedulable] = set()
        """Replicas that get no calls for now: see `withdrawn`."""
        self.lock = threading.RLock()  # a stream that is garbage gives its slot back wherever it is collected
        self._mover = Mover(self.withdrawn)
        self.last_used = time.monotonic()
        self.unused = True
        """No call has ended since a replica became ready."""

    # -- the three ways to call -------------------------------------------------------------------------

    def call(self, call: Call) -> Any:
        """Runs a call in the caller's thread and returns its result.

        Raises:
            RemoteError: the family's code raised. WorkerDied: the worker did, and `retries` are used up.
            DeadlineExceeded: while it was queued or ran. Overloaded: the queue is full.
            Quarantined, WorkerError: no replica will ever be ready.
        """
        while True:
            replica = self._take(call) or self._wait_for_slot(call)
            link = replica.link
            try:
                if link is None:
                    continue  # it ended, or drains, since the slot was given; nothing was sent
                result = link.call(
                    call.method, call.args, call.kwargs, timeout=call.remaining(), notes=call.notes
                )
            except NotBegun:
                continue
            except WorkerDied:
                if not _may_repeat(call):
                    raise
                continue
            except OutOfMemory as error:
                short = error
            except RemoteError as error:
                raise self.explained(error) from None
            else:
                self._tell(call)
                return result
            finally:
                self._give_back(replica)
            if not self._elsewhere(call, replica, link):
                raise self._in_the_end(call, short) from None

    def submit(self, call: Call) -> CallFuture:
        """Queues a call; the future's `cancel()` reaches it wherever it is.

        Raises:
            Overloaded, Quarantined, WorkerError: as `call`, at once; the future holds the other errors.
        """
        outer = CallFuture(call.notes)
        self._start(call, outer)
        return outer

    def stream(self, call: Call) -> Generator[Any]:
        """Yields a generator method's values; closing the iterator cancels the rest. Raises as `call`."""
        while True:
            replica = self._take(call) or self._wait_for_slot(call)
            link = replica.link
            if link is not None:
                break
            self._give_back(replica)
        try:
            yield from link.stream(call.method, call.args, call.kwargs, timeout=call.remaining())
        except RemoteError as error:
            raise self.explained(error) from None
        finally:
            with undisturbed:  # it may have been dropped
                self._give_back(replica)

    # -- slots ------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Gives free slots to whoever waits; called when a slot or a replica becomes free."""
        while True:
            with self.lock:
                if not self.waiting:
                    return
                replica = self._free(self.waiting[0][2])
                if replica is None:
                    return
                slot, *_ = self.waiting.popleft()
                replica.in_flight += 1
            try:
                slot.set_result(replica)
            except InvalidStateError:  # cancelled meanwhile
                self._give_back(replica)

    @contextmanager
    def withdrawn(self, replica: Schedulable) -> Iterator[None]:
        """Keeps new calls from a replica while the block runs: its `in_flight` can only fall."""
        with self.lock:
            self.leaving.add(replica)
        try:
            yield
        finally:
            with self.lock:
                self.leaving.discard(replica)
            self.pump()

    def expire(self) -> None:
        """Fails the queued calls whose deadline has passed; called by the coordinator's clock."""
        now = time.monotonic()
        with self.lock:
            late = [entry for entry in self.waiting if entry[1] is not None and entry[1] <= now]
            for entry in late:
                self.waiting.remove(entry)
        for slot, *_ in late:
            _settle(
                slot, error=DeadlineExceeded(f"{self.name}: the deadline passed while the call was queued")
            )

    def fail_waiting(self, error: OrchestratorError) -> None:
        """Fails everything queued: no replica will come back."""
        with self.lock:
            entries, self.waiting = list(self.waiting), deque()
        for slot, *_ in entries:
            _settle(slot, error=error)

    def _free(self, avoid: Schedulable | None = None) -> Schedulable | None:
        best: Schedulable | None = None
        if avoid is not None and all(r is avoid or r.link is None for r in self.replicas):
            avoid = None  # the others are gone meanwhile, or it has moved
        for replica in self.replicas:
            link = replica.link
            if replica is avoid or replica in self.leaving:
                continue
            if link is None or replica.in_flight >= SLOTS:
                continue
            if link.overrun() > (HELD_AFTER if replica.in_flight else 0.0):
                link.when_free(self.pump)
                continue  # a cancelled call still holds the worker
            if best is None or replica.in_flight < best.in_flight:
                best = replica
        return best

    def _take(self, call: Call) -> Schedulable | None:
        with self.lock:
            if self.waiting:
                return None
            replica = self._free(call.avoid)
            if replica is not None:
                replica.in_flight += 1
            return replica

    def _give_back(self, replica: Schedulable) -> None:
        with self.lock:
            replica.in_flight -= 1
            self.last_used = time.monotonic()
            self.unused = False
            waiting = bool(self.waiting)
        if waiting:
            self.pump()

    def _queue(self, call: Call) -> Future[Schedulable]:
        slot: Future[Schedulable] = Future()
        with self.lock:
            if len(self.waiting) >= self.depth:
                raise Overloaded(
                    f"{self.name}: {len(self.waiting)} calls wait already",
                    hint="slow down, raise replicas=, or set ORCHESTRATOR_QUEUE_DEPTH",
                )
            self.waiting.append((slot, call.deadline, call.avoid))
        # Only now: who fails what waits when the last replica is lost has either seen this call, or is seen here.
        refusals = [replica.refusal() for replica in self.replicas]
        if all(refusals):
            self._abandon(slot)
            raise next(refusal for refusal in refusals if refusal)
        for replica in self.replicas:
            replica.wake()
        self.pump()
        return slot

    def _wait_for_slot(self, call: Call) -> Schedulable:
        slot = self._queue(call)
        try:
            return result_of(slot, call.remaining())
        except TimeoutError:
            self._abandon(slot)
            raise DeadlineExceeded(f"{self.name}: the deadline passed while the call was queued") from None
        except BaseException:
            self._abandon(slot)
            raise

    def _abandon(self, slot: Future[Schedulable]) -> None:
        """Leaves the queue; a slot that came at the last moment goes to the next."""
        if slot.cancel():
            with self.lock:
                self.waiting = deque(entry for entry in self.waiting if entry[0] is not slot)
        elif slot.exception() is None:
            self._give_back(slot.result())

    # -- submitted calls --------------------------------------------------------------------------------

    def _start(self, call: Call, outer: CallFuture) -> None:
        slot = self._queue(call)
        outer.undo = lambda: self._abandon(slot) if not slot.done() else None
        slot.add_done_callback(lambda granted: self._granted(call, outer, granted))

    def _granted(self, call: Call, outer: CallFuture, slot: Future[Schedulable]) -> None:
        if slot.cancelled():
            return
        if (error := slot.exception()) is not None:
            _settle(outer, error=error)
            return
        replica = slot.result()
        link = replica.link
        if link is None or outer.cancelled():
            self._give_back(replica)
            self._again(call, outer)
            return
        try:
            inner = link.submit(
                call.method, call.args, call.kwargs, timeout=call.remaining(), notes=call.notes
            )
        except Exception as failure:
            self._give_back(replica)
            self._failed(call, outer, replica, link, failure)
            return
        outer.undo = inner.cancel
        inner.add_done_callback(lambda done: self._finished(call, outer, replica, link, done))
        if outer.cancelled():
            inner.cancel()

    def _finished(
        self, call: Call, outer: CallFuture, replica: Schedulable, link: Link, inner: Future[Any]
    ) -> None:
        self._give_back(replica)
        try:
            result = inner.result()
        except CancelledError:
            _settle(outer, error=Cancelled(f"call of {call.method!r} was cancelled"))
        except Exception as error:
            self._failed(call, outer, replica, link, error)
        else:
            self._tell(call)
            _settle(outer, result=result)

    def _failed(
        self, call: Call, outer: CallFuture, replica: Schedulable, link: Link | None, error: Exception
    ) -> None:
        if isinstance(error, OutOfMemory) and not outer.cancelled():
            # In a thread of its own: this one belongs to the link, and a move takes as long as a load.
            arguments = (call, outer, replica, link, error)
            threading.Thread(target=self._retry_elsewhere, args=arguments, daemon=True).start()
            return
        if isinstance(error, NotBegun) or (isinstance(error, WorkerDied) and _may_repeat(call)):
            self._again(call, outer)
        else:
            _settle(outer, error=self.explained(error))

    def _again(self, call: Call, outer: CallFuture) -> None:
        if outer.cancelled():
            return
        try:
            self._start(call, outer)
        except OrchestratorError as refusal:
            _settle(outer, error=refusal)

    # -- where memory ran out ---------------------------------------------------------------------------

    def _elsewhere(self, call: Call, replica: Schedulable, link: Link | None) -> bool:
        """Whether a call that ran out of memory is made again: once, on another replica, else on another device."""
        if call.avoid is not None:
            return False
        call.avoid = replica
        if any(other is not replica and other.link is not None for other in self.replicas):
            call.notes.append("another replica")
        elif self._mover.move(call, replica, link):
            call.notes.append("another device")
        else:
            return False
        return True

    def _retry_elsewhere(
        self, call: Call, outer: CallFuture, replica: Schedulable, link: Link | None, error: OutOfMemory
    ) -> None:
        try:
            again = self._elsewhere(call, replica, link)
        except OrchestratorError as refusal:
            _settle(outer, error=refusal)
            return
        if again:
            self._again(call, outer)
        else:
            _settle(outer, error=self._in_the_end(call, error))

    def _in_the_end(self, call: Call, error: OutOfMemory) -> BaseException:
        error.details["tried"] = [*call.notes]
        return self.explained(error)

    def _tell(self, call: Call) -> None:
        if call.notes:
            with self.lock:
                self.recovered += 1
            words = f"{call.method}: memory ran out; {', then '.join(call.notes)}"
            self.listener(Event("call", self.name, words, finished=True))


def _may_repeat(call: Call) -> bool:
    """Whether a call whose worker died may be made again; counts a declared retry."""
    call.retries -= 1
    return call.retries >= 0


def _settle(future: Future[Any], *, result: Any = None, error: BaseException | None = None) -> None:
    """Sets a future that somebody may have cancelled meanwhile."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
    except InvalidStateError:
        pass
