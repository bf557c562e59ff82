"""The arrays of one message: a run-length table, and one buffer in which they lie 64-byte aligned in order.

A row of the table is `[dtype, shape, count, order]`: `count` arrays in a row of one dtype (numpy's own spelling,
byte order included), one shape and one order (0: C, 1: Fortran).
"""

from __future__ import annotations

import re
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Iterable, Iterator, List, Tuple

from orchestrator.worker.limits import ALIGN, INLINE, MAX_DIMENSIONS, MAX_ROWS, DecodingError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["describe", "join", "read", "refusal", "write"]

_SIZES = {"b": {1}, "i": {1, 2, 4, 8}, "u": {1, 2, 4, 8}, "f": {2, 4, 8}, "c": {8, 16}, "m": {8}, "M": {8}}
_SPELLING = re.compile(
    r"\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(?:8|16)|\|S[0-9]{1,9}|[<>]U[0-9]{1,9}"
    r"|[<>][mM]8(?:\[[0-9]{0,9}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)
_SMALL = 4096  # below this a joined copy beats one assignment per array
_ROOM = 30  # dimensions of an array that can be one of a run: numpy 1 has 32
_PADS = [bytes(n) for n in range(ALIGN)]
_dtypes: Any = {}
_modules: List[Any] = []


def refusal(array: Any) -> str | None:
    """Why an array (or numpy scalar) cannot travel, or None."""
    dtype = array.dtype
    kind = dtype.kind
    if kind in "SU" or dtype.itemsize in _SIZES.get(kind, ()):
        return "a masked array: send its data and its mask" if hasattr(array, "mask") else None
    if kind == "O":
        return "an array of objects: send numbers, or a list"
    if kind == "V":
        return (
            f"an array of records ({dtype}): send its fields one by one"
            if dtype.names
            else f"an array of {dtype}: view it as uint8"
        )
    if kind in "fc":
        return f"extended precision ({dtype}): machines do not agree on it, convert to float64 or complex128"
    return f"dtype {dtype}: convert to a fixed-width one"


def describe(arrays: List[Any]) -> Tuple[List[Any], int]:
    """The table of these arrays, and the bytes that their buffer needs."""
    table: List[Any] = []
    total = step = 0
    row: List[Any] = []
    dtype: Any = None
    shape = strides = None
    for array in arrays:
        if array.shape != shape or array.strides != strides or array.dtype != dtype:
            dtype, shape, strides = array.dtype, array.shape, array.strides
            step = (array.nbytes + ALIGN - 1) & -ALIGN
            order = int(array.flags.f_contiguous and not array.flags.c_contiguous)
            if row[:2] != [dtype.str, list(shape)] or row[3] != order:
                row = [dtype.str, list(shape), 0, order]
                table.append(row)
        row[2] += 1
        total += step
    return table, total


def join(arrays: List[Any]) -> bytes:
    """The buffer as one bytes object, for few bytes."""
    parts = []
    for array in arrays:
        data = array.tobytes("A")
        parts.append(data)
        pad = -len(data) % ALIGN
        if pad:
            parts.append(_PADS[pad])
    return b"".join(parts)


def write(arrays: List[Any], table: List[Any], buffer: np.ndarray[Any, Any]) -> None:
    """Lays the arrays out in `buffer` (uint8, long enough): one copy, also of arrays with holes."""
    np = _numpy()
    source = iter(arrays)
    offset = 0
    for spelling, shape, count, order in table:
        dtype = _dtype(spelling)
        step = (dtype.itemsize * _elements(shape) + ALIGN - 1) & -ALIGN
        if 0 < step < _SMALL:
            data = join(list(islice(source, count)))
            buffer[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        else:
            for place, array in zip(_run(buffer, dtype, tuple(shape), count, order, step, offset), source):
                place[...] = array
        offset += step * count


def read(table: Any, buffer: Any) -> Iterator[Any]:
    """Yields the arrays of a table as views into `buffer`; everything is checked before the first.

    Raises:
        DecodingError: at once, if a row is not allowed or the buffer is too short.
    """
    rows = _checked(table, 0 if buffer is None else len(buffer))
    base = _base(buffer)
    if len(rows) == 1:
        return iter(_run(base, *rows[0]))
    return chain.from_iterable(_run(base, *row) for row in rows)  # nothing is made before it is asked for


def _base(buffer: Any) -> Any:
    """The buffer as writable, aligned bytes."""
    plain = type(buffer) is not _numpy().ndarray
    if buffer is None or (plain and len(buffer) <= INLINE):
        return bytearray(buffer or b"")  # zmq may put small frames anywhere inside its own buffer
    if not plain:
        return buffer
    base = _numpy().frombuffer(buffer, "u1")
    if not base.flags.writeable or base.__array_interface__["data"][0] % 16:
        return base.copy()
    return base


def _numpy() -> Any:
    """numpy, imported when the first array is met; an import statement each time costs more than a small array."""
    if not _modules:
        import numpy as np

        _modules.append(np)
    return _modules[0]


def _checked(table: Any, available: int) -> List[Any]:
    if type(table) is not list or len(table) > MAX_ROWS:
        raise DecodingError("the table of arrays is not a list, or too long")
    rows = []
    offset = 0
    for row in table:
        if type(row) is not list or len(row) != 4:
            raise DecodingError("a row of the table of arrays is not [dtype, shape, count, order]")
        spelling, shape, count, order = row
        dtype = _dtype(spelling)
        size = dtype.itemsize * _elements(shape)
        if type(count) is not int or count < 1 or order not in {0, 1}:
            raise DecodingError("a row of the table of arrays has a wrong count or order")
        step = (size + ALIGN - 1) & -ALIGN
        rows.append((dtype, tuple(shape), count, order, step, offset))
        offset += step * count
        if offset > available:
            raise DecodingError("the arrays of a message need more bytes than it has")
    return rows


def _elements(shape: Any) -> int:
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
        raise DecodingError("an array's shape is not a list, or has too many dimensions")
    elements = 1
    for length in shape:
        if type(length) is not int or not 0 <= length < 1 << 62:
            raise DecodingError("an array's shape holds something else than lengths")
        elements *= length
    return elements


def _dtype(spelling: Any) -> Any:
    found = _dtypes.get(spelling) if type(spelling) is str else None
    if found is None:
        if type(spelling) is not str or not _SPELLING.fullmatch(spelling):
            raise DecodingError(f"dtype {str(spelling)[:40]!r} is not one that the wire carries")
        try:
            found = _numpy().dtype(spelling)
        except (TypeError, ValueError) as error:
            raise DecodingError(f"dtype {spelling!r}: {error}") from None
        if len(_dtypes) < 1000:
            _dtypes[spelling] = found
    return found


def _run(
    base: Any, dtype: Any, shape: Tuple[int, ...], count: int, order: int, step: int, offset: int
) -> Iterable[Any]:
    """Views of one row's arrays in `base`."""
    np = _numpy()
    if not step:
        return (np.ndarray(shape, dtype) for _ in range(count))
    if count == 1:
        return (np.ndarray(shape, dtype, base, offset, order="F" if order else "C"),)
    if len(shape) > _ROOM:
        layout = "F" if order else "C"
        return (np.ndarray(shape, dtype, base, offset + k * step, order=layout) for k in range(count))
    strides = (step, *_strides(shape, dtype.itemsize, order))
    run = np.ndarray((count, *shape), dtype, base, offset, strides)
    return run if shape else (run[k, ...] for k in range(count))  # iterating it would give scalars


def _strides(shape: Tuple[int, ...], itemsize: int, order: int) -> List[int]:
    strides = []
    step = itemsize
    for length in shape if order else reversed(shape):
        strides.append(step)
        step *= length
    return strides if order else strides[::-1]
