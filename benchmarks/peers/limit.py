"""The limit: one byte over a unix socket to another process and back, and two warm copies of the payload."""

from __future__ import annotations

import os
import socket
from typing import Any

import numpy as np
from _driver import serve


class Limit:
    def __init__(self) -> None:
        self.near, far = socket.socketpair()
        self.child = os.fork()
        if self.child == 0:
            self.near.close()
            while byte := far.recv(1):
                far.send(byte)
            os._exit(0)
        far.close()
        self.there: dict[Any, np.ndarray] = {}

    def copy(self, value: np.ndarray, key: Any) -> np.ndarray:
        buffer = self.there.get(key)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = self.there[key] = np.zeros_like(value)
        np.copyto(buffer, value)
        return buffer

    def echo(self, value: Any) -> Any:
        self.near.send(b"x")
        self.near.recv(1)
        if isinstance(value, dict):
            return {k: self.copy(self.copy(v, (k, 0)), (k, 1)) for k, v in value.items()}
        return None if value is None else self.copy(self.copy(value, 0), 1)

    def close(self) -> None:
        self.near.close()
        os.waitpid(self.child, 0)


serve(Limit)
