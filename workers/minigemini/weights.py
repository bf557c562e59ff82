"""A checkpoint's tensors, read straight into their place.

safetensors files are read with plain reads into the destination's own memory, in its dtype and on its device: no memory
map (whose pages would count as resident beside the weights) and no second copy. PyTorch files are opened with
`weights_only=True`; nothing that is not a weight file by name is opened at all.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from pickle import UnpicklingError
from typing import (
    Any,
    BinaryIO,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import torch

__all__ = ["Stored", "Tensors", "checkpoint_files"]

CHUNK = {
    "cpu": 4 << 20,
    "cuda": 64 << 20,
}  # bytes of staging where a tensor changes dtype or device on its way

DTYPES: Dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

BROKEN = re.compile(r"PytorchStreamReader|zip archive|magic number")

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
PATTERNS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")


class Stored(NamedTuple):
    """Where a tensor lies. `offset` is its first byte in a safetensors file, -1 in a PyTorch file."""

    file: Path
    dtype: torch.dtype
    shape: Tuple[int, ...]
    offset: int


class Tensors:
    """The tensors of a set of weight files by name, known by their headers; values are read with `fill`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.entries: Dict[str, Stored] = {}
        for file in self.files:
            self.entries.update(headers(file))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def shape(self, name: str) -> Tuple[int, ...]:
        """Shape of a tensor; KeyError with the files' names when there is none."""
        if name not in self.entries:
            names = ", ".join(file.name for file in self.files)
            raise KeyError(f"there is no tensor {name} in {names}")
        return self.entries[name].shape

    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Every tensor's shape by its name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def with_prefix(self, prefix: str) -> Dict[str, str]:
        """Stored names by what follows `prefix`."""
        return {name[len(prefix) :]: name for name in self.entries if name.startswith(prefix)}

    def nbytes(self, names: Iterable[str], dtype: Optional[torch.dtype] = None) -> int:
        """Bytes of these tensors as stored, or in `dtype`."""
        total = 0
        for name in names:
            entry = self.entries[name]
            total += torch.Size(entry.shape).numel() * size_of(dtype or entry.dtype)
        return total

    def fill(
        self,
        destinations: Mapping[str, Callable[[], torch.Tensor]],
        told: Optional[Callable[[Path, int, int], None]] = None,
    ) -> None:
        """Read each named tensor into the tensor that its function makes, file by file.

        The destination's dtype and device are kept. Where its first dimension differs from the stored one, the rows that
        both have are read and further rows are zero. `told` hears of each file begun and each tensor read, in bytes.
        """
        total, done = self.nbytes(destinations), 0
        for file in self.files:
            wanted = [name for name in destinations if self.entries[name].file == file]
            if not wanted:
                continue
            if told:
                told(file, done, total)
            read = read_safetensors if file.suffix == ".safetensors" else read_pytorch
            for name in read(file, [(name, self.entries[name]) for name in wanted], destinations):
                done += self.nbytes([name])
                if told:
                    told(file, done, total)


def checkpoint_files(folder: Path) -> List[Path]:
    """The weight files of a checkpoint folder, by its index, by the usual single names, or by their numbered names.

    safetensors before PyTorch files, as transformers prefers them. Raises FileNotFoundError with what was looked for.
    """
    for index, single, pattern in zip(INDEXES, SINGLE, PATTERNS):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return indexed(folder / index)
        numbered = sorted(folder.glob(pattern))
        if numbered:
            return complete(numbered)
    looked = ", ".join((*SINGLE, *INDEXES))
    raise FileNotFoundError(f"{folder} holds no weights: none of {looked} and no numbered shards")


def indexed(index: Path) -> List[Path]:
    """The shards that an index names, all present."""
    weight_map = json.loads(index.read_text("utf-8")).get("weight_map", {})
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(
            f"{index} names {', '.join(missing) or 'no files'}: the checkpoint is incomplete"
        )
    return files


def complete(files: List[Path]) -> List[Path]:
    """Numbered shards without an index: -00001-of-00003 says how many there must be."""
    expected = int(files[0].stem.rsplit("-of-", 1)[1])
    if len(files) != expected:
        raise FileNotFoundError(f"{files[0].parent} holds {len(files)} of {expected} shards and no index")
    return files


def headers(file: Path) -> Dict[str, Stored]:
    """What a weight file holds, without its values."""
    if file.suffix == ".safetensors":
        return safetensors_header(file)
    state = load_pytorch(file, lazily=True)
    return {name: Stored(file, value.dtype, tuple(value.shape), -1) for name, value in state.items()}


def safetensors_header(file: Path) -> Dict[str, Stored]:
    """The header of a safetensors file: 8 bytes of length, then JSON with dtype, shape and offsets into the rest."""
    size = file.stat().st_size
    with open(file, "rb") as source:
        start = source.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise ValueError(
                f"{file} is not a whole safetensors file (a git-lfs pointer or a broken download?)"
            )
        header = json.loads(source.read(length))
    header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{file}: {name} is stored as {entry['dtype']}, which is not read here")
        if 8 + length + end > size:
            raise ValueError(f"{file} is cut off: {name} ends at byte {8 + length + end} of {size}")
        entries[name] = Stored(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin)
    return entries


def load_pytorch(file: Path, *, lazily: bool = False) -> Dict[str, torch.Tensor]:
    """The tensors of a PyTorch file (weights only). `lazily` maps the file where its format allows it."""
    state: Any = None
    if lazily:
        try:
            state = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            state = None  # the format from before PyTorch 1.6 cannot be mapped
    if state is None:
        try:
            state = torch.load(str(file), map_location="cpu", weights_only=True)
        except (UnpicklingError, EOFError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not BROKEN.search(str(error)):
                raise
            raise ValueError(
                f"{file} is not a whole PyTorch file of weights alone (a git-lfs pointer or a broken download?): {error}"
            ) from error
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def read_safetensors(
    file: Path, wanted: Sequence[Tuple[str, Stored]], destinations: Mapping[str, Callable[[], torch.Tensor]]
) -> Iterable[str]:
    """Fill destinations from a safetensors file in the order of its bytes; yields each name when it is read."""
    staging: Dict[Tuple[torch.dtype, str], torch.Tensor] = {}
    with open(file, "rb", buffering=0) as source:
        for name, entry in sorted(wanted, key=lambda pair: pair[1].offset):
            target = matching_rows(name, entry.shape, destinations[name]()).view(-1)
            source.seek(entry.offset)
            if target.device.type == "cpu" and target.dtype == entry.dtype:
                read_bytes(source, target)
            else:
                key = (entry.dtype, target.device.type)
                if key not in staging:
                    staging[key] = staging_for(*key)
                read_through(source, staging[key], target)
            yield name


def staging_for(dtype: torch.dtype, device: str) -> torch.Tensor:
    """Memory for a part of a tensor on its way to a device, as it is stored."""
    count = CHUNK.get(device, CHUNK["cuda"]) // size_of(dtype)
    return torch.empty(count, dtype=dtype, pin_memory=device == "cuda")


def read_through(source: BinaryIO, staging: torch.Tensor, target: torch.Tensor) -> None:
    """Read numbers of the staging's dtype until `target` (one dimension) is full."""
    for begin in range(0, target.numel(), staging.numel()):
        part = staging[: min(staging.numel(), target.numel() - begin)]
        read_bytes(source, part)
        target[begin : begin + part.numel()].copy_(part)


def read_bytes(source: BinaryIO, flat: torch.Tensor) -> None:
    """Fill a one-dimensional CPU tensor from the file's position on."""
    view = memoryview(flat.view(torch.uint8).numpy())
    while view:
        count = source.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"{source.name} ended while a tensor was read")
        view = view[count:]


def read_pytorch(
    file: Path, wanted: Sequence[Tuple[str, Stored]], destinations: Mapping[str, Callable[[], torch.Tensor]]
) -> Iterable[str]:
    """Fill destinations from a PyTorch file, letting go of each tensor once it is copied.

    A file of which little is wanted (a vision tower in a whole CLIP model) is mapped; otherwise it is read, since the
    pages of a map stay resident until the last tensor is gone.
    """
    little = (
        sum(torch.Size(entry.shape).numel() * size_of(entry.dtype) for _, entry in wanted)
        < file.stat().st_size / 2
    )
    state = load_pytorch(file, lazily=little)
    for name, entry in wanted:
        value = state.pop(name)
        target = matching_rows(name, entry.shape, destinations[name]())
        target.copy_(value[: target.shape[0]] if target.dim() else value)
        del value
        yield name


def matching_rows(name: str, stored: Tuple[int, ...], target: torch.Tensor) -> torch.Tensor:
    """The part of `target` that the stored tensor fills; the rest is set to zero."""
    if tuple(target.shape) == stored:
        return target
    if target.dim() == 0 or tuple(target.shape[1:]) != stored[1:]:
        raise ValueError(f"{name} is stored as {list(stored)} where the model has {list(target.shape)}")
    rows = min(target.shape[0], stored[0])
    target[rows:].zero_()
    return target[:rows]


def size_of(dtype: torch.dtype) -> int:
    """Bytes of one number."""
    return torch.empty((), dtype=dtype).element_size()
