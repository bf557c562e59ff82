"""What is neither JSON-like nor a numpy array: tensors, images, scalars, dates, and how each looks on the wire.

Each is a msgpack extension. Those marked * are followed, in order, by one array of the message's table.

| code | value            | data                                    |
|------|------------------|-----------------------------------------|
| 1 *  | numpy array      | nothing                                 |
| 2    | numpy scalar     | msgpack [dtype, bytes]                  |
| 3 *  | tensor           | the name of its dtype, as torch says it |
| 4 *  | PIL image        | msgpack [mode, width, height, extras]   |
| 5    | datetime         | ISO 8601                                |
| 6    | date             | ISO 8601                                |
"""

from __future__ import annotations

import datetime as dt
import sys
from collections import abc
from typing import Any, Callable, Dict, List, Tuple

import msgpack

from orchestrator.worker.arrays import _dtype, refusal
from orchestrator.worker.limits import DecodingError

__all__ = ["RawTensor", "replace", "restore"]

ARRAY, SCALAR, TENSOR, IMAGE, DATETIME, DATE = 1, 2, 3, 4, 5, 6
EMPTY = msgpack.ExtType(ARRAY, b"")
CHARS = frozenset("?bBhHiIlLqQefdFDmMSU")  # numpy's codes of the dtypes that the wire carries
_RAW = {
    "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}  # fmt: skip
_NATIVE = {
    "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128",
}  # fmt: skip
_CHANNELS = {
    "1": 0, "L": 1, "P": 1, "I": 4, "F": 4, "I;16": 2, "LA": 2, "La": 2, "RGB": 3, "YCbCr": 3, "HSV": 3, "LAB": 3,
    "RGBA": 4, "RGBa": 4, "RGBX": 4, "CMYK": 4,
}  # fmt: skip
_PIXELS = {"I": "<i4", "F": "<f4", "I;16": "<u2"}


class RawTensor:
    """A tensor whose dtype numpy does not know, on a side without torch.

    Attributes:
        dtype: torch's name of it: `bfloat16`, `float8_e4m3fn`, `float8_e5m2` …
        data: the bits, a numpy array of the tensor's shape: uint16 for bfloat16, uint8 for float8.

    Sent to a side that has torch, it is a tensor again.
    """

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: str, data: Any) -> None:
        size = _RAW.get(dtype)
        if size is None:
            raise ValueError(f"dtype {dtype!r}: numpy has it, or nobody; known here: {', '.join(_RAW)}")
        if data.dtype.kind != "u" or data.dtype.itemsize != size or not data.dtype.isnative:
            raise ValueError(f"the bits of {dtype} come as uint{8 * size}, not as {data.dtype}")
        self.dtype = dtype
        self.data = data

    @property
    def shape(self) -> Tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.data.shape)

    def float32(self) -> Any:
        """A bfloat16 tensor's values as a float32 array of its shape (exact).

        Raises:
            ValueError: it has another dtype.
        """
        if self.dtype != "bfloat16":
            raise ValueError(f"only bfloat16 has a cheap way to float32, not {self.dtype}")
        return (self.data.astype("<u4") << 16).view("<f4")

    def __repr__(self) -> str:
        return f"RawTensor({self.dtype}, shape={self.shape})"


class Refused(Exception):
    """Raised inside msgpack's hook; the codec then finds the place and makes an EncodingError of it."""


class _Quick:
    """`numpy.ndarray`, once an array has been seen: looking it up each time costs more than the array does."""

    __slots__ = ("ndarray",)

    def __init__(self) -> None:
        self.ndarray: Any = None


quick = _Quick()


def replace(value: Any, arrays: List[Any]) -> Any:
    """What msgpack packs in the place of a value that it does not know; arrays go to `arrays`.

    Raises:
        Refused: the wire does not carry it.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            _refuse(refusal(value))
            quick.ndarray = numpy.ndarray
            arrays.append(value)
            return EMPTY
        if isinstance(value, numpy.generic):
            _refuse(refusal(value))
            return msgpack.ExtType(
                SCALAR, msgpack.packb([value.dtype.str, value.tobytes()[: value.dtype.itemsize]])
            )
    for base, plain in _PLAIN:
        if isinstance(value, base):
            return plain(value)
    return _replace_guest(value, arrays)


def _text(value: str) -> str:
    return str.__str__(value)


_PLAIN: Tuple[Tuple[type, Callable[[Any], Any]], ...] = (
    (tuple, list), (dt.datetime, lambda v: msgpack.ExtType(DATETIME, v.isoformat().encode())),
    (dt.date, lambda v: msgpack.ExtType(DATE, v.isoformat().encode())),
    (str, _text), (int, int), (float, float), (bytes, bytes), (bytearray, bytes), (memoryview, bytes), (list, list),
    (abc.Mapping, dict),
)  # fmt: skip


def _replace_guest(value: Any, arrays: List[Any]) -> Any:
    """Values of libraries that may be here or not: they are, if there is a value of theirs."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        name, bits = _bits(torch, value)
        arrays.append(bits)
        return msgpack.ExtType(TENSOR, name.encode())
    if isinstance(value, RawTensor):
        arrays.append(value.data)
        return msgpack.ExtType(TENSOR, value.dtype.encode())
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(value, pillow.Image):
        return _replace_image(value, arrays)
    kind = type(value)
    hint = {"set": ": send a list", "frozenset": ": send a list", "PosixPath": ": send str(path)"}
    raise Refused(f"a {kind.__module__}.{kind.__qualname__}{hint.get(kind.__name__, '')}")


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise Refused(reason)


def _bits(torch: Any, tensor: Any) -> Tuple[str, Any]:
    name = str(tensor.dtype)[6:]  # "torch.bfloat16"
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise Refused(f"a {tensor.layout} tensor on {tensor.device}: send a dense one that has data")
    tensor = tensor.detach().cpu()
    if name in _RAW:
        carrier = torch.int16 if _RAW[name] == 2 else torch.uint8
        return name, tensor.contiguous().view(carrier).numpy().view(f"u{_RAW[name]}")
    if name not in _NATIVE:
        raise Refused(f"a tensor of {name}: convert it")
    return name, tensor.resolve_conj().resolve_neg().numpy()


def _replace_image(image: Any, arrays: List[Any]) -> Any:
    import numpy as np

    mode = image.mode
    if mode not in _CHANNELS:
        raise Refused(f"an image of mode {mode}: convert it to RGB")
    extras: Dict[str, Any] = {}
    if mode == "P":
        extras["palette"] = bytes(image.getpalette() or ())
        if isinstance(image.info.get("transparency"), (int, bytes)):
            extras["transparency"] = image.info["transparency"]
    arrays.append(np.frombuffer(image.tobytes(), np.uint8))
    return msgpack.ExtType(IMAGE, msgpack.packb([mode, image.width, image.height, extras]))


def restore(code: int, data: bytes, array: Callable[[], Any]) -> Any:
    """The value of one extension; `array()` gives the message's next array.

    Raises:
        DecodingError, ValueError: it is none that the wire carries (`decode` makes DecodingErrors of all).
    """
    if code == ARRAY:
        return array()
    if code == TENSOR:
        return _tensor(data.decode("ascii"), array())
    if code == SCALAR:
        return _scalar(*_fields(data, 2))
    if code == IMAGE:
        return _image(*_fields(data, 4), pixels=array())
    if code == DATETIME:
        return dt.datetime.fromisoformat(data.decode("ascii"))
    if code == DATE:
        return dt.date.fromisoformat(data.decode("ascii"))
    raise DecodingError(f"extension {code} is not one that the wire carries")


def _fields(data: bytes, count: int) -> List[Any]:
    fields = msgpack.unpackb(data)
    if type(fields) is not list or len(fields) != count:
        raise DecodingError("an extension has the wrong number of fields")
    return fields


def _scalar(spelling: Any, data: Any) -> Any:
    dtype = _dtype(spelling)
    if type(data) is not bytes or len(data) != dtype.itemsize:
        raise DecodingError("a numpy scalar has the wrong number of bytes")
    import numpy as np

    if not data:
        return dtype.type()
    return np.frombuffer(data, dtype)[0]


def _tensor(name: str, bits: Any) -> Any:
    if name not in _RAW and name not in _NATIVE:
        raise DecodingError(f"a tensor of {name[:40]!r} is not one that the wire carries")
    torch = sys.modules.get("torch")
    if name in _RAW:
        raw = RawTensor(name, bits)
        dtype = getattr(torch, name, None)
        if torch is None or dtype is None:
            return raw
        carrier = bits.view("i2") if _RAW[name] == 2 else bits
        return torch.from_numpy(carrier).view(dtype)
    if bits.dtype.name != name or not bits.dtype.isnative:
        raise DecodingError(f"a tensor of {name} came as {bits.dtype}")
    return bits if getattr(torch, "from_numpy", None) is None else torch.from_numpy(bits)  # type: ignore[union-attr]


def _image(mode: Any, width: Any, height: Any, extras: Any, *, pixels: Any) -> Any:
    if mode not in _CHANNELS or type(width) is not int or type(height) is not int or type(extras) is not dict:
        raise DecodingError("an image has a wrong mode or size")
    row = (width + 7) // 8 if mode == "1" else width * _CHANNELS[mode]
    if min(width, height) < 0 or pixels.dtype.str != "|u1" or pixels.ndim != 1 or len(pixels) != row * height:
        raise DecodingError("an image has the wrong number of bytes")
    try:
        from PIL import Image
    except ImportError:
        return _pixels(mode, width, height, pixels)
    image = Image.frombytes(mode, (width, height), pixels.tobytes())
    if extras.get("palette"):
        image.putpalette(extras["palette"])
    if "transparency" in extras:
        image.info["transparency"] = extras["transparency"]
    return image


def _pixels(mode: str, width: int, height: int, pixels: Any) -> Any:
    """An image where there is no Pillow: height x width, x channels if more than one."""
    if mode == "1":
        import numpy as np

        bits = np.unpackbits(pixels.reshape(height, -1), axis=1) if pixels.size else pixels.reshape(height, 0)
        return bits[:, :width].astype(bool)
    if mode in _PIXELS:
        return pixels.view(_PIXELS[mode]).reshape(height, width)
    channels = _CHANNELS[mode]
    return pixels.reshape((height, width) if channels == 1 else (height, width, channels))
