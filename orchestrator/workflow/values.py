"""What flows through a workflow: JSON-like values, files, bytes, dates and numpy arrays; digests and writing of them."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.worker.forwarding import promise
from orchestrator.worker.wire import RawTensor
from orchestrator.workflow.pieces import pieces

__all__ = [
    "FILE_PROPERTIES",
    "Digest",
    "File",
    "Unstorable",
    "as_argument",
    "digest",
    "pack",
    "plain",
    "received",
    "unpack",
]

FILE_PROPERTIES = ("path", "name", "stem", "suffix", "text", "bytes")
PutArray = Callable[[np.ndarray[Any, Any]], Any]


class Unstorable(TypeError):
    """A value of a type that cannot be kept (cached, or compared by its content)."""


class File:
    """A file of an input. As an argument of a call it is its path (a str); its content counts for the cache."""

    __slots__ = ("_digest", "origin", "path")

    def __init__(self, path: Path, origin: str = "") -> None:
        self._digest: tuple[tuple[int, int], str] | None = None
        self.path = str(path)
        self.origin = origin or self.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return Path(self.path).name

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return Path(self.path).stem

    @property
    def suffix(self) -> str:
        """The last suffix with its dot."""
        return Path(self.path).suffix

    @property
    def text(self) -> str:
        """The content as UTF-8 text."""
        return Path(self.path).read_text(encoding="utf-8")

    @property
    def bytes(self) -> bytes:
        """The content."""
        return Path(self.path).read_bytes()

    @property
    def digest(self) -> str:
        """The content's hash; read again only when size or time of change differ."""
        stat = Path(self.path).stat()
        seen = (stat.st_size, stat.st_mtime_ns)
        if self._digest is None or self._digest[0] != seen:
            with open(self.path, "rb") as stream:
                self._digest = (seen, hashlib.file_digest(stream, _blake).hexdigest())
        return self._digest[1]

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"File({self.path!r})"


def _blake() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=20)


def as_argument(value: Any) -> Any:
    """A value as a worker gets it: files are paths, arrays of another worker go on as references."""
    if isinstance(value, File):
        return value.path
    if isinstance(value, np.ndarray):
        promise(value)
        return value
    if isinstance(value, RawTensor):
        promise(value.data)
        return value
    if isinstance(value, Mapping):
        return {key: as_argument(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_argument(item) for item in value]
    return value


def received(value: Any) -> Any:
    """A result as it flows on: pictures are arrays of their pixels, whether Pillow is installed here or not."""
    pillow = sys.modules.get("PIL.Image")
    return value if pillow is None else _without_pictures(value, pillow.Image)


def _without_pictures(value: Any, picture: type) -> Any:
    if isinstance(value, picture):
        return np.asarray(value)
    if isinstance(value, dict):
        return {key: _without_pictures(item, picture) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_pictures(item, picture) for item in value]
    return value


def plain(value: Any, put_array: PutArray | None = None) -> Any:
    """A value as people read it in JSON: dates as text, NaN and infinities as null.

    `put_array` decides what stands for an array (default: nested lists). A bfloat16 tensor is float32, one of float8
    its bits.
    """
    if isinstance(value, RawTensor):
        return plain(value.float32() if value.dtype == "bfloat16" else value.data, put_array)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        return put_array(value) if put_array is not None else plain(value.tolist())
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(key): plain(item, put_array) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, put_array) for item in value]
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, (date, time)):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def pack(value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    """A value as exact JSON; arrays are appended to `arrays` and named by their number. `unpack` undoes it.

    Raises:
        Unstorable: the value's type has no exact form here.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return value if not isinstance(value, float) or math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, (np.ndarray, np.generic, RawTensor)):
        return _pack_array(value, arrays)
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: pack(item, arrays) for key, item in value.items()}
        return {"$items": [[pack(key, arrays), pack(item, arrays)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [pack(item, arrays) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    raise Unstorable(f"a value of type {type(value).__name__} cannot be stored")


def _pack_array(value: Any, arrays: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    number = len(arrays)
    if isinstance(value, RawTensor):
        arrays.append(value.data)
        return {"$array": number, "tensor": value.dtype}
    if value.dtype.hasobject or value.dtype.fields is not None:
        raise Unstorable(f"an array of {value.dtype} cannot be stored")
    arrays.append(np.asarray(value))
    return {"$array": number, "scalar": isinstance(value, np.generic)}


def unpack(tree: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    """The value that `pack` was given (tuples come back as lists)."""
    if isinstance(tree, list):
        return [unpack(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$array" in tree:
        return _unpack_array(tree, arrays[tree["$array"]])
    if "$float" in tree:
        return float(tree["$float"])
    if "$bytes" in tree:
        return base64.b64decode(tree["$bytes"])
    if "$datetime" in tree:
        return datetime.fromisoformat(tree["$datetime"])
    if "$items" in tree:
        return {unpack(key, arrays): unpack(item, arrays) for key, item in tree["$items"]}
    return {key: unpack(item, arrays) for key, item in tree.items()}


def _unpack_array(tree: Mapping[str, Any], array: np.ndarray[Any, Any]) -> Any:
    if "tensor" in tree:
        return RawTensor(tree["tensor"], array)
    return array[()] if tree["scalar"] else array


class Digest:
    """A hash of values by content: equal values, equal digest; types and lengths are part of it."""

    def __init__(self) -> None:
        self._hash = _blake()

    def _put(self, tag: bytes, data: bytes | memoryview = b"") -> None:
        self._hash.update(tag + struct.pack("<q", len(data)))
        self._hash.update(data)

    def add(self, value: Any) -> Digest:
        """Adds one value. Raises Unstorable for a type without content of its own."""
        if value is None or isinstance(value, (bool, int)):
            self._put(b"i", repr(value).encode())
        elif isinstance(value, float):
            self._put(b"f", struct.pack("<d", value))
        elif isinstance(value, str):
            self._put(b"s", value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, (bytes, bytearray, memoryview)):
            self._put(b"b", bytes(value))
        elif isinstance(value, File):
            self._put(b"F", f"{value.suffix}\0{value.digest}".encode())
        elif isinstance(value, (date, time)):
            self._put(b"t", value.isoformat().encode())
        else:
            self._nested(value)
        return self

    def _nested(self, value: Any) -> None:
        if isinstance(value, (np.ndarray, np.generic)):
            self._array(np.asarray(value))
        elif isinstance(value, RawTensor):
            self._put(b"r", value.dtype.encode())
            self._array(value.data)
        elif isinstance(value, Mapping):
            self._put(b"d", struct.pack("<q", len(value)))
            for key in sorted(value, key=repr):
                self.add(key).add(value[key])
        elif isinstance(value, (list, tuple)):
            self._put(b"l", struct.pack("<q", len(value)))
            for item in value:
                self.add(item)
        else:
            raise Unstorable(f"a value of type {type(value).__name__} has no digest")

    def _array(self, array: np.ndarray[Any, Any]) -> None:
        if array.dtype.hasobject:
            raise Unstorable(f"an array of {array.dtype} has no digest")
        self._put(b"a", f"{array.dtype.str}{array.shape}".encode())
        self._hash.update(b"A" + struct.pack("<q", array.nbytes))
        for piece in pieces(array):
            self._hash.update(piece)

    def hexdigest(self) -> str:
        """The digest so far, 40 characters."""
        return self._hash.hexdigest()


def digest(*values: Any) -> str:
    """The digest of some values."""
    hashing = Digest()
    for value in values:
        hashing.add(value)
    return hashing.hexdigest()
