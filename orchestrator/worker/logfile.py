"""A worker's log: what its processes print, each line with its time and who spoke; rotated, secrets crossed out.

    2026-11-21T07:12:09.123Z model   | Loading checkpoint shards: 2/2

`model` is whatever the worker's processes write to stdout and stderr, `runtime` what the coordinator says of the
worker, `build` (in files of their own) the making of an environment.
"""

from __future__ import annotations

import os
import time
from typing import List, Mapping, Tuple

from orchestrator.worker.masking import Mask

__all__ = ["LOG_BYTES", "LogFile", "label"]

LOG_BYTES = 8 << 20
"""The log is renamed to `.1` at this size, so at most twice as much stays."""
_CHUNK = 64 << 10
_HELD = 8 << 10  # bytes of a line without an end that are held back for the rest of it
_PATIENCE = 500  # milliseconds for which they are


def label(source: str) -> bytes:
    """What stands before a line."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{stamp}.{int(now % 1 * 1000):03d}Z {source:<7} | ".encode("ascii")


class LogFile:
    """The keeper's end: reads a pipe, writes the file. A full disk loses lines, and never blocks or raises."""

    def __init__(self, path: str, environ: Mapping[str, str]) -> None:
        self.path = path
        self.fd = -1
        self.size = 0
        self._mask = Mask(environ)
        self._held = b""
        self._inside = False  # the last line written has no end yet
        self._open()

    @property
    def patience(self) -> int:
        """Milliseconds until `flush` is due; negative for never."""
        return _PATIENCE if self._held else -1

    def pump(self, source: int) -> bool:
        """Moves what there is from `source` to the file; False at its end."""
        try:
            data = os.read(source, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self._take(data)
        return bool(data)

    def flush(self) -> List[Tuple[int, int]]:
        """Writes what is held back: a line without an end must be seen too. Nothing is ready then, so it returns []."""
        held, self._held = self._held, b""
        self._write(held)
        return []

    def close(self) -> None:
        """Writes what is held back, and ends the line."""
        self.flush()
        if self._inside:
            self._write(b"\n")

    def _take(self, data: bytes) -> None:
        data = self._held + data
        end = data.rfind(b"\n") + 1
        if len(data) - end > _HELD:
            end = len(data)
        self._held = data[end:]
        self._write(data[:end])

    def _write(self, data: bytes) -> None:
        if not data:
            return
        prefix = label("model")
        lines = self._mask.data(data[:-1]).replace(b"\n", b"\n" + prefix) + data[-1:]
        if not self._inside:
            lines = prefix + lines
        self._inside = not data.endswith(b"\n")
        try:
            if self.size > LOG_BYTES:
                self._rotate()
            while lines:
                written = os.write(self.fd, lines)
                self.size += written
                lines = lines[written:]
        except OSError:
            pass  # the disk is full, or the folder gone: the worker must go on

    def _rotate(self) -> None:
        os.replace(self.path, self.path + ".1")
        os.close(self.fd)
        self._open()

    def _open(self) -> None:
        try:
            self.fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.size = os.fstat(self.fd).st_size
            os.dup2(self.fd, 1)
            os.dup2(self.fd, 2)
        except OSError:
            self.fd = -1
