"""A value as bytes on disk, written and read without ever being in this process's own memory as a whole.

The layout: eight bytes with the length of a JSON text, the text, then each array at a multiple of 64 bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from orchestrator.worker.forwarding import shared
from orchestrator.workflow.pieces import PIECE, pieces
from orchestrator.workflow.values import pack, unpack

__all__ = ["Stored", "read_bytes", "read_file"]

ALIGN = 64
_LENGTH = struct.Struct("<Q")


class Stored:
    """One value, ready to be written. `size` in bytes.

    Raises:
        Unstorable: the value's type has no exact form here.
    """

    def __init__(self, value: Any) -> None:
        self._arrays: list[np.ndarray[Any, Any]] = []
        tree = pack(value, self._arrays)
        rows, offset = [], 0
        for array in self._arrays:
            order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
            rows.append([array.dtype.str, list(array.shape), order, offset])
            offset += _aligned(array.nbytes)
        text = json.dumps([tree, rows], separators=(",", ":")).encode()
        head = _LENGTH.pack(len(text)) + text
        self._head = head.ljust(_aligned(len(head)), b" ") if rows else head
        self.size = len(self._head) + offset

    def write(self, stream: BinaryIO) -> str:
        """Writes it; gives its checksum."""
        checksum = _hash()
        for part in self._parts():
            checksum.update(part)
            stream.write(part)
        return str(checksum.hexdigest())

    def _parts(self) -> Iterator[bytes | memoryview]:
        yield self._head
        for array in self._arrays:
            yield from pieces(array if array.flags.c_contiguous or not array.flags.f_contiguous else array.T)
            yield bytes(_aligned(array.nbytes) - array.nbytes)


def read_bytes(data: bytes, checksum: str) -> Any:
    """The value in `data`.

    Raises:
        ValueError: it is not what was written.
    """
    if _hash(data).hexdigest() != checksum:
        raise ValueError("it is damaged")
    return _value(np.frombuffer(bytearray(data), np.uint8))


def read_file(path: Path, checksum: str) -> Any:
    """The value in a file, its arrays in shared memory: they go on to a worker without another copy.

    Raises:
        OSError: it cannot be read. ValueError: it is not what was written.
    """
    found = _hash()

    def parts() -> Iterator[bytes]:
        while part := stream.read(PIECE):
            found.update(part)
            yield part

    with path.open("rb") as stream:
        try:
            data = shared(os.fstat(stream.fileno()).st_size, parts())
        except OSError:  # no memory of that kind
            stream.seek(0)
            found = _hash()
            data = np.frombuffer(bytearray(b"".join(parts())), np.uint8)
    if found.hexdigest() != checksum:
        raise ValueError("it is damaged")
    return _value(data)


def _value(data: np.ndarray[Any, Any]) -> Any:
    (length,) = _LENGTH.unpack(data[: _LENGTH.size].tobytes())
    end = _LENGTH.size + length
    tree, rows = json.loads(data[_LENGTH.size : end].tobytes())
    arrays = [
        np.ndarray(shape, spelling, data, _aligned(end) + offset, order=order)
        if math.prod(shape)
        else np.empty(shape, spelling)
        for spelling, shape, order, offset in rows
    ]
    return unpack(tree, arrays)


def _hash(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=16)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
