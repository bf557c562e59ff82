"""What lies under a link: the socket, who waits for what, and what becomes of them when the worker ends."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from typing import Any

import zmq

from orchestrator.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    OrchestratorError,
    ProtocolError,
    WorkerDied,
    WorkerError,
    WorkerStartError,
)
from orchestrator.links.background import Background
from orchestrator.links.pending import Answer, NotBegun, PendingFuture, PendingStream, tell
from orchestrator.links.remote import remote_error
from orchestrator.processes import WorkerProcess
from orchestrator.worker import messages as m
from orchestrator.worker.channel import Channel
from orchestrator.worker.segments import SegmentPool, SegmentViews
from orchestrator.worker.transport import ZmqTransport
from orchestrator.worker.wire import DecodingError, EncodingError

__all__ = ["Exchange"]

log = logging.getLogger(__name__)

NAMES = ("method", "args", "kwargs", "credit")
_FINAL = frozenset((m.RESULT, m.END, m.ERROR))
_ANSWERS = frozenset((m.RESULT, m.ITEM, m.END, m.ERROR, m.PROGRESS, m.NOTE, m.HELLO))
_SETTLING = (
    5.0  # seconds at most in which the last messages of an ended worker are taken in; it takes some 1 ms
)
_SETTLED = 2.0  # seconds at most until a worker that is ending has ended
_monotonic = time.monotonic


class Exchange:
    """Sends messages to one worker and hands its answers to those who wait for them."""

    def __init__(self, process: WorkerProcess, transport: Any = None) -> None:
        self.process = process
        try:
            self.background = Background(self, process.name)
        except OSError as error:  # no more descriptors
            raise WorkerStartError(
                f"worker {process.name} cannot be reached: {error.strerror}", hint="raise `ulimit -n`"
            ) from None
        ours, theirs, transport = _meet(process, transport)
        self._post = m.Post(SegmentPool(ours), SegmentViews(theirs, self.background.later, lends_on=True))
        self.channel = Channel(transport, self._receive, idle=self._if_idle)
        self._ids = itertools.count(1)
        self._pending: dict[int, Answer] = {}
        self._futures: dict[int, PendingFuture] = {}
        self._abandoned: dict[int, float] = {}
        self._when_free: Callable[[], None] | None = None
        self.replaced = False
        self._deadlines: list[tuple[float, int]] = []
        self._deadlines_lock = threading.Lock()
        self._failure: OrchestratorError | None = None
        self._deaths: list[Callable[[WorkerDied], None]] = []
        self._closing = False  # no more calls are taken
        self._over = False
        self._settling = threading.Lock()
        self._settled = False
        self._ping = 0.0
        self.last_sign_of_life = _monotonic()
        self._greeting = self._pending[0] = Answer()
        try:
            self.background.thread.start()
        except RuntimeError as error:  # no more threads
            self.shut()
            raise WorkerStartError(f"worker {process.name} cannot be reached: {error}") from None
        process.on_end(self._died)

    @property
    def alive(self) -> bool:
        """Whether calls can be made."""
        return self._failure is None and not self._closing and self.process.alive

    @property
    def in_flight(self) -> int:
        """Calls, futures and streams without an answer."""
        return len(self._pending) - (0 in self._pending)

    # -- one answer --------------------------------------------------------------------------------------------------

    def outcome(self, answer: Answer) -> bool:
        """Whether it is decided how a call ended."""
        if answer.message is None and answer.failure is None and self._failure is not None:
            answer.failure = self._failure
        return answer.message is not None or answer.failure is not None

    def wrong(self, answer: Answer) -> OrchestratorError:
        """The error of a call that ended without a result."""
        if answer.failure is not None:
            return fresh(answer.failure)
        message = answer.message
        if message is None or message.kind != m.ERROR:
            return ProtocolError(f"worker {self.process.name} gave an answer of the wrong kind")
        error = remote_error(self.value(message), self.process.environment.versions, self.process.name)
        if answer.recalled and isinstance(error, Cancelled):
            return NotBegun(f"worker {self.process.name} gave the call back")
        return error

    def late(self, what: str) -> OrchestratorError:
        """The error of a call whose deadline passed (or whose link was closed meanwhile)."""
        if self._failure is not None:
            return fresh(self._failure)
        if self._closing:
            return WorkerError(f"worker {self.process.name} was closed")
        return DeadlineExceeded(
            f"worker {self.process.name}: {what} took longer than its timeout", hint="raise timeout="
        )

    def value(self, message: m.Message) -> Any:
        """The value of a message; a ProtocolError if it cannot be decoded."""
        try:
            return message.value()
        except DecodingError as error:
            raise ProtocolError(
                f"worker {self.process.name} sent a value that cannot be read: {error}"
            ) from None

    def tell(self, answer: Answer) -> None:
        """Passes on what the family told with `progress`."""
        if answer.news is not None and answer.listen is not None:
            while answer.news:
                tell(answer.news.popleft(), *answer.listen)

    def send(self, kind: int, ident: int, value: Any) -> None:
        """Sends one of our own messages."""
        if self.alive:
            self.channel.post(self._post.compose(kind, ident, value))

    def abandon(self, ident: int, answer: Answer) -> None:
        """Nobody waits for this any more: what still comes is dropped, and the worker is told."""
        if answer.message is None and answer.failure is None:
            self.give_up(ident)
        else:
            self._pending.pop(ident, None)

    def give_up(self, ident: int) -> None:
        """Cancels in the worker, whether it is waiting there or running."""
        self._futures.pop(ident, None)
        # Before it is taken out of `_pending`: who takes in its answer at this moment looks here after that.
        self._abandoned[ident] = _monotonic()
        unanswered = self._pending.pop(ident, None) is not None
        if not (unanswered and self.alive) or self.process.forked:
            self._abandoned.pop(ident, None)
        else:
            self.channel.post(self._post.signal(m.CANCEL, ident))
            self.background.ring()

    def recall(self) -> None:
        """Asks for the calls back that the worker has not begun: they fail with `NotBegun`."""
        for ident, answer in list(self._pending.items()):
            if ident and not answer.recalled and not isinstance(answer, PendingStream):
                answer.recalled = True
                self.channel.post(self._post.compose(m.CANCEL, ident, m.IF_WAITING))

    def overrun(self) -> float:
        """Seconds since the oldest cancel that the worker has not followed yet; 0 when there is none."""
        oldest = min(list(self._abandoned.values()), default=None)
        return 0.0 if oldest is None else _monotonic() - oldest

    def when_free(self, callback: Callable[[], None]) -> None:
        """Calls `callback`, once, in the link's thread, when the worker has followed the next of its cancels."""
        self._when_free = callback

    def compose(self, kind: int, ident: int, value: Any, names: Sequence[str] = NAMES) -> list[Any]:
        """The frames of a message; a ConfigError names what the wire does not carry."""
        try:
            return self._post.compose(kind, ident, value, names)
        except EncodingError as error:
            raise ConfigError(str(error)) from None

    def expect(self, ident: int, answer: Answer) -> None:
        """From now on messages of this id are for `answer`; raises if the worker is gone."""
        self._pending[ident] = answer
        if self._failure is not None:  # it died between our look and now
            self._pending.pop(ident, None)
            self._futures.pop(ident, None)
            raise fresh(self._failure)

    def check(self) -> None:
        """Raises the reason why no call can be made, if there is one."""
        if self.process.forked:
            raise WorkerError(
                "this process was forked after its workers were started; they belong to its parent",
                hint="make an Orchestrator in the child, or start it with multiprocessing's 'spawn'",
            )
        if self._failure is not None:
            raise fresh(self._failure)
        if self._closing:
            raise WorkerError(f"worker {self.process.name} was closed")

    # -- whichever thread leads --------------------------------------------------------------------------------------

    def _receive(self, frames: list[Any]) -> None:
        try:
            message = self._post.parse(frames)
        except DecodingError as error:
            self._garbled(error)
            return
        self.last_sign_of_life = _monotonic()
        kind = message.kind
        if kind not in _ANSWERS:
            return  # PONG and RELEASE say nothing more
        answer = self._pending.get(message.ident)
        if answer is None:
            if kind == m.ERROR and message.ident == 0:
                self._garbled(message)  # else it is late, or a duplicate: its lease goes back by itself
        elif answer.take(message):
            self._pending.pop(message.ident, None)
        if kind in _FINAL and self._abandoned.pop(message.ident, None) is not None:
            callback, self._when_free = self._when_free, None
            if callback is not None:
                self.background.do(callback)

    def _garbled(self, what: DecodingError | m.Message) -> None:
        """A message that belongs to no call: whose answer it should have been nobody knows, so all fail."""
        if isinstance(what, m.Message):
            try:
                error: OrchestratorError = remote_error(what.value(), {}, self.process.name)
            except DecodingError as other:
                error = ProtocolError(
                    f"worker {self.process.name} reported an error that cannot be read: {other}"
                )
        else:
            error = ProtocolError(
                f"worker {self.process.name} sent a message that cannot be understood: {what}"
            )
        log.warning("%s", error)
        self.fail_all(error)

    def fail_all(self, error: OrchestratorError) -> None:
        """None of those who wait gets an answer."""
        for ident in list(self._pending):
            answer = self._pending.pop(ident, None)
            if answer is not None:
                answer.fail(error)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _died(self) -> None:
        """Runs in the watcher's thread."""
        try:
            threading.Thread(target=self._bury, name=f"end of {self.process.name}", daemon=True).start()
        except RuntimeError:  # the interpreter ends
            self._bury()

    def _bury(self) -> None:
        self.settle()
        death = self.process.death(f" with {self.in_flight} calls in flight" if self.in_flight else "")
        if self._failure is None:
            self._failure = death
        self.fail_all(death)
        self.channel.wake()
        if not self._closing:
            self.background.do(self.tell_death)
            self.background.do(self.shut)

    def settle(self) -> None:
        """Takes in what an ended worker said before its end: an answer that was given is not lost."""
        with self._settling:
            if self._settled or self.channel.closed:
                return
            self._settled = True
            if self._greeting.message is not None and self._pending:
                self.channel.drain(_SETTLING)

    def tell_death(self) -> None:
        """Calls those who asked to be told."""
        callbacks, self._deaths = self._deaths, []
        if isinstance(self._failure, WorkerDied) and not self._closing:
            for callback in callbacks:
                callback(self._failure)

    def shut(self) -> None:
        """Closes the socket and lets all shared memory go; views that somebody holds stay good."""
        self.channel.shut()
        self._post.pool.close()
        self._post.views.close()
        self.background.stop()

    # -- the background thread ---------------------------------------------------------------------------------------

    def _if_idle(self) -> None:
        if self._futures or self.channel.blocked:
            self.background.ring()

    def wants_leader(self) -> bool:
        """Whether answers are on their way that no thread waits for."""
        return bool(self._futures or self._abandoned) or self.channel.blocked

    def next_deadline(self, at_most: float) -> float:
        """Seconds until the first future is late."""
        with self._deadlines_lock:
            while self._deadlines and self._deadlines[0][1] not in self._futures:
                heapq.heappop(self._deadlines)
            first = self._deadlines[0][0] if self._deadlines else None
        return at_most if first is None else max(min(at_most, first - _monotonic()), 0.0)

    def expire(self) -> None:
        """Fails the futures that are late."""
        while self.next_deadline(1.0) <= 0:
            with self._deadlines_lock:
                _, ident = heapq.heappop(self._deadlines)
            pending = self._futures.get(ident)
            if pending is not None and pending.message is None:
                self.give_up(ident)
                pending.fail(self.late("a call"))

    def expect_future(self, pending: PendingFuture, deadline: float | None) -> None:
        """As `expect`, for a call that no thread waits for."""
        self._futures[pending.ident] = pending
        if deadline is not None:
            with self._deadlines_lock:
                heapq.heappush(self._deadlines, (deadline, pending.ident))
        self.expect(pending.ident, pending)

    def complete(self, pending: PendingFuture) -> None:
        """Gives a future its result; one that was cancelled meanwhile stays so."""
        self._futures.pop(pending.ident, None)
        message, pending.message = pending.message, None
        if pending.future.done():
            return
        with contextlib.suppress(InvalidStateError):
            try:
                if message is None or message.kind != m.RESULT:
                    pending.message = message
                    raise self.wrong(pending)
                value = self.value(message)
            except OrchestratorError as error:
                pending.future.set_exception(error)
            else:
                pending.future.set_result(value)

    def has_chores(self) -> bool:
        """Whether there is shared memory to look after: leases to give back, segments to trim or to unmap."""
        post = self._post
        return bool(post.views.known or post.owes() or not post.pool.idle)

    def chores(self) -> None:
        """Gives leases back, and trims the pool."""
        self._post.pool.trim()
        if self._post.owes() and self.alive:
            self.channel.post(self._post.signal(m.RELEASE))
        self.channel.glance()


def _meet(process: WorkerProcess, transport: Any) -> tuple[socket.socket | None, socket.socket | None, Any]:
    """Our ends for shared memory, if there is any, and the socket that the worker connects to (or `transport`).

    Raises:
        WorkerStartError: the worker is gone already, and has taken them along.
    """
    with contextlib.ExitStack() as made:  # it can end between any two of these
        try:
            meeting = process.meeting
            ours = theirs = None
            if meeting.segments is not None:
                ours = made.enter_context(meeting.segments.dup())
                theirs = made.enter_context(meeting.segments.dup())
            if transport is None:
                listener = None if meeting.listener is None else meeting.listener.detach()
                transport = ZmqTransport(meeting.address, bind=True, keys=meeting.keys, listener=listener)
        except (OSError, zmq.ZMQError, RuntimeError) as error:  # the last: no more threads
            process.wait(_SETTLED)  # its folder goes a moment before it does, and its last words come after
            how = str(error) if process.alive else process.describe_exit()
            raise WorkerStartError(
                f"worker {process.name} cannot be reached: {how}", last_lines=process.tail(20)
            ) from None
        made.pop_all()
    return ours, theirs, transport


def fresh(error: OrchestratorError) -> OrchestratorError:
    """A copy of an error that more than one thread will raise: each raise writes its traceback into it."""
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy
