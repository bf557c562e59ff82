"""A command on a terminal of its own: what it writes there, with every escape sequence."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path


def on_terminal(*arguments: str, columns: int = 80, stdout: Path | None = None) -> tuple[int, str]:
    """Runs `orchestrator` with a terminal as stderr, and as stdout unless that goes to a file: exit code, text."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with contextlib.ExitStack() as files:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=follower if stdout is None else files.enter_context(stdout.open("wb")),
            stderr=follower,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)},
        )
    os.close(follower)
    written = bytearray()
    with contextlib.suppress(OSError):  # EIO: the last process that had the terminal is gone
        while piece := os.read(leader, 65536):
            written += piece
    os.close(leader)
    return process.wait(timeout=60), written.decode().replace("\r\n", "\n")
