"""One socket, shared by threads that take turns in leading it.

Whoever waits for something becomes the leader if nobody is: it sends its own message, polls, and hands every message
that comes in to whom it belongs, until its own is there. A round trip of a lone caller so takes no thread switch but
those of zmq. Others, the followers, put their messages into the outbox, ring, and sleep. A leader that leaves wakes
a follower to lead after it, or, if none is there and something is still to be done, calls `idle`.

No wake-up is lost: who adds to the outbox or lines up as a follower then tries for the lock; who holds the lock looks
at both after letting it go.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Callable, Deque, List, Optional

from orchestrator.worker.interrupts import listening, undisturbed

__all__ = ["Channel", "Waiter"]

TICK = 5.0
"""Seconds that a leader sleeps at most; then `tick` is called."""


class Waiter:
    """Somebody who waits. `background` ones give the lead to any other that comes."""

    __slots__ = ("background", "event", "ready")

    def __init__(self, *, background: bool = False) -> None:
        self.ready = False
        self.background = background
        self.event: Optional[threading.Event] = None

    def notify(self) -> None:
        """What was waited for is there."""
        self.ready = True
        if self.event is not None:
            self.event.set()


class Channel:
    """See the module. `receive` gets the frames of each message, in the leader's thread, and must not raise."""

    def __init__(
        self,
        transport: Any,
        receive: Callable[[List[Any]], None],
        *,
        idle: Callable[[], None] = lambda: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._transport = transport
        self._receive = receive
        self._idle = idle
        self._tick = tick
        self._io = threading.Lock()
        self._outbox: Deque[List[Any]] = deque()
        self._followers: Deque[Waiter] = deque()
        self._leader_yields = False
        self._closing = threading.Lock()
        self._lulls = 0  # how often a leader found that nothing more has come in
        self.closed = False

    @property
    def blocked(self) -> bool:
        """Whether messages wait to be sent."""
        return bool(self._outbox)

    def post(self, frames: List[Any]) -> None:
        """Sends as soon as possible; never waits."""
        if self.closed:
            return
        if self._io.acquire(False):
            try:
                self._put(frames)
            finally:
                self._io.release()
        else:
            self._outbox.append(frames)
            self._transport.wake()
        self._elect()

    def exchange(self, frames: List[Any], waiter: Waiter, deadline: Optional[float]) -> bool:
        """Sends and waits for `waiter` to be notified; False at the deadline (monotonic seconds)."""
        if self._io.acquire(False):
            try:
                self._put(frames)
                self._lead(waiter, deadline)
            finally:
                self._io.release()
                self._elect()
        else:
            self._outbox.append(frames)
            self._transport.wake()
        return waiter.ready or self.wait(waiter, deadline)

    def wait(self, waiter: Waiter, deadline: Optional[float] = None) -> bool:
        """Waits for `waiter` to be notified; False at the deadline, or when the channel is closed."""
        while not waiter.ready and not self.closed:
            if self._io.acquire(False):
                try:
                    self._lead(waiter, deadline)
                finally:
                    self._io.release()
                    self._elect()
                if waiter.background:
                    break
            else:
                self._follow(waiter, deadline)
            if deadline is not None and time.monotonic() >= deadline:
                break
        return waiter.ready

    def glance(self) -> None:
        """Takes what has come in, without waiting, unless somebody leads and does so anyway."""
        if not self.closed and self._io.acquire(False):
            self._take_all()

    def _take_all(self) -> None:
        """For the holder of the lock, who thereby lets it go."""
        try:
            frames = self._transport.receive()
            while frames is not None:
                self._receive(frames)
                frames = self._transport.receive()
        finally:
            self._io.release()
            self._elect()

    def drain(self, timeout: float) -> None:
        """Takes all that the other side sent before it ended. Whoever leads meanwhile does it; else this thread."""
        end = time.monotonic() + timeout
        self._transport.await_end(timeout)
        seen = self._lulls + 2  # one may be of a look from before
        while self._lulls < seen and not self.closed and time.monotonic() < end:
            if self._io.acquire(timeout=0.005):
                self._take_all()
                return
            self._transport.wake()

    def seal(self) -> None:
        """The other side is there: nobody else can come."""
        self._transport.seal()

    def wake(self) -> None:
        """Makes the leader look around."""
        self._transport.wake()

    def shut(self, linger: float = 0) -> None:
        """Closes the socket; all who wait return. A second time does nothing."""
        with self._closing:
            if self.closed:
                return
            self.closed = True
        while not self._io.acquire(timeout=0.01):
            self._transport.wake()
        self._transport.close(linger)  # and the lock stays taken: nobody leads a closed channel
        self._receive = lambda _: None
        self._idle = self._tick = lambda: None
        for waiter in list(self._followers):
            if waiter.event is not None:
                waiter.event.set()

    def _put(self, frames: List[Any]) -> None:
        if self._outbox or not self._transport.send(frames):
            self._outbox.append(frames)
            self._flush()

    def _flush(self) -> None:
        outbox = self._outbox
        while outbox and self._transport.send(outbox[0]):
            outbox.popleft()

    def _lead(self, waiter: Waiter, deadline: Optional[float]) -> None:
        transport = self._transport
        self._leader_yields = waiter.background
        while True:
            if self._outbox:
                self._flush()
            if waiter.ready or self.closed or (waiter.background and self._followers):
                return
            pause = TICK
            if deadline is not None:
                pause = min(TICK, deadline - time.monotonic())
                if pause <= 0:
                    return
            before = undisturbed.listen()
            try:
                found = transport.poll(pause, writable=bool(self._outbox))
            finally:
                undisturbed.hush(before)
            if found:
                frames = transport.receive()
                if frames is not None:
                    self._receive(frames)
                continue
            self._lulls += 1
            if pause == TICK:
                self._tick()

    def _follow(self, waiter: Waiter, deadline: Optional[float]) -> None:
        event = waiter.event = waiter.event or threading.Event()
        self._followers.append(waiter)
        leaves = True
        try:
            if self._leader_yields:
                self._transport.wake()
            if not waiter.ready and not self.closed and self._io.locked():
                with listening():
                    event.wait(TICK if deadline is None else min(TICK, max(deadline - time.monotonic(), 0)))
                event.clear()
            leaves = waiter.ready or (deadline is not None and time.monotonic() >= deadline)
        finally:
            self._followers.remove(waiter)
            if leaves:  # it may have been chosen to lead
                self._elect()

    def _elect(self) -> None:
        """Finds somebody to lead, if there is something to lead for and nobody does."""
        if not (self._followers or self._outbox):
            self._idle()
            return
        if self._io.locked() or self.closed:
            return
        if self._outbox and self._io.acquire(False):
            try:
                self._flush()
            finally:
                self._io.release()
        for waiter in list(self._followers):
            if waiter.event is not None and not waiter.ready:
                waiter.event.set()
                return
        self._idle()
