"""One thread that notices the end of every worker at once."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

__all__ = ["forget", "watch"]

log = logging.getLogger(__name__)


class _Watcher:
    """Waits for sockets to close. Each belongs to a keeper, which holds the other end as long as it lives."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watched: dict[int, Callable[[], None]] = {}
        threading.Thread(target=self._run, name="orchestrator-watch", daemon=True).start()

    def add(self, fd: int, ended: Callable[[], None]) -> None:
        self._watched[fd] = ended
        os.eventfd_write(self._bell, 1)

    def remove(self, fd: int) -> None:
        self._watched.pop(fd, None)
        os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self._bell, select.POLLIN)
            for fd in tuple(self._watched):
                poll.register(fd, select.POLLRDHUP)
            for fd, _ in poll.poll():
                if fd == self._bell:
                    os.eventfd_read(self._bell)
                    continue
                ended = self._watched.pop(fd, None)
                if ended is not None:
                    _safely(ended)


def _safely(ended: Callable[[], None]) -> None:
    try:
        ended()
    except Exception:  # the ends of all other workers are to be seen
        log.exception("the end of a worker could not be dealt with")


_watchers: list[_Watcher] = []  # at most one, made when first needed
_lock = threading.Lock()


def watch(fd: int, ended: Callable[[], None]) -> None:
    """Calls `ended`, once, in the watcher's thread, when the other end of `fd` closes. `ended` must be quick."""
    with _lock:
        if not _watchers:
            _watchers.append(_Watcher())
        _watchers[0].add(fd, ended)


def forget(fd: int) -> None:
    """Stops watching; the descriptor may be closed after this."""
    for watcher in _watchers:
        watcher.remove(fd)


def _after_fork() -> None:
    _watchers.clear()
    _lock._at_fork_reinit()  # type: ignore[attr-defined] # noqa: SLF001 - as threading does with its own


os.register_at_fork(after_in_child=_after_fork)
