"""Hugging Face and ModelScope: found in those libraries' own caches, fetched by those libraries.

A cache is read directly first: that needs no library, no network and no time (modelscope asks the network even for
what it has). Only what is not there is asked of the library, which lives in the extra `hub`.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.checkpoint_json import read_object
from orchestrator.checkpoints.locate import is_model_folder
from orchestrator.checkpoints.spec import Spec
from orchestrator.errors import CheckpointError
from orchestrator.events import Event, Listener
from orchestrator.settings import TRUE

__all__ = ["Snapshot", "fetch_huggingface", "fetch_modelscope"]

COMMIT = re.compile(r"[0-9a-f]{40}$")
OTHER_FORMATS = [
    "*.h5", "*.ot", "*.msgpack", "*.tflite", "*.onnx", "onnx/*", "openvino/*", "coreml/*", "*.mlmodel",
]  # fmt: skip
WHOLE = ("pytorch_model", "model", "consolidated", "optimizer", "scheduler", "training_args", "rng_state")
"""How files begin that hold a whole model, or what training left; others (BGE-M3's colbert_linear.pt) are parts of it."""


@dataclass(frozen=True)
class Snapshot:
    """A repository at one revision, on this machine."""

    path: Path
    revision: str


def fetch_huggingface(spec: Spec, listener: Listener, *, offline: bool, refresh: bool = False) -> Snapshot:
    """A snapshot in huggingface_hub's cache (HF_HOME, HF_HUB_CACHE), fetched by it if need be (HF_ENDPOINT, HF_TOKEN).

    Raises:
        CheckpointError: it is not there and cannot be fetched.
    """
    cache = huggingface_cache(os.environ)
    folder = cache / f"models--{spec.id.replace('/', '--')}"
    here = _cached_huggingface(folder, spec.revision)
    silenced = next((v for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _true(v)), None)
    pinned = spec.revision is not None and COMMIT.match(spec.revision)
    if here is not None and (offline or silenced or pinned or not refresh):
        return here
    if offline or silenced:
        why = (
            f"{silenced} is set"
            if silenced
            else "the network may not be asked (--offline, ORCHESTRATOR_OFFLINE)"
        )
        raise _missing(spec, folder, why, f"unset {silenced}" if silenced else "run once without --offline")
    try:
        library = importlib.import_module("huggingface_hub")
    except ImportError:
        if here is not None:
            return here
        raise _missing(
            spec, folder, "huggingface_hub is not installed", "pip install 'compat-orchestrator[hub]'"
        ) from None
    return _download_huggingface(library, spec, folder, here, listener)


def fetch_modelscope(spec: Spec, listener: Listener, *, offline: bool, refresh: bool = False) -> Snapshot:
    """A snapshot in modelscope's cache (MODELSCOPE_CACHE), fetched by it if need be.

    Layouts that do not record their revision are not taken for a pinned one.

    Raises:
        CheckpointError: it is not there and cannot be fetched.
    """
    cache = modelscope_cache(os.environ)
    owner, _, name = spec.id.partition("/")
    folder = cache / "models" / f"{owner}--{name}"
    here = _cached_modelscope(cache, folder, spec)
    if here is not None and (offline or not refresh):
        return here
    if offline:
        raise _missing(
            spec,
            folder,
            "the network may not be asked (--offline, ORCHESTRATOR_OFFLINE)",
            "run once without --offline",
        )
    try:
        library = importlib.import_module("modelscope")
    except ImportError:
        if here is not None:
            return here
        raise _missing(
            spec, folder, "modelscope is not installed", "pip install 'compat-orchestrator[hub]'"
        ) from None
    return _download_modelscope(library, spec, folder, here, listener)


def huggingface_cache(environ: Mapping[str, str]) -> Path:
    """The cache folder, by the library's own rules."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            return Path(environ[variable]).expanduser()
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def modelscope_cache(environ: Mapping[str, str]) -> Path:
    """The cache folder, by the library's own rules."""
    return Path(environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()


def _cached_huggingface(folder: Path, revision: str | None) -> Snapshot | None:
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text("utf-8").strip() if reference.is_file() else revision
    found = [folder / "snapshots" / commit] if commit else []
    if revision and re.match(r"[0-9a-f]{7,}$", revision):  # a short hash is what people copy
        found += sorted((folder / "snapshots").glob(f"{revision}*"))
    if any(folder.glob("blobs/*.incomplete")):
        return None
    return next((Snapshot(path, path.name) for path in found if path.is_dir() and looks_whole(path)), None)


def looks_whole(folder: Path) -> bool:
    """Whether a snapshot has its weights: hubs fill the folder file by file, and a fetch may have been cut short."""
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        try:
            shards = set(read_object(index)["weight_map"].values())
        except (CheckpointError, KeyError, AttributeError):  # the index itself was cut short
            return False
        return all((folder / shard).exists() for shard in shards)
    if (folder / "config.json").is_file() or (folder / "modules.json").is_file():
        return is_model_folder(folder)
    return any(folder.iterdir())


def _copies(names: Sequence[str]) -> list[str]:
    """The files whose weights are in a safetensors file of the same folder as well."""
    folders = {PurePosixPath(name).parent for name in names if name.endswith(".safetensors")}
    return [
        name
        for name in names
        if name.endswith((".bin", ".pt", ".pth"))
        and PurePosixPath(name).parent in folders
        and PurePosixPath(name).name.startswith(WHOLE)
    ]


def _download_huggingface(
    library: Any, spec: Spec, folder: Path, here: Snapshot | None, listener: Listener
) -> Snapshot:
    try:
        listener(Event("checkpoint", spec.text, "asking the hub"))
        info = library.HfApi().model_info(spec.id, revision=spec.revision)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        ignored = [*OTHER_FORMATS, *_copies(names)]
        listener(Event("checkpoint", spec.text, f"fetching {info.sha[:8]}"))
        path = library.snapshot_download(spec.id, revision=info.sha, ignore_patterns=ignored)
    except Exception as error:
        if here is not None and spec.revision is None:
            return here
        raise _refused(
            spec, folder, error, "HF_ENDPOINT names a mirror, HF_TOKEN opens gated models"
        ) from error
    listener(Event("checkpoint", spec.text, f"{info.sha[:8]} is here", finished=True))
    return Snapshot(Path(path), str(info.sha))


def _cached_modelscope(cache: Path, folder: Path, spec: Spec) -> Snapshot | None:
    snapshots = folder / "snapshots"
    if spec.revision is not None:
        found = [snapshots / spec.revision]
    else:
        found = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
    found = [
        path for path in found if path.is_dir() and any(path.iterdir())
    ]  # a failed try leaves an empty one
    if len(found) == 1:
        return Snapshot(found[0], found[0].name)
    return next(
        (old for root in ("hub", "models", "hub/models") if (old := _legacy(cache / root, spec))), None
    )


def _legacy(root: Path, spec: Spec) -> Snapshot | None:
    """A folder of an old layout, if its own record names a revision and that is the wanted one."""
    for name in dict.fromkeys((spec.id, spec.id.replace(".", "___"))):
        record = root / name / ".mv"
        match = re.match(r"Revision:([^,\s]+)", record.read_text("utf-8")) if record.is_file() else None
        if match and spec.revision in (None, match[1]):
            return Snapshot(root / name, match[1])
    return None


def _download_modelscope(
    library: Any, spec: Spec, folder: Path, here: Snapshot | None, listener: Listener
) -> Snapshot:
    try:
        listener(Event("checkpoint", spec.text, "asking the hub"))
        path = Path(library.snapshot_download(spec.id, revision=spec.revision))
    except Exception as error:
        if here is not None:
            return here
        raise _refused(
            spec, folder, error, "MODELSCOPE_ENDPOINT names the hub, MODELSCOPE_API_TOKEN opens it"
        ) from error
    listener(Event("checkpoint", spec.text, "is here", finished=True))
    revision = spec.revision or (path.name if path.parent.name == "snapshots" else "master")
    return Snapshot(path, revision)


def _true(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in TRUE - {""}


def _missing(spec: Spec, folder: Path, why: str, remedy: str) -> CheckpointError:
    at = f" at {spec.revision}" if spec.revision else ""
    return CheckpointError(
        f"checkpoint {spec.text!r}: {spec.id}{at} is not in the cache ({folder}), and {why}",
        hint=f"{remedy}; or give the path of a folder that holds the model",
    )


def _refused(spec: Spec, folder: Path, error: Exception, remedy: str) -> CheckpointError:
    words = str(error).strip().splitlines() or [type(error).__name__]
    return CheckpointError(
        f"checkpoint {spec.text!r} cannot be fetched: {type(error).__name__}: {words[0]}\nlooked in {folder}",
        hint=f"{remedy}; or give the path of a folder that holds the model",
    )
