"""Where the vision towers' own folders are: an option, a path in config.json, or the hub's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

__all__ = ["CLIP_HUB", "CONVNEXT_HUB", "find_tower", "has_weights", "read_json", "tower_weights"]

CLIP_HUB = "openai/clip-vit-large-patch14-336"
CONVNEXT_HUB = {
    "large": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    "base": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg",
    "xxlarge": "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
}

WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
)


def find_tower(
    option: Optional[str], configured: Optional[str], checkpoint: Path, hub: str
) -> Tuple[Optional[Path], List[str]]:
    """The tower's folder, or None, and the places that were looked at.

    `option` is what the user gave: a path, or a hub id in the cache; it must exist (FileNotFoundError). Otherwise the
    path in config.json is looked up in the checkpoint's folder, its ancestors and the working folder; then the hub's cache
    on this machine is asked for it, and at last for `hub`.
    """
    if option is not None:
        found = existing(Path(option).expanduser()) or cached(option)
        if found is None:
            raise FileNotFoundError(
                f"there is no vision tower at {option} (neither a folder nor in the hub's cache)"
            )
        return found, [str(option)]
    looked: List[str] = []
    for path in candidates(configured, checkpoint):
        looked.append(str(path))
        if existing(path):
            return path, looked
    for name in dict.fromkeys((configured or hub, hub)):
        looked.append(f"{name} in the hub's cache")
        found = cached(name)
        if found:
            return found, looked
    return None, looked


def candidates(configured: Optional[str], checkpoint: Path) -> Iterator[Path]:
    """Paths that a (usually relative) path of config.json may mean."""
    if not configured:
        return
    path = Path(configured).expanduser()
    if path.is_absolute():
        yield path
        return
    folder = checkpoint.absolute()
    for base in (folder, *folder.parents, Path.cwd()):
        yield base / path


def existing(path: Path) -> Optional[Path]:
    """The path if it is a folder with something in it."""
    return path if path.is_dir() and any(path.iterdir()) else None


def cached(hub: str) -> Optional[Path]:
    """A hub model's folder in this machine's cache, without asking the network."""
    if hub.count("/") != 1 or hub.startswith((".", "/", "~")):
        return None
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub, local_files_only=True))
    except Exception:
        return None  # not cached, an invalid id, or a hub library without that argument: all mean "not here"


def has_weights(folder: Path) -> bool:
    """Whether a tower can be read from that folder: a hub's cache may hold its config.json alone."""
    return any((folder / name).is_file() for name in WEIGHT_FILES)


def tower_weights(folder: Path) -> Path:
    """The weight file of a tower's folder; FileNotFoundError with the names that were looked for."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no weights: none of {', '.join(WEIGHT_FILES)}")


def read_json(path: Path) -> Dict[str, Any]:
    """A JSON file, {} if there is none; ValueError that names the file if it is broken."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def hub_of(configured: Optional[str]) -> str:
    """The hub id of the ConvNeXt that a path names."""
    name = os.path.basename(configured or "").lower()
    size = next((size for size in ("xxlarge", "base") if size in name), "large")
    return CONVNEXT_HUB[size]
