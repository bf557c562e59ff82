"""Messages: their kinds, how one is laid out in frames, and the ledger of shared memory that travels with them.

Frame 1 is msgpack `[kind, ident, body, table, place, ledger]`. `body` and `table` are the codec's. `place` says where
the arrays lie: 0 in frame 2, `[segment, serial, bytes]` in shared memory, or a map of `own` (one of these, or nil)
with `loans` and `guests`, arrays that another worker wrote (see `forwarding`). `ledger` is `[leases returned, segments
dropped]` or nil. Every message can be received, routed and thrown away without its body being decoded.
"""

from __future__ import annotations

import threading
from typing import Any, Dict, List, NamedTuple, Optional

import msgpack

from orchestrator.worker.forwarding import Forwarded, guests, lend_on
from orchestrator.worker.limits import FORWARD, INLINE, MAX_FRAME, DecodingError, EncodingError
from orchestrator.worker.segments import SegmentPool, SegmentViews
from orchestrator.worker.wire import Encoded, decode, encode

__all__ = ["PROTOCOL", "Message", "Post"]

PROTOCOL = 1

# Both ways. A worker begins with HELLO [facts]; the client answers with its own.
HELLO, RELEASE = 1, 2
# To the worker.
LOAD, CALL, STREAM, CANCEL, CREDIT, PING, UNLOAD, BYE = 16, 17, 18, 19, 20, 21, 22, 23
IF_WAITING = "if waiting"
"""The value of a CANCEL that is not meant for a call that has begun."""
# From the worker.
RESULT, ITEM, END, ERROR, PROGRESS, PONG, NOTE = 32, 33, 34, 35, 36, 37, 38

_KINDS = frozenset(
    (
        HELLO,
        RELEASE,
        LOAD,
        CALL,
        STREAM,
        CANCEL,
        CREDIT,
        PING,
        UNLOAD,
        BYE,
        RESULT,
        ITEM,
        END,
        ERROR,
        PROGRESS,
        PONG,
        NOTE,
    )
)
_TYPES = [int, int, bytes]
_EMPTY = msgpack.packb(None)


class Message(NamedTuple):
    """A message whose body is not decoded yet. `buffer` keeps its arrays (and their lease)."""

    kind: int
    ident: int
    body: bytes
    table: Optional[List[Any]]
    buffer: Any
    guests: Optional[Dict[int, Any]] = None

    def value(self) -> Any:
        """Decodes the body.

        Raises:
            DecodingError: it cannot be understood.
        """
        return decode(self.body, self.table, self.buffer, self.guests)


class Draft(NamedTuple):
    """A value that is encoded, with its arrays copied to where they travel."""

    body: bytes
    table: Optional[List[Any]]
    place: Any
    frame: Any


class Post:
    """Puts values into frames and takes messages out of frames, for one end of a link."""

    def __init__(self, pool: SegmentPool, views: SegmentViews) -> None:
        self.pool = pool
        self.views = views
        self._local = threading.local()

    def compose(self, kind: int, ident: int, value: Any, names: Any = ("value",)) -> List[Any]:
        """The frames of one message.

        Raises:
            EncodingError: the wire does not carry the value, or it is too large.
        """
        return self.seal(kind, ident, self.draft(value, names))

    def draft(self, value: Any, names: Any = ("value",)) -> Draft:
        """Encodes a value and copies its arrays; the value can be let go before the message is sealed, so that
        leases which end with it go back with the same message."""
        encoded = encode(value, names)
        if encoded.nbytes >= FORWARD:
            lent_on = lend_on(encoded, self.pool)
            if lent_on is not None:
                return self._draft_with(lent_on, encoded)
        return self._draft(encoded)

    def _draft_with(self, lent_on: Forwarded, encoded: Encoded) -> Draft:
        try:
            draft = self._draft(encoded)
        except BaseException:
            self.pool.take_back([loan[:2] for loan in lent_on.loans])
            raise
        return draft._replace(place=lent_on.fields(draft.place))

    def _draft(self, encoded: Encoded) -> Draft:
        if encoded.table is None:
            return Draft(encoded.body, None, None, None)
        if encoded.nbytes <= INLINE:
            return Draft(encoded.body, encoded.table, 0, encoded.join())
        segment = self.pool.lend(encoded.nbytes)
        if segment is None:
            return Draft(encoded.body, encoded.table, 0, _frame(encoded))
        try:
            encoded.write(segment.base)
        except BaseException:
            self.pool.take_back([(segment.ident, segment.serial)])
            raise
        return Draft(encoded.body, encoded.table, [segment.ident, segment.serial, encoded.nbytes], None)

    def seal(self, kind: int, ident: int, draft: Draft) -> List[Any]:
        """The frames of a drafted message."""
        head = self._head(kind, ident, draft.body, draft.table, draft.place)
        return [head] if draft.frame is None else [head, draft.frame]

    def signal(self, kind: int, ident: int = 0) -> List[Any]:
        """The frame of a message without a value."""
        return [self._head(kind, ident, _EMPTY, None, None)]

    def owes(self) -> bool:
        """Whether leases or dropped segments wait for a message to go with."""
        return self.views.returned or self.pool.dropped

    def parse(self, frames: List[Any]) -> Message:
        """The message in these frames (buffers). Its part of the ledger is booked.

        Raises:
            DecodingError: it cannot be understood; nothing of it was used.
        """
        kind, ident, body, table, place, ledger = self._fields(frames)
        if ledger is not None:
            self._book(ledger)
        arrays = None
        if type(place) is dict:
            arrays = guests(place, self.views)
            place = place["own"]
        if place is None:
            if table is not None or len(frames) != 1:
                raise DecodingError("a message with arrays that lie nowhere")
            return Message(kind, ident, body, None, None, arrays)
        return Message(kind, ident, body, table, self._buffer(place, frames), arrays)

    def _head(self, kind: int, ident: int, body: bytes, table: Any, place: Any) -> bytes:
        ledger = None
        if self.views.returned or self.pool.dropped:
            returned, dropped = self.views.take_returned(), self.pool.take_dropped()
            if returned or dropped:
                ledger = [returned, dropped]
        try:
            pack = self._local.pack
        except AttributeError:
            pack = self._local.pack = msgpack.Packer().pack
        if len(body) > INLINE:
            pack = msgpack.packb  # does not keep its buffer
        try:
            return pack((kind, ident, body, table, place, ledger))  # type: ignore[no-any-return]
        except ValueError as error:
            raise EncodingError(f"a message of {len(body):,} bytes is too long: {error}") from None

    def _fields(self, frames: List[Any]) -> List[Any]:
        if not 1 <= len(frames) <= 2:
            raise DecodingError(f"a message of {len(frames)} frames")
        try:
            head = msgpack.unpackb(frames[0])
        except Exception as error:
            raise DecodingError(f"a message that is not msgpack: {str(error)[:200]}") from None
        if type(head) is not list or len(head) != 6:
            raise DecodingError("a message that is not a list of six")
        if [type(field) for field in head[:3]] != _TYPES or head[0] not in _KINDS:
            raise DecodingError("a message of an unknown kind, or with a wrong id or body")
        return head

    def _book(self, ledger: Any) -> None:
        try:
            returned, dropped = ledger
            pairs, gone = [(ident, serial) for ident, serial in returned], list(dropped)
        except (TypeError, ValueError):
            raise DecodingError("a ledger that is not two lists") from None
        if not {type(number) for pair in (*pairs, gone) for number in pair} <= {int}:
            raise DecodingError("a ledger that holds other things than numbers")
        self.pool.take_back(pairs)
        self.views.forget(gone)

    def _buffer(self, place: Any, frames: List[Any]) -> Any:
        if place == 0 and type(place) is int:
            if len(frames) != 2:
                raise DecodingError("a message whose arrays did not come with it")
            return frames[1]
        if type(place) is not list or [type(part) for part in place] != [int, int, int] or len(frames) != 1:
            raise DecodingError("a message whose arrays lie in no known place")
        return self.views.lease(*place)


def _frame(encoded: Any) -> Any:
    """All arrays as one private buffer, where there is no shared memory for them."""
    import numpy as np

    if encoded.nbytes > MAX_FRAME:
        raise EncodingError(f"{encoded.nbytes:,} bytes of arrays: one message carries at most {MAX_FRAME:,}")
    try:
        buffer = np.empty(encoded.nbytes, np.uint8)
    except MemoryError:
        raise EncodingError(f"there is no memory for {encoded.nbytes:,} bytes of arrays") from None
    encoded.write(buffer)
    return buffer
