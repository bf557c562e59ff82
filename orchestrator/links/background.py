"""One thread per link for what nobody waits for: futures, leases to give back, a worker that died."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.links.pending import PendingFuture
from orchestrator.worker.channel import Waiter

if TYPE_CHECKING:
    from orchestrator.links.exchange import Exchange

__all__ = ["Background"]

log = logging.getLogger(__name__)

_TICK = 0.1
"""Seconds after which leases go back if no message takes them along."""
_GLANCE = 1.0


class Background:
    """Sleeps until it is needed. Completes futures and runs callbacks, outside every lock of the link."""

    def __init__(self, link: Exchange, name: str) -> None:
        self._bell = -1
        self._link = link
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._ticking = False
        self._over = self._ended = False
        self._waiter = Waiter(background=True)
        self._work: deque[Callable[[], None]] = deque()
        self.thread = threading.Thread(target=self._run, name=f"link {name}", daemon=True)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._bell)

    def ring(self) -> None:
        """Something is to be done. Takes no lock: also called while garbage is collected."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._bell, 1)

    def later(self) -> None:
        """A lease came back: it goes with the next message, or by itself a moment later."""
        if not self._ticking:
            self.ring()

    def do(self, work: Callable[[], None]) -> None:
        """Runs `work` in this thread soon; when that has ended, in the caller's."""
        self._work.append(work)
        if self._ended:
            self._finish()
        self._waiter.notify()
        self.ring()

    def deliver(self, pending: PendingFuture) -> None:
        """The answer of a future is here."""
        self.do(lambda: self._link.complete(pending))

    def stop(self) -> None:
        """Ends the thread after what it is doing and what it was given to do."""
        self._over = True
        self._waiter.notify()
        self.ring()

    def _run(self) -> None:
        link = self._link
        while not self._over:
            self._waiter.ready = False
            if self._work:
                self._safely(self._work.popleft())
            elif link.wants_leader():
                link.channel.wait(self._waiter, time.monotonic() + link.next_deadline(_GLANCE))
                link.expire()
            else:
                self._ticking = link.has_chores()
                if not self._hear() and self._ticking:
                    self._safely(link.chores)

        self._ended = True
        self._finish()

    def _finish(self) -> None:
        while self._work:
            with contextlib.suppress(IndexError):  # another thread took the last
                self._safely(self._work.popleft())

    def _hear(self) -> bool:
        if not self._poll.poll(_TICK * 1000 if self._ticking else None):
            return False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        return True

    @staticmethod
    def _safely(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("a callback failed")
