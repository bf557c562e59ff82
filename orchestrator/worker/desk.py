"""Where a worker's orders arrive and its answers leave. The main thread computes; a second one stands by meanwhile.

While the main thread has nothing to compute it leads the channel itself: an order comes in and its answer goes out
without a change of threads. While it computes, the I/O thread leads: heartbeats, cancels and credits are taken then.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Any, Deque, Dict, List, NoReturn, Set

from orchestrator.worker import messages as m
from orchestrator.worker.channel import Channel, Waiter
from orchestrator.worker.context import current
from orchestrator.worker.jobs import Jobs
from orchestrator.worker.limits import MAX_QUEUE, DecodingError, EncodingError
from orchestrator.worker.memory import is_out_of_memory, memory_now, release_memory
from orchestrator.worker.trouble import describe_error

__all__ = ["Desk"]

_NAP = 0.05  # seconds between two looks of the I/O thread
_DOZE = 20  # naps without work after which it sleeps until there is some
_WATCH = 1.0
_REMEMBERED = 16_384  # orders, so that none is carried out twice


class Cancelled(Exception):
    """The caller does not want the answer any more."""


class Desk:
    """One worker's end of its link."""

    def __init__(
        self, transport: Any, post: m.Post, file: str, name: str, times: Dict[str, float], keeper: int
    ) -> None:
        self.post = post
        self.channel = Channel(transport, self._receive, tick=self._chores)
        self.jobs = Jobs(self, file, name, times)
        self._transport = transport
        self._times = times
        self._keeper = keeper
        self._orders: Deque[m.Message] = deque()
        self._recent: Deque[int] = deque(maxlen=_REMEMBERED)
        self._known: Set[int] = set()
        self._main = Waiter()
        self._credits: Dict[int, int] = {}
        self._lock = threading.Lock()
        self._computing = False
        self._in_family = False
        self._busy = threading.Event()
        self._disowned = False
        self._over = False

    # -- the main thread ---------------------------------------------------------------------------------------------

    def hello(self) -> None:
        """Says who this is and what it can."""
        from orchestrator.worker.facts import facts

        self.send(m.HELLO, 0, facts(self._times))

    def work(self) -> None:
        """Carries out orders, one after the other, until BYE."""
        current.tell = lambda ident, news: self.send(m.PROGRESS, ident, news)
        current.note = lambda ident, step: self.send(m.NOTE, ident, step)
        while not self._over:
            while not self._orders:
                self._main.ready = False
                if self._orders:
                    break
                self.channel.wait(self._main)
            with self._lock:  # a cancel finds it either waiting or running
                order = self._orders.popleft()
                current.begin(order.ident)
            box = [order]
            del order
            self._carry_out(box)

    def send(self, kind: int, ident: int, value: Any) -> None:
        """Sends a message as soon as possible."""
        self.channel.post(self.post.compose(kind, ident, value))

    def wait_for_credit(self, ident: int, sent: int) -> None:
        """Waits until the caller takes more than `sent` items of its stream.

        Raises:
            Cancelled: it does not want more.
        """
        while self._must_wait(ident, sent):
            self._main.ready = False
            if self._must_wait(ident, sent):
                self.channel.wait(self._main)
        if current.cancelled:
            raise Cancelled

    def _must_wait(self, ident: int, sent: int) -> bool:
        return not current.cancelled and self._credits.get(ident, 0) <= sent

    def run_family(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the family's code; only here a SIGINT becomes a KeyboardInterrupt."""
        self._in_family = True
        try:
            return function(*args, **kwargs)
        finally:
            self._in_family = False
            if self._disowned:
                os._exit(0)  # the family forked, and this is the child: it must not answer for its parent

    def interrupted(self, *_: Any) -> None:
        """SIGINT: ends the family's running method, and nothing else."""
        if self._in_family:
            raise KeyboardInterrupt

    def open_stream(self, ident: int, credit: int) -> None:
        """The caller can take this many items."""
        self._credits[ident] = self._credits.get(ident, 0) + credit

    def bye(self) -> None:
        """No more orders."""
        self._over = True

    def close(self) -> None:
        """Sends what waits, and closes."""
        self.channel.shut(linger=2.0)
        self._transport.finish()

    def _carry_out(self, box: List[m.Message]) -> None:
        """Does what the order in `box` says, and answers."""
        ident = current.ident
        short = False
        self._computing = True
        if not self._busy.is_set():
            self._busy.set()
        try:
            if current.cancelled:
                raise Cancelled
            frames = self.jobs.carry_out(box)
        except BaseException as error:
            frames = self._complain(ident, error)
            short = is_out_of_memory(error)
        finally:
            current.end()
            self._computing = False
            self._credits.pop(ident, None)
        if short:
            release_memory()  # what the failed call held: the next one finds it free
        if frames is not None:
            self.channel.post(frames)

    def _complain(self, ident: int, error: BaseException) -> List[Any]:
        kind = getattr(error, "orchestrator_kind", "remote")
        if isinstance(error, Cancelled):
            kind = "cancelled"
        elif isinstance(error, DecodingError):
            kind = "protocol"
        elif isinstance(error, EncodingError):
            kind = "encoding"
        account = describe_error(error, kind)
        if is_out_of_memory(error):
            account.update(memory=memory_now(), tried=current.tried)
        else:
            account.update(self.jobs.mismatch(error))
        return self.post.compose(m.ERROR, ident, account)

    # -- whichever thread leads --------------------------------------------------------------------------------------

    def _receive(self, frames: List[Any]) -> None:
        try:
            message = self.post.parse(frames)
            self._route(message)
        except Exception as error:
            self.channel.post(self.post.compose(m.ERROR, 0, describe_error(error, "protocol")))

    def _route(self, message: m.Message) -> None:
        kind, ident = message.kind, message.ident
        if kind in {m.CALL, m.STREAM, m.LOAD, m.UNLOAD, m.BYE}:
            if not self._is_new(ident):
                return  # doubled or replayed on its way: the first one is answered
            if len(self._orders) >= MAX_QUEUE:
                raise DecodingError(f"more than {MAX_QUEUE} orders wait")
            self._orders.append(message)
            self._main.notify()
        elif kind == m.CANCEL:
            self._cancel(ident, begun=message.value() != m.IF_WAITING)
        elif kind == m.CREDIT:
            self._take_credit(ident, message.value())
        elif kind == m.PING:
            self.channel.post(self.post.signal(m.PONG, ident))
        elif kind == m.HELLO:
            self._check_protocol(message.value())
        elif kind != m.RELEASE:
            raise DecodingError(f"a worker takes no message of kind {kind}")

    def _take_credit(self, ident: int, more: Any) -> None:
        if type(more) is not int or not 0 < more < 1 << 32:
            raise DecodingError("a credit that is not a small number")
        if ident == current.ident:
            self.open_stream(ident, more)
            self._main.notify()

    def _is_new(self, ident: int) -> bool:
        if ident in self._known:
            return False
        if len(self._recent) == _REMEMBERED:
            self._known.discard(self._recent[0])
        self._recent.append(ident)
        self._known.add(ident)
        return True

    def _check_protocol(self, value: Any) -> None:
        theirs = value.get("protocol") if type(value) is dict else None
        if theirs != m.PROTOCOL:
            raise DecodingError(f"the coordinator speaks protocol {theirs!r}, this worker {m.PROTOCOL}")

    def _cancel(self, ident: int, *, begun: bool) -> None:
        with self._lock:
            waiting = [order for order in self._orders if order.ident == ident]
            if waiting:
                self._orders = deque(order for order in self._orders if order.ident != ident)
            if begun and ident == current.ident:
                current.cancelled = True
                self._main.notify()
        for _ in waiting:
            self.channel.post(self.post.compose(m.ERROR, ident, describe_error(Cancelled(), "cancelled")))

    def _chores(self) -> None:
        if os.getppid() != self._keeper:
            os._exit(70)
        self.post.pool.trim()
        if self.post.owes():
            self.channel.post(self.post.signal(m.RELEASE))

    # -- the I/O thread ----------------------------------------------------------------------------------------------

    def stand_by(self) -> NoReturn:
        """Leads while the main thread computes."""
        waiter = Waiter(background=True)
        idle = 0
        while True:
            self._busy.wait()
            time.sleep(_NAP)
            if self._computing:
                idle = 0
                self.channel.wait(waiter, time.monotonic() + _WATCH)
                self._chores()
                continue
            idle += 1
            if idle > _DOZE:
                self._doze()

    def _doze(self) -> None:
        self._busy.clear()
        if self._computing:  # it began just now, and saw the flag still set
            self._busy.set()

    def disown(self) -> None:
        """Runs in a process that the family forked: the link is its parent's."""
        self._disowned = True
        self.channel.closed = True
