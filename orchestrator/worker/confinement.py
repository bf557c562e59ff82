"""The way into a sandbox. Between the keeper, which stays outside, and the worker stand bubblewrap and an init.

    keeper -> bwrap -> init, process 1 inside -> worker

bubblewrap would tell exit codes and signals as one number, and knows no process inside but its own child. So the init
tells the keeper the worker's wait status as it was, through the *door*, a socket pair. The worker sends through it
first: the kernel writes the sender's process id into the message, as it is outside. When the init ends, the kernel
ends everything inside.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from typing import List, NoReturn, Optional

__all__ = ["Door", "enter", "step_inside"]

_CREDENTIALS = struct.Struct("iII")
_OUTSIDE = ("confine=", "lifeline=", "log=")
_NOT_EXECUTABLE = 126


class Door:
    """The keeper's side: who the worker is, and how it ended."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_PASSCRED", 16), 1)
        self._ours.setblocking(False)

    def fileno(self) -> int:
        """What to wait on: the worker's birth makes it readable."""
        return self._ours.fileno()

    def worker(self) -> int:
        """The worker's process id as it is outside; 0 if there is none (yet)."""
        try:
            word, extra, _, _ = self._ours.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError:
            return 0
        for level, kind, data in extra:
            if (
                word == b"worker"
                and level == socket.SOL_SOCKET
                and kind == getattr(socket, "SCM_CREDENTIALS", 2)
            ):
                return int(_CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0])
        return 0

    def status(self, told: int) -> int:
        """The worker's wait status. `told` is bubblewrap's own, which counts when the init could say nothing."""
        try:
            word = self._ours.recv(64)
        except OSError:
            word = b""
        if word.isdigit():
            return int(word)
        code = os.WEXITSTATUS(told) if os.WIFEXITED(told) else 0
        return code - 128 if 128 < code < 193 else told  # a wait status that is a signal is its number


def enter(confine: str, door: socket.socket) -> NoReturn:
    """Becomes `confine`, a JSON list with bubblewrap and its options, and inside of it this program once more."""
    command: List[str] = json.loads(confine)
    arguments = [word for word in sys.argv if not word.startswith(_OUTSIDE)]
    door.set_inheritable(True)
    try:
        os.execv(  # noqa: S606 - there is no shell, and none is wanted
            command[0], [*command, sys.executable, "-I", "-u", *arguments, f"door={door.fileno()}"]
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(_NOT_EXECUTABLE)


def step_inside(fd: int, segments: int) -> int:
    """Forks. Returns in the worker, with the init's process id; in the init it never returns."""
    door = socket.socket(fileno=fd)
    init = os.getpid()
    worker = os.fork()
    if worker:
        if segments >= 0:
            os.close(segments)
        _be_init(worker, door)
    os.setsid()
    door.send(b"worker")
    door.close()
    if segments >= 0:
        os.set_inheritable(segments, False)
    return init


def _be_init(worker: int, door: socket.socket) -> NoReturn:
    """Buries the dead until the worker is among them. All else inside ends with this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status: Optional[int] = None
    while status is None:
        pid, ended = os.waitpid(-1, 0)
        if pid == worker:
            status = ended
    door.send(b"%d" % status)
    os._exit(0)
