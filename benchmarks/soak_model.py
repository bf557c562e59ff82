"""What the soak loads: every effect is written down, so that one that happened twice is seen. Python 3.8, numpy 1 or 2."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from orchestrator.worker import cancelled


class Soaked:
    """Does what it is told, good or bad."""

    def __init__(self, effects, orphans):
        self.effects, self.orphans = effects, orphans

    def effect(self, ident, size, pause=0.0):
        """Writes the call down, then answers with an array that tells which call it belongs to."""
        self._write(self.effects, ident)
        end = time.monotonic() + pause
        while time.monotonic() < end and not cancelled():
            time.sleep(0.005)
        return np.full(size, ident % 251, np.uint8)

    def echo(self, value):
        return value

    def count(self, ident, to, die_at=-1):
        self._write(self.effects, ident)
        for number in range(to):
            if number == die_at:
                os._exit(3)
            yield np.full(1000, number % 251, np.uint8)

    def misbehave(self, ident, how):
        self._write(self.effects, ident)
        return getattr(self, f"_{how}")() or how

    def _write(self, path, text):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{text}\n".encode())
        os.close(fd)

    def _raise(self):
        raise ValueError("on purpose")

    def _sys_exit(self):
        sys.exit(3)

    def _exit_0(self):
        os._exit(0)

    def _exit_3(self):
        os._exit(3)

    def _segfault(self):
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)

    def _flood(self):
        for _ in range(40):
            os.write(1, b"\x80\xff no end" * 10_000)

    def _close_outputs(self):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)

    def _fork(self):
        child = os.fork()
        if child:
            os.waitpid(child, 0)

    def _grandchild(self):
        for own_session in (False, True):
            child = subprocess.Popen(["sleep", "100000"], start_new_session=own_session)
            self._write(self.orphans, child.pid)

    def _thread(self):
        threading.Thread(target=time.sleep, args=(100_000,)).start()

    def _ignore_sigterm(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _hold_the_lock(self):
        ctypes.PyDLL(None).sleep(1)

    def _stubborn(self):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                time.sleep(1)
            except KeyboardInterrupt:
                pass

    def _unsendable(self):
        return object()

    def _unknown_dtype(self):
        return np.array([("a", 1)], dtype=[("name", "O"), ("number", "i4")])
