"""Waiting so that Ctrl-C is heard.

A thread that is about to start another one, or a program, may take in a signal that was meant for the process. Python
runs handlers in the main thread alone, and what that waits for is not interrupted then: so it looks up now and then.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from orchestrator.worker.interrupts import listening

__all__ = ["GLANCE", "as_they_end", "exit_code_of", "join", "next_of", "result_of", "taken"]

T = TypeVar("T")
GLANCE = 0.5
"""Seconds after which a signal is noticed at the latest."""


def result_of(future: Future[T], timeout: float | None = None) -> T:
    """As `future.result`.

    Raises:
        TimeoutError: there was none in `timeout` seconds. Whatever else the future holds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = GLANCE if end is None else min(GLANCE, max(end - time.monotonic(), 0.0))
        try:
            with listening():
                return future.result(left)
        except TimeoutError:
            if future.done() or (end is not None and time.monotonic() >= end):
                raise


def as_they_end(futures: Iterable[Future[T]]) -> Iterator[Future[T]]:
    """As `concurrent.futures.as_completed`."""
    pending = set(futures)
    while pending:
        with listening():
            done, pending = wait(pending, GLANCE, FIRST_COMPLETED)
        yield from done


def next_of(queue: SimpleQueue[T]) -> T:
    """As `queue.get`."""
    while True:
        try:
            with listening():
                return queue.get(timeout=GLANCE)
        except Empty:
            continue


def join(thread: threading.Thread) -> None:
    """As `thread.join`."""
    while thread.is_alive():
        with listening():
            thread.join(GLANCE)


class _Lock(Protocol):
    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


@contextmanager
def taken(lock: _Lock) -> Iterator[None]:
    """As `with lock`, for one that others keep for long."""
    while not lock.acquire(timeout=GLANCE):
        with listening():
            pass
    try:
        yield
    finally:
        lock.release()


def exit_code_of(process: subprocess.Popen[str], timeout: float | None = None) -> int:
    """As `process.wait`, whose own time limit is watched by asking again and again.

    Raises:
        subprocess.TimeoutExpired: it has not ended in `timeout` seconds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    with _watched(process.pid) as descriptor:
        while True:
            left = GLANCE if end is None else min(GLANCE, max(end - time.monotonic(), 0.0))
            with listening():
                ended = _ends(process, descriptor, left)
            if ended:
                return process.wait()
            if timeout is not None and end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(process.args, timeout)


@contextmanager
def _watched(pid: int) -> Iterator[int | None]:
    """A descriptor that can be read when a process has ended.

    None if another thread has waited for it, with a kernel before 5.3, and in containers that forbid the call.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ends(process: subprocess.Popen[str], descriptor: int | None, seconds: float) -> bool:
    if descriptor is not None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
