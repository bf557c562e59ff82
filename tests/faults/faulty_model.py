"""A family for the tests of faults: it does what a model should not, when it is told to."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any, Iterator

from orchestrator.worker import cancelled


class Faulty:
    """`fail` says what goes wrong at loading; `marker` names a file that says how often it was loaded.

    Its end is written to the file `closed`, and waits until there is a file `ends_with`.
    """

    def __init__(
        self, fail: str = "", marker: str = "", seconds: float = 0.0, closed: str = "", ends_with: str = ""
    ) -> None:
        self.closed = closed
        self.ends_with = ends_with
        loads = write(marker, "x") if marker else 1
        what, _, until = fail.partition(" until ")  # "die until 3": the third load works
        if until and loads >= int(until):
            what = ""
        after, _, later = what.rpartition(" later")  # "die later": the first load works
        if later == "" and after:
            what = after if loads > 1 else ""
        if what == "raise":
            raise RuntimeError("told to fail")
        if what == "die":
            print("told to die")
            os._exit(5)
        if what == "library":
            ctypes.CDLL("libfor_gpus_only.so.7")
        time.sleep(seconds)

    def echo(self, value: Any = None) -> Any:
        return value

    def pid(self) -> int:
        return os.getpid()

    def write(self, path: str, text: str) -> int:
        """Adds a line to a file: the side effect that must happen once. Returns the lines that are there now."""
        return write(path, text)

    def write_slowly(self, path: str, text: str, seconds: float) -> int:
        write(path, f"begun {text}")
        time.sleep(seconds)
        return write(path, text)

    def write_when(self, path: str, text: str, go: str) -> int:
        write(path, f"begun {text}")
        while not os.path.exists(go):
            time.sleep(0.01)
        return write(path, text)

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def patient(self, seconds: float) -> str:
        """A loop that looks whether it was cancelled."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if cancelled():
                return "cancelled"
            time.sleep(0.01)
        return "finished"

    def stubborn(self, path: str = "") -> None:
        if path:
            write(path, "begun")
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    def count(self, to: int, pause: float = 0.0) -> Iterator[int]:
        for number in range(to):
            time.sleep(pause)
            yield number

    def die(self, code: int = 3) -> None:
        os._exit(code)

    def answer_and_die(self, size: int) -> bytes:
        """Answers, and is gone as soon as the answer is out."""
        parent = os.getpid()
        if os.fork() == 0:
            time.sleep(0.02)
            os.kill(parent, signal.SIGKILL)
            os._exit(0)
        return b"x" * size

    def say(self, text: str, error: str = "", end: str = "\n") -> None:
        print(text, end=end, flush=True)
        if error:
            print(error, file=sys.stderr, flush=True)

    def flood(self, megabytes: int) -> int:
        chunk = b"\x80\xff partial line" * 4096
        for _ in range(megabytes * (1 << 20) // len(chunk)):
            os.write(1, chunk)
        return len(chunk)

    def child(self, own_session: bool = False) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=own_session).pid

    def zeros(self, size: int) -> Any:
        import numpy as np

        return np.zeros(size, np.uint8)

    def hold_the_lock(self, seconds: int) -> None:
        ctypes.PyDLL(None).sleep(int(seconds))

    def variables(self) -> list[str]:
        return sorted(os.environ)

    def close(self) -> None:
        while self.ends_with and not os.path.exists(self.ends_with):
            time.sleep(0.01)
        if self.closed:
            write(self.closed, "closed")


def write(path: str, text: str) -> int:
    with open(path, "a") as file:
        file.write(text + "\n")
    with open(path) as file:
        return len(file.readlines())
