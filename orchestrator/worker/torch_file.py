"""Writes `pytorch_model.bin` without torch, for tiny checkpoints whose loader reads nothing else.

The format is a zip: `archive/data.pkl`, a pickle that rebuilds a dict of tensors, and one file of bytes per tensor. Only
the few opcodes that such a dict needs are written, so that `torch.load(weights_only=True)` accepts it.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

__all__ = ["write_torch_file"]

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def write_torch_file(path: Path, arrays: Mapping[str, np.ndarray], nested_under: str = "") -> None:
    """Write `arrays` as torch.save would; with `nested_under` the state dict is the value of that key."""
    entries = b"".join(
        _text(name) + _tensor(str(index), array) for index, (name, array) in enumerate(arrays.items())
    )
    state = b"}(" + entries + b"u"
    if nested_under:
        state = b"}" + _text(nested_under) + state + b"s"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + state + b".")
        for index, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{index}", np.ascontiguousarray(array).tobytes())
        archive.writestr("archive/version", "3\n")


def _tensor(key: str, array: np.ndarray) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())."""
    storage = b"".join(
        (
            b"(",
            _text("storage"),
            _global("torch", _STORAGES[array.dtype.name]),
            _text(key),
            _text("cpu"),
            _int(array.size),
        )
    )
    strides = [int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim)]
    hooks = _global("collections", "OrderedDict") + b")R"
    arguments = storage + b"tQ" + _int(0) + _tuple(array.shape) + _tuple(strides) + b"\x89" + hooks
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(_int(value) for value in values) + b"t"
