"""What tensors a checkpoint's files hold: names, types and counts, read from headers; no weight is loaded.

safetensors have a JSON header; a torch file (`.bin`, `.pt`, `.pth`) is a zip whose `data.pkl` names the
tensors: it is read by an unpickler that builds inert stand-ins and can run nothing.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from orchestrator.checkpoint_json import read_json, read_object
from orchestrator.errors import CheckpointError

__all__ = ["DTYPE_SIZE", "Tensor", "read_safetensors", "read_torch_file", "tensors_of", "weight_files"]

DTYPE_SIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "bool": 1, "complex64": 8,
}  # fmt: skip
SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
}  # fmt: skip
HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
PICKLE_LIMIT = 256 * 2**20
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
OTHER_SUFFIXES = (".gguf", ".onnx", ".npz", ".data")
NO_WEIGHTS = {
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "scaler.pt",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor; `shape` is empty where only its size in bytes is known."""

    name: str
    dtype: str
    count: int
    stored: int
    shape: tuple[int, ...] = ()

    @property
    def floating(self) -> bool:
        """Whether a load in another dtype converts it (packed and integer tensors stay as they are)."""
        return self.dtype in ("float64", "float32", "float16", "bfloat16")


def tensors_of(path: Path) -> tuple[list[Tensor], list[str]]:
    """Every tensor of a checkpoint (a folder or one file), and words on what could not be read.

    Raises:
        CheckpointError: nothing is there, or a header is damaged; names the file.
    """
    if not path.exists():
        raise CheckpointError(f"no such checkpoint: {path}")
    tensors: list[Tensor] = []
    notes: list[str] = []
    for prefix, file in weight_files(path):
        try:
            found = list(_read(file))
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise CheckpointError(f"{file}: the header cannot be read: {error}") from None
        if not found:
            found = [Tensor(file.stem, "uint8", file.stat().st_size, file.stat().st_size)]
            notes.append(f"{file.name}: no header that we read; its size on disk is counted as it is")
        tensors += (
            [Tensor(f"{prefix}{t.name}", t.dtype, t.count, t.stored, t.shape) for t in found]
            if prefix
            else found
        )
    return tensors, notes


def weight_files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files that hold the weights, each with the prefix of its tensors' names ("" for the top folder).

    One format is taken where a folder has several (safetensors first); an index decides where there is one;
    parts of pipelines (`model_index.json`) and of sentence-transformers (`modules.json`) are followed.
    """
    if path.is_file():
        yield "", path
        return
    top = list(_folder_files(path))
    yield from (("", file) for file in top)
    for part in _parts(path):
        yield from ((f"{part.name}.{prefix}", file) for prefix, file in weight_files(part))
    if not top and not _parts(path):
        nested = sorted(
            p for p in path.rglob("*") if p.suffix in (".safetensors", *TORCH_SUFFIXES, *OTHER_SUFFIXES)
        )
        yield from (("", file) for file in nested if file.name not in NO_WEIGHTS)


def _parts(folder: Path) -> list[Path]:
    names: list[str] = []
    if (folder / "model_index.json").is_file():
        index = read_object(folder / "model_index.json")
        names = [k for k, v in index.items() if isinstance(v, list) and not k.startswith("_")]
    elif (folder / "modules.json").is_file():
        modules = read_json(folder / "modules.json")
        listed = modules if isinstance(modules, list) else []
        names = [str(module.get("path", "")) for module in listed if isinstance(module, dict)]
    return [folder / name for name in names if name and (folder / name).is_dir()]


def _folder_files(folder: Path) -> Iterable[Path]:
    for stem, suffixes in (("model", (".safetensors",)), ("pytorch_model", TORCH_SUFFIXES)):
        for suffix in suffixes:
            index = folder / f"{stem}{suffix}.index.json"
            if index.is_file():
                names = _shards(index)
                missing = [name for name in names if not (folder / name).is_file()]
                if missing:
                    raise CheckpointError(f"{index} names files that are not there: {', '.join(missing[:3])}")
                return [folder / name for name in names]
            if (folder / f"{stem}{suffix}").is_file():
                return [folder / f"{stem}{suffix}"]
    for suffixes in ((".safetensors",), TORCH_SUFFIXES, OTHER_SUFFIXES):
        files = sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.name not in NO_WEIGHTS)
        if files:
            return files
    return []


def _shards(index: Path) -> list[str]:
    """The files that an index names."""
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict):
        raise CheckpointError(f"{index} has no weight_map", hint="fetch the checkpoint again")
    return sorted({str(name) for name in shards.values()})


def _read(file: Path) -> Iterator[Tensor]:
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    if file.suffix in TORCH_SUFFIXES:
        return read_torch_file(file)
    if file.suffix == ".gguf":
        from orchestrator.placement.gguf import read_gguf

        return read_gguf(file)
    return iter(())


def read_safetensors(file: Path) -> Iterator[Tensor]:
    """The tensors that a safetensors file's header declares.

    Raises:
        ValueError: the header is cut short, too long or no JSON, or the file is shorter than it declares.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT + 1
        if length > min(HEADER_LIMIT, size - 8):
            raise ValueError("not a safetensors file, or cut short")
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if 8 + length + end > size:
            raise ValueError(f"{name} ends at byte {8 + length + end}, the file at {size}: cut short")
        shape = tuple(entry["shape"])
        dtype = SAFETENSORS.get(entry["dtype"], entry["dtype"].lower())
        yield Tensor(name, dtype, math.prod(shape), end - begin, shape)


def read_torch_file(file: Path) -> Iterator[Tensor]:
    """The tensors of a torch zip file; nothing for an old one (a bare pickle), whose size then has to do."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        entry = next((i for i in archive.infolist() if i.filename.endswith("data.pkl")), None)
        if entry is None or entry.file_size > PICKLE_LIMIT:
            return
        try:
            state = _Reader(BytesIO(archive.read(entry))).load()
        except Exception:  # something else than tensors is in it
            state = None
        found = list(_walk(state, "", set()))
        yield from found or _storages(archive)  # without names the sizes of the storages tell enough


def _storages(archive: zipfile.ZipFile) -> Iterator[Tensor]:
    for info in archive.infolist():
        folder, _, name = info.filename.rpartition("/")
        if folder.endswith("/data"):
            yield Tensor(f"storage.{name}", "uint8", info.file_size, info.file_size)


@dataclass(frozen=True)
class _Stored:
    key: str
    dtype: str
    shape: tuple[int, ...]


class _State(dict[str, Any]):
    """An OrderedDict's stand-in; unlike a plain dict it takes the attributes that torch gives a state dict."""


class _Inert:
    """What every class and function of a foreign pickle becomes: callable, without effect."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _State
        if module == "torch._utils" and name in (
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v3",
        ):
            return _rebuilt
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in DTYPE_SIZE:
            return name
        return _Inert

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return str(key), kind if isinstance(kind, str) else "float32"


def _rebuilt(storage: tuple[str, str], offset: int, shape: Iterable[int], *more: Any) -> _Stored:
    named = next((x for x in more if isinstance(x, str) and x in DTYPE_SIZE), storage[1])  # v3 says its dtype
    return _Stored(f"{storage[0]}:{offset}", named, tuple(shape))


def _walk(value: Any, name: str, seen: set[tuple[str, tuple[int, ...]]]) -> Iterator[Tensor]:
    if isinstance(value, _Stored):
        if (value.key, value.shape) not in seen:  # tied weights are saved under two names
            seen.add((value.key, value.shape))
            count = math.prod(value.shape)
            yield Tensor(name, value.dtype, count, count * DTYPE_SIZE.get(value.dtype, 4), value.shape)
    elif isinstance(value, dict):
        for key, item in value.items():
            wrapper = not name and key in ("state_dict", "model", "module") and isinstance(item, dict)
            yield from _walk(item, "" if wrapper else f"{name}.{key}" if name else str(key), seen)
