"""Raw pyzmq over ipc: DEALER to DEALER in another environment, the payload's bytes as one frame, no codec."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zmq


class RawZmq:
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        address = f"ipc://{self.folder.name}/s"
        self.socket = zmq.Context().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.bind(address)
        self.child = subprocess.Popen([sys.argv[1], str(Path(__file__)), "echo", address])

    def echo(self, value: Any) -> Any:
        if value is None:
            self.socket.send(b"")
            self.socket.recv()
            return None
        self.socket.send(memoryview(value).cast("B"), copy=False)
        frame = self.socket.recv(copy=False)
        return np.frombuffer(frame.buffer, value.dtype).reshape(value.shape)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        self.folder.cleanup()


def echo_for_ever(address: str) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(address)
    while True:
        frame = socket.recv(copy=False)
        if len(frame):
            socket.send(frame.buffer, copy=False)
        else:
            socket.send(b"")


if sys.argv[1] == "echo":
    echo_for_ever(sys.argv[2])
else:
    from _driver import serve

    serve(RawZmq)
