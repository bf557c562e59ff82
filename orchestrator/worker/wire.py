"""The codec: a value becomes a msgpack body, a table of arrays and the arrays themselves. Both sides run this file.

Carried: None, bool, int (64 bits), float, str, bytes, list, dict with str or int keys, datetime and date, numpy arrays
and scalars of fixed-width dtypes, torch tensors, PIL images. What comes out is what went in, bit by bit, but for:
tuples become lists; subclasses of the plain types become the plain types; a time zone becomes its fixed offset; a
tensor is a numpy array where torch is not imported (`RawTensor` for bfloat16 and float8); an image is an array of
pixels where Pillow is not installed. Nothing is ever pickled, and no class is looked up by a name from the wire.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import msgpack

from orchestrator.worker import values
from orchestrator.worker.arrays import describe, join, read, write
from orchestrator.worker.limits import (
    INLINE,
    MAX_BODY,
    MAX_DEPTH,
    MAX_FRAME,
    MAX_QUEUE,
    MAX_TEXT,
    DecodingError,
    EncodingError,
)  # fmt: skip
from orchestrator.worker.values import RawTensor

__all__ = [
    "INLINE", "MAX_BODY", "MAX_DEPTH", "MAX_FRAME", "MAX_QUEUE", "MAX_TEXT",
    "DecodingError", "Encoded", "EncodingError", "RawTensor", "decode", "encode",
]  # fmt: skip

_LEAVES = frozenset((str, int, float, bool, bytes, type(None)))
_KEYS = frozenset((str, int))
_BRANCHES = frozenset((dict, list, tuple))
_KEEP = 1 << 20  # a packer that held a larger body is not kept


class Encoded:
    """One value, ready to be sent.

    Attributes:
        body: msgpack, each array an empty extension.
        table: the run-length table of the arrays, or None.
        nbytes: what `write` needs.
    """

    __slots__ = ("arrays", "body", "nbytes", "table")

    def __init__(self, body: bytes, arrays: List[Any]) -> None:
        self.body = body
        self.arrays = arrays
        self.table: Optional[List[Any]] = None
        self.nbytes = 0
        if arrays:
            self.table, self.nbytes = describe(arrays)

    def leave_out(self, numbers: Sequence[int]) -> None:
        """These arrays travel another way."""
        out = set(numbers)
        self.__init__(  # type: ignore[misc]
            self.body, [array for number, array in enumerate(self.arrays) if number not in out]
        )

    def join(self) -> bytes:
        """The arrays as one buffer (for few bytes)."""
        return join(self.arrays)

    def write(self, buffer: Any) -> None:
        """Copies the arrays into `buffer`, a numpy array of at least `nbytes` uint8."""
        write(self.arrays, self.table or [], buffer)


class _Packer:
    """A msgpack packer that is used again: making one costs twice what a small message does."""

    __slots__ = ("arrays", "pack")

    def __init__(self) -> None:
        arrays: List[Any] = []
        append, quick, chars, empty = arrays.append, values.quick, values.CHARS, values.EMPTY

        def replace(value: Any) -> Any:
            if type(value) is quick.ndarray and value.dtype.char in chars:  # by far the most frequent
                append(value)
                return empty
            plain = values.replace(value, arrays)
            if type(plain) in _BRANCHES:
                _scan(plain, 0)
            return plain

        self.arrays = arrays
        self.pack = msgpack.Packer(default=replace, strict_types=True).pack


_packers: List[_Packer] = []


def encode(value: Any, names: Sequence[str] = ("value",)) -> Encoded:
    """Encodes a value.

    `names` are for error messages: what the value is called, or, if there are several names, what each of its
    items is called.

    Raises:
        EncodingError: it holds something that the wire does not carry; the message names the place.
    """
    packer = _packers.pop() if _packers else _Packer()
    try:
        _scan(value, 0)
        body = packer.pack(value)
    except (values.Refused, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodingError(_explain(value, names, error)) from None
    if len(body) > MAX_BODY:
        raise EncodingError(
            f"{names[0]} has {len(body):,} bytes beside its arrays: send large data as numpy arrays"
        )
    arrays = packer.arrays.copy()
    packer.arrays.clear()
    if len(body) < _KEEP:
        _packers.append(packer)
    return Encoded(body, arrays)


def decode(body: Any, table: Any = None, buffer: Any = None, guests: Optional[Dict[int, Any]] = None) -> Any:
    """Decodes a value. Its arrays are writable views into `buffer` (a numpy array of bytes, or a frame).

    `guests` are arrays that came by reference, by their number in the message; the table has the others.

    Raises:
        DecodingError: it cannot be understood.
    """
    try:
        if table is None and not guests:
            return msgpack.unpackb(body, strict_map_key=False, ext_hook=_restore_plain)
        source = read([] if table is None else table, buffer)
        if guests:
            source = _merged(source, guests)
        take = source.__next__
        value = msgpack.unpackb(
            body,
            strict_map_key=False,
            ext_hook=lambda code, data: take() if code == values.ARRAY else values.restore(code, data, take),
        )
        if next(source, None) is not None:
            raise DecodingError("a message has more arrays than places for them")
        return value
    except DecodingError:
        raise
    except (Exception, RecursionError) as error:
        raise DecodingError(f"{type(error).__name__}: {str(error)[:200]}") from None


def _merged(own: Iterator[Any], guests: Dict[int, Any]) -> Iterator[Any]:
    """All arrays of a message in order."""
    number = 0
    for array in own:
        while number in guests:
            yield guests[number]
            number += 1
        yield array
        number += 1
    while number in guests:
        yield guests[number]
        number += 1


def _no_array() -> Any:
    raise DecodingError("a message has a place for an array, and no arrays")


def _restore_plain(code: int, data: bytes) -> Any:
    return values.restore(code, data, _no_array)


def _scan(value: Any, depth: int) -> None:
    """Looks at what msgpack would let through: keys, depth and cycles. Leaves are looked at in C."""
    kind = type(value)
    children: Iterable[Any]
    if kind is dict:
        if not _KEYS.issuperset(map(type, value)):
            raise TypeError("key")
        children = value.values()
    elif kind is list or kind is tuple:
        children = value
    else:
        return
    if _LEAVES.issuperset(map(type, children)):
        return
    if depth >= MAX_DEPTH:
        raise RecursionError
    for child in children:
        if type(child) in _BRANCHES and child:
            _scan(child, depth + 1)


def _explain(value: Any, names: Sequence[str], error: BaseException) -> str:
    """Finds what could not be encoded, the slow way, and says where it is."""
    parts = [(names[0], value)] if len(names) == 1 else list(zip(names, value))
    for name, part in parts:
        found = _locate(part, name, 0)
        if found is not None:
            return f"{found[0]} is {found[1]}"
    return f"{names[0]} cannot be sent: {error}"


def _locate(value: Any, path: str, depth: int) -> Optional[Tuple[str, str]]:
    if depth > MAX_DEPTH:
        return path[:200] + "…", f"nested deeper than {MAX_DEPTH} levels, or holds itself"
    if isinstance(value, dict):
        for key, child in value.items():
            if type(key) not in _KEYS:
                return (
                    path,
                    f"a dict with a key of type {type(key).__name__}: use str or int keys ({key!r:.80})",
                )
            found = _wrong(key, path) or _locate(child, f"{path}[{key!r}]".replace("'", '"'), depth + 1)
            if found:
                return found
        return None
    if isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            found = _locate(child, f"{path}[{index}]", depth + 1)
            if found:
                return found
        return None
    return _wrong(value, path)


def _wrong(value: Any, path: str) -> Optional[Tuple[str, str]]:
    try:
        msgpack.packb(value, default=lambda other: values.replace(other, []), strict_types=True)
    except values.Refused as error:
        return path, str(error)
    except OverflowError:
        return path, f"an integer of {value.bit_length()} bits: the wire carries 64, send it as str"
    except UnicodeEncodeError:
        return path, "a str with a lone surrogate, which is not valid text"
    except (TypeError, ValueError) as error:
        return path, f"a {type(value).__name__} that cannot be sent: {error}"
    return None
