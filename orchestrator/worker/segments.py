"""Shared memory for the arrays of large messages: pooled, nameless, leased.

Each side owns a pool of memfd segments that it writes into. A segment's descriptor goes to the other side once, over
a unix socket; after that a message only says `[segment, serial, bytes]`. The receiver gets a view, and with it the
lease: when the last array that looks into the segment is gone, the pair `(segment, serial)` goes back with the next
message and the segment is free again. There are no names, so nothing is left behind by a crash; a view stays good
after the other side died, since the mapping holds the pages. Segments are sealed against shrinking, so a peer cannot
make a reader fault.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, Optional, Tuple

from orchestrator.worker.limits import FORWARD, DecodingError
from orchestrator.worker.nameless import available, is_sealed, readable, sealed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Lease", "SegmentPool", "SegmentViews", "available", "pair"]

KEEP = 1 << 30
"""Bytes of free segments that a pool keeps warm for the next message."""
SEGMENTS = 64
"""Segments of one pool: each holds a file descriptor on both sides."""
IDLE = 30.0
"""Seconds after which a free segment goes."""

_SMALLEST = 128 << 10
_FINE = 64 << 20  # from here on classes are eighths of a power of two, so that 5 GB do not take 8
_INTRODUCTION = struct.Struct("<QQ")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PAGES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def pair() -> Tuple[socket.socket, socket.socket]:
    """The two ends over which segments are introduced."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Segment:
    """One piece of shared memory, mapped."""

    __slots__ = ("base", "capacity", "descriptor", "ident", "memory", "serial", "used")

    def __init__(self, ident: int, capacity: int, memory: mmap.mmap, descriptor: int = -1) -> None:
        import numpy as np

        self.descriptor = descriptor
        """Kept open, for reading, so that the segment can be lent on; else -1."""
        self.ident = ident
        self.capacity = capacity
        self.serial = 0
        self.used = 0.0
        self.memory = memory
        self.base: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8)

    def forget_pages(self, start: int, stop: int) -> None:
        """Unmaps whole pages until they are read again; their bytes stay in the segment."""
        start, stop = -(-start // _PAGE) * _PAGE, stop // _PAGE * _PAGE
        if stop > start and self.descriptor >= 0:
            self.memory.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class SegmentPool:
    """The segments that this side writes. Any thread may use it."""

    def __init__(self, peer: Optional[socket.socket], keep: int = KEEP, limit: int = _PAGES // 2) -> None:
        self._peer = peer if available() else None
        self._keep = keep
        self._limit = limit
        self._lock = threading.RLock()  # a stream that is garbage sends a message wherever it is collected
        self._free: Dict[int, List[Segment]] = {}
        self._lent: Dict[int, Segment] = {}
        self._lent_on: Dict[int, Tuple[int, Any]] = {}
        self._dropped: List[int] = []
        self._idents = 0
        self._serials = 0
        self._bytes = 0
        self._count = 0

    @property
    def bytes(self) -> int:
        """Bytes of all segments, lent and free."""
        return self._bytes

    @property
    def lent(self) -> int:
        """Segments that the other side still looks into, those of others included."""
        return len(self._lent) + len(self._lent_on)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to trim."""
        return self._count == len(self._lent)

    @property
    def dropped(self) -> bool:
        """Whether the other side has to be told of segments that are gone."""
        return bool(self._dropped)

    def lend(self, nbytes: int) -> Optional[Segment]:
        """A segment of at least `nbytes` to write into, or None when a cap is reached or memory is short."""
        if self._peer is None:
            return None
        capacity = _capacity(nbytes)
        with self._lock:
            ready = self._free.get(capacity)
            segment = ready.pop() if ready else self._make(capacity)
            if segment is not None:
                self._serials += 1
                segment.serial = self._serials
                self._lent[segment.ident] = segment
        return segment

    def lend_on(self, segment: Segment, hold: Any) -> Optional[Tuple[int, int]]:
        """Lends a segment that another side wrote: its `(segment, serial)` here. `hold` keeps it as it is, and is let
        go when it comes back. None where it cannot be lent on."""
        with self._lock:
            if segment.descriptor < 0 or self._peer is None or len(self._lent_on) >= SEGMENTS:
                return None
            self._idents += 1
            self._serials += 1
            try:
                self._send(self._idents, segment.capacity, segment.descriptor)
            except OSError:  # nobody at the other end, or too many descriptors on their way
                return None
            self._lent_on[self._idents] = self._serials, hold
            return self._idents, self._serials

    def take_back(self, leases: Any) -> None:
        """The other side returned these `[segment, serial]`; what was not lent like this is ignored."""
        let_go = []  # outside the lock: a lease of another link may end with it
        with self._lock:
            for ident, serial in leases:
                loan = self._lent_on.get(ident)
                if loan is not None and loan[0] == serial:
                    let_go.append(self._lent_on.pop(ident))
                    self._dropped.append(ident)
                    continue
                segment = self._lent.get(ident)
                if segment is not None and segment.serial == serial:
                    del self._lent[ident]
                    segment.used = time.monotonic()
                    self._free.setdefault(segment.capacity, []).append(segment)
            if self._bytes > self._keep:
                self._shrink(self._keep)

    def trim(self) -> None:
        """Frees the segments that nobody used for a while."""
        with self._lock:
            self._shrink(self._keep, before=time.monotonic() - IDLE)

    def take_dropped(self) -> List[int]:
        """Segments that are gone since the last time; the other side must unmap them."""
        if not self._dropped:
            return []
        with self._lock:
            dropped, self._dropped = self._dropped, []
        return dropped

    def close(self) -> None:
        """Frees all; views on the other side stay good."""
        with self._lock:
            let_go, self._lent_on = self._lent_on, {}
            self._free.clear()
            self._lent.clear()
            self._bytes = self._count = 0
            if self._peer is not None:
                self._peer.close()
                self._peer = None
        let_go.clear()  # outside the lock: a lease of another link may end with it

    def _make(self, capacity: int) -> Optional[Segment]:
        if self._count >= SEGMENTS or self._bytes + capacity > self._limit:
            self._shrink(0)
            if self._count >= SEGMENTS or self._bytes + capacity > self._limit:
                return None
        self._idents += 1
        try:
            segment = self._introduce(self._idents, capacity)
        except (OSError, ValueError, MemoryError):  # no memory, no descriptors, or nobody at the other end
            return None
        self._count += 1
        self._bytes += capacity
        return segment

    def _introduce(self, ident: int, capacity: int) -> Segment:
        fd = sealed(capacity)
        try:
            segment = Segment(ident, capacity, mmap.mmap(fd, capacity))
            self._send(ident, capacity, fd)
        finally:
            os.close(fd)
        return segment

    def _send(self, ident: int, capacity: int, fd: int) -> None:
        assert self._peer is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._peer.sendmsg([_INTRODUCTION.pack(ident, capacity)], rights, socket.MSG_DONTWAIT)

    def _shrink(self, keep: int, before: float = float("inf")) -> None:
        """Drops free segments, least recently used first, until `keep` bytes are free and none is older."""
        free = sorted((s for group in self._free.values() for s in group), key=lambda s: s.used)
        spare = sum(s.capacity for s in free)
        for segment in free:
            if spare <= keep and (before == float("inf") or segment.used > before):
                break
            self._free[segment.capacity].remove(segment)
            self._dropped.append(segment.ident)
            self._count -= 1
            self._bytes -= segment.capacity
            spare -= segment.capacity


class Lease(weakref.ref):  # type: ignore[type-arg]
    """Watches the array that all views of one message go through. `fixed`: nobody here will change it."""

    __slots__ = ("fixed", "segment", "serial", "source", "views")
    fixed: bool
    segment: int
    serial: int
    source: Segment
    views: SegmentViews


class SegmentViews:
    """The segments that the other side writes, as seen from here. One thread at a time receives.

    `lends_on`: descriptors of large ones are kept, so that they can be lent on to others.
    """

    def __init__(
        self,
        peer: Optional[socket.socket],
        on_return: Callable[[], None] = lambda: None,
        lends_on: bool = False,
    ) -> None:
        self._peer = peer
        self._lends_on = lends_on
        self._on_return = on_return
        self._known: Dict[int, Segment] = {}
        self._leases: Dict[int, Lease] = {}
        self._returned: Deque[Tuple[int, int]] = deque()

    @property
    def held(self) -> int:
        """Leases that somebody here still holds."""
        return len(self._leases)

    @property
    def known(self) -> int:
        """Segments of the other side that are mapped here."""
        return len(self._known)

    @property
    def returned(self) -> bool:
        """Whether leases wait to be sent back."""
        return bool(self._returned)

    def lease(self, ident: int, serial: int, nbytes: int) -> np.ndarray[Any, Any]:
        """A writable view of a message's bytes; the lease goes back when the last view of it is gone.

        Raises:
            DecodingError: no such segment, too short, or a message that was here before.
        """
        import numpy as np

        segment = self._known.get(ident) or self._meet(ident)
        if serial <= segment.serial or ident in self._leases:
            raise DecodingError("a message with the lease of an earlier one")
        if not 0 < nbytes <= segment.capacity:
            raise DecodingError("a message that is longer than its segment")
        segment.serial = serial
        # From the mapping, not from another array: numpy makes a view's base the last array of the chain, and the
        # lease must hang on the array that all views of this message, and of no other, go back to.
        base: np.ndarray[Any, Any] = np.frombuffer(segment.memory, np.uint8, nbytes)
        lease = Lease(base, _expired)
        lease.segment, lease.serial, lease.views = ident, serial, self
        lease.source, lease.fixed = segment, False
        self._leases[ident] = lease
        return base

    def take_returned(self) -> List[Tuple[int, int]]:
        """Leases to send back."""
        returned = []
        while self._returned:
            returned.append(self._returned.popleft())
        return returned

    def forget(self, idents: List[int]) -> None:
        """The other side dropped these segments."""
        for ident in idents:
            self._known.pop(ident, None)

    def close(self) -> None:
        """Unmaps what nobody looks into; the rest goes with its last view."""
        self._on_return = lambda: None
        self._known.clear()
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def expire(self, lease: Lease) -> None:
        """Runs wherever the last view dies, garbage collection included: takes no lock."""
        self._leases.pop(lease.segment, None)
        self._returned.append((lease.segment, lease.serial))
        self._on_return()

    def _meet(self, wanted: int) -> Segment:
        while wanted not in self._known:
            if self._peer is None:
                raise DecodingError("a message in shared memory, over a link that has none")
            try:
                data, rights, _, _ = self._peer.recvmsg(
                    _INTRODUCTION.size, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                raise DecodingError("a message in a segment that was never introduced") from None
            fds = array.array("i")
            for level, kind, payload in rights:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
            try:
                self._accept(data, list(fds))
            finally:
                for fd in fds:
                    os.close(fd)
        return self._known[wanted]

    def _accept(self, data: bytes, fds: List[int]) -> None:
        if len(data) != _INTRODUCTION.size or len(fds) != 1 or len(self._known) > 4 * SEGMENTS:
            raise DecodingError("a wrong introduction of a segment")
        ident, capacity = _INTRODUCTION.unpack(data)
        try:
            if not is_sealed(fds[0]) or os.fstat(fds[0]).st_size != capacity or ident in self._known:
                raise DecodingError("a segment that is not what its introduction says")
            self._known[ident] = self._map(ident, capacity, fds[0])
        except (OSError, ValueError) as error:
            raise DecodingError(f"a segment that cannot be mapped: {error}") from None

    def _map(self, ident: int, capacity: int, fd: int) -> Segment:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & 3 == os.O_RDONLY:  # another worker's: ours are private copies
            return Segment(ident, capacity, mmap.mmap(fd, capacity, access=mmap.ACCESS_COPY))
        memory = mmap.mmap(fd, capacity)
        if not self._lends_on or capacity < FORWARD:
            return Segment(ident, capacity, memory)
        try:
            return Segment(ident, capacity, memory, readable(fd))
        except OSError:
            return Segment(ident, capacity, memory)


def _expired(lease: Lease) -> None:
    lease.views.expire(lease)


def _capacity(nbytes: int) -> int:
    whole = 1 << max(nbytes - 1, 1).bit_length()
    if whole <= _FINE:
        return max(_SMALLEST, whole)
    step = whole >> 4  # an eighth of the power of two below
    return -(-nbytes // step) * step
