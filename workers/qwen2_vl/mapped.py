"""Pages of weight files that were read and converted: given back while the load goes on.

The library maps safetensors files and copies out of the map where the dtype changes. What it has read stays resident
until the file is closed, which is a second copy of the weights. Dropping clean pages of a file costs nothing: they are
read again from the page cache if somebody looks.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Iterator, Tuple

__all__ = ["PageReturn"]

DONTNEED = 4  # MADV_DONTNEED, linux/mman.h
PAUSE = 0.01  # seconds between two passes


class PageReturn:
    """Gives back the resident pages of the `.safetensors` files in `folder`; call it as often as you like."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder)
        self.last = 0.0
        try:
            self.madvise = ctypes.CDLL(None, use_errno=True).madvise
            self.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        except (OSError, AttributeError):  # no libc that has it: memory is only less tidy
            self.madvise = None

    def __call__(self, *, now: bool = False) -> None:
        if self.madvise is None or (not now and time.monotonic() - self.last < PAUSE):
            return
        for start, end in self._maps():
            self.madvise(start, end - start, DONTNEED)
        self.last = time.monotonic()

    def _maps(self) -> Iterator[Tuple[int, int]]:
        """Address ranges of the files, as /proc/self/maps tells (proc(5)); writable ones may hold changes and stay."""
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.rstrip("\n").split(None, 5)
                if len(fields) < 6 or not fields[5].endswith(".safetensors"):
                    continue
                if os.path.dirname(os.path.realpath(fields[5])) == self.folder:
                    first, _, last = fields[0].partition("-")
                    yield int(first, 16), int(last, 16)
