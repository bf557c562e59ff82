"""What the tests of this room load: a plain class that does as it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any, Iterator


class Probe:
    def __init__(self, fail: str = "", marker: str = "", trust_remote_code: bool = False) -> None:
        self.report = {"trusted": trust_remote_code}
        if fail == "always" or (fail == "second time" and os.path.exists(marker)):
            raise RuntimeError("told to fail")
        if marker:
            with open(marker, "a") as file:
                file.write("x")

    def echo(self, value: Any) -> Any:
        return value

    def numpy_version(self) -> str:
        import numpy as np

        return np.__version__

    def pid(self) -> int:
        return os.getpid()

    def child(self) -> int:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def pid_when(self, path: str) -> int:
        """The process id, as soon as there is a file."""
        while not os.path.exists(path):
            time.sleep(0.01)
        return os.getpid()

    def ignore_everything(self, begun: str) -> None:
        with open(begun, "w"):
            pass
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    def fail(self, message: str) -> None:
        raise ValueError(message)

    def die(self, code: int = 3) -> None:
        os._exit(code)

    def die_once(self, marker: str) -> str:
        if not os.path.exists(marker):
            with open(marker, "w"):
                os._exit(4)
        return "lived"

    def stop_itself(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    def words(self, text: str) -> list[str]:
        return text.split()

    def words_stream(self, text: str) -> Iterator[str]:
        yield from text.split()
