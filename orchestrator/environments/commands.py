"""Running another program: its own process group, its words passed on, nothing left when we stop."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO, Any

from orchestrator.waiting import exit_code_of

__all__ = ["cancel", "cancellable", "check_cancelled", "die_with_parent", "parallel", "run_command"]

GRACE = 2.0
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
running: dict[subprocess.Popen[str], tuple[threading.Event, ...]] = {}
"""The programs that run now, with the signals that end them."""
bound = threading.local()


def run_command(
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    cwd: Path,
    say: Callable[[str], None],
    timeout: float | None = None,
) -> CompletedProcess[str]:
    """Runs a program to its end; `say` gets each line of its stderr as it comes.

    Whatever interrupts the wait (Ctrl-C, an error, `timeout`) also ends the program and its whole group, and if
    this process is killed the kernel kills the program too.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds.
    """
    check_cancelled()
    process = subprocess.Popen(
        command,
        env=dict(environ),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        process_group=0,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, without locks or imports
    )
    running[process] = _signals()
    out: list[str] = []
    err: list[str] = []
    readers = [
        threading.Thread(target=_read, args=(process.stdout, out, None), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, err, say), daemon=True),
    ]
    try:
        for reader in readers:
            reader.start()
        check_cancelled()  # it may have come between the first look and the entry in `running`
        code = exit_code_of(process, timeout)
        for reader in readers:
            reader.join(GRACE)  # a grandchild that holds the pipe must not hold us
        check_cancelled()
        return CompletedProcess(list(command), code, "".join(out), "".join(err))
    finally:
        running.pop(process, None)
        if process.poll() is None:
            _end(process)
            for reader in readers:
                reader.join(GRACE)


@contextmanager
def parallel(at_once: int) -> Iterator[Callable[..., Future[Any]]]:
    """Gives a `submit` to threads of its own; whatever interrupts the block, Ctrl-C too, ends what they run.

    So does whatever cancels the thread that is in the block.
    """
    stop, outer = threading.Event(), _signals()

    def run(function: Callable[..., Any], *args: Any) -> Any:
        with cancellable(*outer, stop):
            return function(*args)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            yield lambda function, *args: pool.submit(run, function, *args)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            cancel(stop)
            raise


@contextmanager
def cancellable(*signals: threading.Event) -> Iterator[None]:
    """What this thread runs in the block ends when `cancel` is called for one of `signals` by another thread.

    Only the main thread gets Ctrl-C; this is how it reaches those that work for it.
    """
    before = _signals()
    bound.signals = (*before, *signals)
    try:
        yield
    finally:
        bound.signals = before


def _signals() -> tuple[threading.Event, ...]:
    """The signals that cancel this thread."""
    signals: tuple[threading.Event, ...] = getattr(bound, "signals", ())
    return signals


def cancel(signal: threading.Event) -> None:
    """Ends every program that runs in a `cancellable(signal)` block; the blocks raise KeyboardInterrupt."""
    signal.set()
    for process, signals in list(running.items()):
        if signal in signals:
            _end(process)


def check_cancelled() -> None:
    """Raises KeyboardInterrupt in a block that was cancelled."""
    if any(signal.is_set() for signal in _signals()):
        raise KeyboardInterrupt


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel kills the program when the thread that started it ends, however it ends."""
    # The signal comes when the *thread* that started the program ends; that thread waits for it in run_command.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(pipe: IO[str], into: list[str], say: Callable[[str], None] | None) -> None:
    with pipe:
        for line in pipe:
            into.append(line)
            if say is not None:
                say(line.rstrip())


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGKILL:
            return
