"""Tiny checkpoints without torch: a safetensors writer and the seeded numbers that go into it.

A self-test and a test need a checkpoint in the published layout, small enough to be made on the spot, and with the
same numbers whatever the versions at hand. numpy's `RandomState` keeps its streams for ever, so a seed means the same
weights in every environment.
"""

from __future__ import annotations

import importlib.util
import json
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Sequence

import numpy as np

__all__ = ["Weights", "write_safetensors", "write_json", "tiny_checkpoint"]

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8"}
_NAMES["uint16"] = "BF16"  # numpy has no bfloat16: its bits travel as uint16


class Weights:
    """Seeded float32 weights by name: `weights.normal("lm_head.weight", 32, 8)`; `weights.arrays` holds them."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(seed)
        self.arrays: Dict[str, np.ndarray] = {}

    def normal(self, name: str, *shape: int, scale: float = 0.0) -> None:
        """A normal array; `scale` 0 means 1/sqrt(last dimension), which keeps activations near 1."""
        spread = scale or 1.0 / float(np.sqrt(shape[-1]))
        self.arrays[name] = (self._random.standard_normal(shape) * spread).astype(np.float32)

    def linear(self, name: str, out_features: int, in_features: int, *, bias: bool = True) -> None:
        """`name`.weight (out, in) and, unless told otherwise, `name`.bias (out)."""
        self.normal(name + ".weight", out_features, in_features)
        if bias:
            self.normal(name + ".bias", out_features, scale=0.1)

    def layer_norm(self, name: str, size: int, *, bias: bool = True) -> None:
        """`name`.weight near 1 and `name`.bias near 0, both (size)."""
        self.normal(name + ".weight", size, scale=0.1)
        self.arrays[name + ".weight"] += np.float32(1)
        if bias:
            self.normal(name + ".bias", size, scale=0.1)


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] = {"format": "pt"}
) -> None:
    """Write `arrays` as one safetensors file (8 bytes of header length, a JSON header, the bytes)."""
    header: Dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin aligned, as the format asks
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def tiny_checkpoint(makers: Path, style: str, seed: int = 0, folder: str = "") -> Iterator[str]:
    """A tiny checkpoint of `style`, made by the module `makers` (its `STYLES`), in a folder that lives as long as the block."""
    make = load_styles(makers)[style]
    with tempfile.TemporaryDirectory(prefix="tiny-") as parent:
        destination = Path(parent) / (folder or style)
        destination.mkdir()
        make(destination, seed)
        yield str(destination)


def load_styles(makers: Path) -> Dict[str, Callable[[Path, int], None]]:
    """The `STYLES` of a module of `workers/tiny_checkpoints/`, loaded by its path."""
    spec = importlib.util.spec_from_file_location("tiny_checkpoints_" + makers.stem, makers)
    if spec is None or spec.loader is None:
        raise ImportError(f"{makers} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    styles: Dict[str, Callable[[Path, int], None]] = module.STYLES
    return styles


def byte_alphabet() -> Sequence[str]:
    """The 256 printable stand-ins of byte-level BPE, in the order of the bytes (the table that GPT-2 published)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for number, byte in enumerate(sorted(set(range(256)) - set(printable))):
        table[byte] = chr(256 + number)
    return [table[byte] for byte in range(256)]
