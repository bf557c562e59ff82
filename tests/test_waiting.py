"""A signal that another thread takes in: the main thread, where its handler runs, must not sleep through it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import pytest

from orchestrator.waiting import as_they_end, exit_code_of, join, next_of, result_of


class Rang(Exception):
    """What the handler raises."""


@pytest.fixture
def taken_by_another_thread() -> Iterator[None]:
    """A signal comes to a thread that is not the main one, as Linux does now and then with one for the process."""

    def ring(*_: Any) -> None:
        raise Rang

    def take() -> None:
        time.sleep(0.1)  # the main thread is waiting by then
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, ring)
    thread = threading.Thread(target=take)
    thread.start()
    yield
    thread.join()
    signal.signal(signal.SIGUSR2, before)


def never() -> Future[None]:
    return Future()


def sleeper() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], text=True)


def on_a_thread() -> None:
    thread = threading.Thread(target=time.sleep, args=(20,), daemon=True)
    thread.start()
    join(thread)


def on_a_program() -> None:
    with sleeper() as process:
        try:
            exit_code_of(process)
        finally:
            process.kill()


@pytest.mark.parametrize(
    "wait",
    [
        lambda: result_of(never()),
        lambda: result_of(never(), 20),
        lambda: list(as_they_end([never()])),
        lambda: next_of(SimpleQueue()),
        on_a_thread,
        on_a_program,
    ],
    ids=["result", "result, with a limit", "as they end", "next of a queue", "thread", "program"],
)
def test_the_handler_runs_soon(taken_by_another_thread: None, wait: Callable[[], object]) -> None:
    started = time.monotonic()
    with pytest.raises(Rang):
        wait()
    assert time.monotonic() - started < 10


def test_what_a_future_holds() -> None:
    future: Future[int] = Future()
    with pytest.raises(TimeoutError):
        result_of(future, 0.01)
    future.set_result(3)
    assert result_of(future) == result_of(future, 0) == 3
    failed: Future[int] = Future()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        result_of(failed)
    assert set(as_they_end([future, failed])) == {future, failed}


def test_how_a_program_ends() -> None:
    assert exit_code_of(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True)) == 3
    with sleeper() as process:
        with pytest.raises(subprocess.TimeoutExpired):
            exit_code_of(process, 0.05)
        process.kill()
        assert exit_code_of(process, 10) == -signal.SIGKILL
        assert exit_code_of(process) == -signal.SIGKILL  # also when somebody has waited for it
