"""A signal that another thread takes in: the main thread, where its handler runs, must not sleep through it."""

from __future__ import annotations

import errno
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


Soon = Callable[[], None]


@pytest.fixture
def soon() -> Iterator[Soon]:
    """A signal comes to a thread that is not the main one, as Linux does now and then with one for the process."""

    def ring(*_: Any) -> None:
        raise Rang

    def take() -> None:
        time.sleep(0.2)  # the main thread is waiting by then
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, ring)
    thread = threading.Thread(target=take)
    yield thread.start
    thread.join()
    signal.signal(signal.SIGUSR2, before)


def never() -> Future[None]:
    return Future()


def sleeper() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], text=True)


def on_a_thread(soon: Soon) -> None:
    thread = threading.Thread(target=time.sleep, args=(600,), daemon=True)
    thread.start()
    soon()
    join(thread)


def on_a_program(soon: Soon) -> None:
    with sleeper() as process:
        try:
            soon()
            exit_code_of(process)
        finally:
            process.kill()


@pytest.mark.parametrize(
    "wait",
    [
        lambda soon: (soon(), result_of(never())),
        lambda soon: (soon(), result_of(never(), 600)),
        lambda soon: (soon(), list(as_they_end([never()]))),
        lambda soon: (soon(), next_of(SimpleQueue())),
        on_a_thread,
        on_a_program,
    ],
    ids=["result", "result, with a limit", "as they end", "next of a queue", "thread", "program"],
)
def test_the_handler_runs_soon(soon: Soon, wait: Callable[[Soon], object]) -> None:
    with pytest.raises(Rang):  # what it waits for takes longer than a test may
        wait(soon)


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


@pytest.mark.parametrize("forbidden", [False, True], ids=["", "where pidfd_open is forbidden"])
def test_how_a_program_ends(forbidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if forbidden:

        def refuse(pid: int) -> int:
            raise PermissionError(errno.EPERM, "as in an old container")

        monkeypatch.setattr("os.pidfd_open", refuse)
    assert exit_code_of(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True)) == 3
    with sleeper() as process:
        with pytest.raises(subprocess.TimeoutExpired):
            exit_code_of(process, 0.05)
        process.kill()
        assert exit_code_of(process, 60) == -signal.SIGKILL
        assert exit_code_of(process) == -signal.SIGKILL  # also when somebody has waited for it
