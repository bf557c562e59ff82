"""What two processes can reach: a byte over a unix socket each way, and one warm copy by each in shared memory."""

from __future__ import annotations

import mmap
import os
import socket
from typing import Any

import numpy as np
from _driver import SIZES, serve


def shared() -> np.ndarray:
    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, max(SIZES.values()))
    memory = mmap.mmap(fd, max(SIZES.values()))
    memory.madvise(mmap.MADV_HUGEPAGE)  # heard where `shmem_enabled` is `advise`
    pages = np.frombuffer(memory, np.uint8)
    pages[::4096] = 0
    return pages


class TwoProcesses:
    def __init__(self) -> None:
        self.near, far = socket.socketpair()
        self.there, self.back = shared(), shared()
        self.child = os.fork()
        if self.child == 0:
            self.near.close()
            while order := far.recv(8):
                size = int.from_bytes(order, "little")
                np.copyto(self.back[:size], self.there[:size])
                far.send(b"x")
            os._exit(0)
        far.close()

    def echo(self, value: Any) -> Any:
        if isinstance(value, dict):
            raise TypeError("one array at a time: this row has no codec")
        size = 0 if value is None else value.nbytes
        if size:
            np.copyto(self.there[:size], value.reshape(-1).view(np.uint8))
        self.near.send(size.to_bytes(8, "little"))
        self.near.recv(1)
        return None if value is None else self.back[:size].view(value.dtype).reshape(value.shape)

    def close(self) -> None:
        self.near.close()
        os.waitpid(self.child, 0)


serve(TwoProcesses)
