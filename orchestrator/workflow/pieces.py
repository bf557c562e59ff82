"""A large array's bytes, piece by piece: hashing or writing it needs no second copy of it, nor its pages for long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from orchestrator.worker.forwarding import forget_pages

__all__ = ["pieces", "write_npy"]

PIECE = 8 << 20  # bytes


def pieces(array: np.ndarray[Any, Any], piece: int = PIECE) -> Iterator[memoryview]:
    """The bytes of an array in C order. Pages that it shares with a worker are let go once they were read."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.nbytes, piece):
            part = flat[start : start + piece]
            yield part.data
            forget_pages(part)
        return
    rows = max(1, piece // max(1, array.nbytes // len(array)))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data
    forget_pages(array)


def write_npy(stream: BinaryIO | Any, array: np.ndarray[Any, Any]) -> None:
    """Writes an array as `numpy.save` does."""
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, header)
    for part in pieces(array.T if header["fortran_order"] else array):
        stream.write(part)
