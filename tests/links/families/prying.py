"""A family for tests of the sandbox: it tries what a confined worker must not be able to do, and says what came of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np


def attempt(action, *arguments):
    try:
        return [True, str(action(*arguments))]
    except OSError as error:
        return [False, os.strerror(error.errno) if error.errno else str(error)]


class Prying:
    """`checkpoint` is read when it loads."""

    def __init__(self, checkpoint=None):
        self.words = Path(checkpoint, "words.txt").read_text() if checkpoint else ""

    def checkpoint_words(self):
        return self.words

    def read(self, path):
        return attempt(Path(path).read_text)

    def write(self, path):
        return attempt(Path(path).write_text, "something")

    def open_to_write(self, path):
        return attempt(lambda: os.close(os.open(path, os.O_WRONLY)))

    def tcp(self, port):
        return attempt(lambda: socket.create_connection(("127.0.0.1", port), 5).close())

    def unix(self, path):
        def connect():
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(path)

        return attempt(connect)

    def abstract(self, name):
        return self.unix("\0" + name)

    def signal(self, pid):
        return attempt(os.kill, pid, signal.SIGTERM)

    def place(self):
        return {
            "pid": os.getpid(),
            "uid": os.getuid(),
            "home": os.environ["HOME"],
            "variables": dict(os.environ),
        }

    def capabilities(self):
        lines = Path("/proc/self/status").read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}

    def sum(self, array):
        return np.asarray(array).sum()

    def ones(self, size):
        return np.ones(size, np.uint8)

    def flock(self, count):
        """Children in sessions of their own, who outlive whoever started them unless somebody sees to it."""
        for _ in range(count):
            subprocess.Popen(["sleep", "600"], start_new_session=True)

    def exit(self, code):
        os._exit(code)

    def crash(self, number):
        os.kill(os.getpid(), number)

    def nap(self, seconds):
        signal.sigtimedwait([], seconds)
