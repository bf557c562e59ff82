"""Arrays that go from one worker to another as a reference: the segment that the one wrote, lent on to the other.

Who sits between two workers holds leases on what the first one sent. A value that it promises not to change needs no
copy on its way to the second: the segment's descriptor goes there, to be mapped privately and for reading, and the
lease goes back to the first worker only after the second one has returned its own. What the second one writes into
such an array is its own affair (copy on write); nobody else sees it.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Tuple

from orchestrator.worker.arrays import read
from orchestrator.worker.limits import FORWARD, MAX_ROWS, DecodingError
from orchestrator.worker.nameless import available, readable, sealed
from orchestrator.worker.segments import Lease, Segment

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.worker.segments import SegmentPool, SegmentViews
    from orchestrator.worker.wire import Encoded

__all__ = ["Forwarded", "forget_pages", "guests", "lend_on", "promise", "shared"]


_own: Dict[int, Lease] = {}
"""Leases on what `shared` made; each ends with its array."""


def promise(array: Any) -> None:
    """Says of an array (and of all others of its message) that nobody here will ever change it.

    From now on it travels as a reference where it can. An array of this side's own memory is copied as ever.
    """
    lease = _lease(array)
    if lease is not None:
        lease.fixed = True


def forget_pages(array: Any) -> None:
    """Takes the pages of a shared array out of this process's memory; they are mapped again when they are read.

    For whoever reads a large array once, piece by piece: the pages are the segment's, not ours to keep. Other arrays
    are left alone.
    """
    lease = _lease(array)
    base = None if lease is None else lease()
    if lease is not None and base is not None and (array.flags.c_contiguous or array.flags.f_contiguous):
        start = _address(array) - _address(base)
        lease.source.forget_pages(start, start + array.nbytes)


def shared(nbytes: int, pieces: Iterable[Any]) -> np.ndarray[Any, Any]:
    """Pieces of bytes as a read-only array in shared memory of its own, which travels as a reference too.

    They are never in this process's own memory all at once.

    Raises:
        OSError: there is no memory for it, or no such memory on this system.
    """
    import numpy as np

    if not available():
        raise OSError("no shared memory")
    fd = sealed(nbytes)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(fd, rest) :]
        memory = mmap.mmap(fd, nbytes, access=mmap.ACCESS_READ)
        segment = Segment(0, nbytes, memory, readable(fd))
    finally:
        os.close(fd)
    base: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8, nbytes)
    key = id(base)
    lease = _own[key] = Lease(base, lambda _: _own.pop(key, None))
    lease.source, lease.fixed = segment, True
    return base


class Forwarded:
    """What of a message is lent on: `loans`, one for each segment, and `places`, one for each array."""

    __slots__ = ("loans", "places")

    def __init__(self) -> None:
        self.loans: List[Tuple[int, int, int]] = []
        """`(segment, serial, bytes)`, as the receiver is told."""
        self.places: List[List[Any]] = []
        """`[number of the array in the message, loan, offset, dtype, shape, order]`."""

    def fields(self, own: Any) -> Dict[str, Any]:
        """The message's `place`: where its `own` arrays lie, and what is lent on."""
        return {"own": own, "loans": self.loans, "guests": self.places}


def lend_on(encoded: Encoded, pool: SegmentPool) -> Optional[Forwarded]:
    """Lends on what can be, and leaves the rest in `encoded`. None where nothing can be."""
    found = Forwarded()
    loans: Dict[int, int] = {}
    number = 0
    taken: List[int] = []
    for _, _, count, _ in encoded.table or ():
        if encoded.arrays[number].nbytes >= FORWARD:
            run = range(number, number + count)
            taken += [n for n in run if _lend(n, encoded.arrays[n], pool, found, loans)]
        number += count
    if not taken:
        return None
    encoded.leave_out(taken)
    return found


def guests(place: Dict[str, Any], views: SegmentViews) -> Dict[int, Any]:
    """The arrays that came by reference, by their number in the message.

    Raises:
        DecodingError: they are not what the message says.
    """
    if set(place) != {"own", "loans", "guests"}:
        raise DecodingError("a message whose arrays lie in no known place")
    loans, places = place["loans"], place["guests"]
    if not all(_are(loan, int, int, int) for loan in _rows(loans)):
        raise DecodingError("a message with a loan that is not three numbers")
    buffers = [views.lease(*loan) for loan in loans]
    arrays = {}
    for row in _rows(places):
        if not _are(row, int, int, int, str, list, int) or not 0 <= row[1] < len(buffers) or row[2] < 0:
            raise DecodingError("an array by reference that cannot be understood")
        number, loan, offset, spelling, shape, order = row
        arrays[number] = next(iter(read([[spelling, shape, 1, order]], buffers[loan][offset:])))
    return arrays


def _lend(number: int, array: Any, pool: SegmentPool, found: Forwarded, loans: Dict[int, int]) -> bool:
    lease = _lease(array)
    base = None if lease is None or not lease.fixed else lease()
    if lease is None or base is None:
        return False
    flags = array.flags
    if not (flags.c_contiguous or flags.f_contiguous):
        return False
    if id(base) not in loans:
        loan = pool.lend_on(lease.source, base)
        if loan is None:
            return False
        loans[id(base)] = len(found.loans)
        found.loans.append((*loan, base.nbytes))
    offset = _address(array) - _address(base)
    order = int(not flags.c_contiguous)
    found.places.append([number, loans[id(base)], offset, array.dtype.str, list(array.shape), order])
    return True


def _lease(array: Any) -> Optional[Lease]:
    """The lease that an array hangs on."""
    base = array
    for _ in range(4):  # numpy makes a view's base the last array of the chain, but for subclasses
        found = next((ref for ref in weakref.getweakrefs(base) if type(ref) is Lease), None)
        if found is not None:
            return found
        base = getattr(base, "base", None)
        if type(base) is not type(array):
            return None
    return None


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def _rows(value: Any) -> List[Any]:
    if type(value) is not list or len(value) > MAX_ROWS:
        raise DecodingError("the arrays by reference are not a list, or too many")
    return value


def _are(row: Any, *kinds: type) -> bool:
    return type(row) is list and [type(field) for field in row] == list(kinds)
