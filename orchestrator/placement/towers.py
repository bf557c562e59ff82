"""Vision towers in folders of their own, found where MiniGemini's worker will find them: nothing is fetched for this."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.placement.files import Tensor

__all__ = ["KEYS", "own_part", "towers_of"]

KEYS = {"mm_vision_tower": "vision_tower.", "mm_vision_tower_aux": "vision_tower_aux."}
"""Keys of config.json, and the mark of a tower that the checkpoint itself carries."""
CLIP_HUB = "openai/clip-vit-large-patch14-336"
CONVNEXT_HUB = {
    "large": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    "base": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg",
    "xxlarge": "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
}
PICTURES = ("vision_model.", "visual.", "vision_tower.")  # what a tower's folder holds beside its text side


def towers_of(
    config: Mapping[str, Any], checkpoint: Path, tensors: Sequence[Tensor], given: Mapping[str, Path]
) -> tuple[list[Path], list[str]]:
    """The towers' folders, and words on those that are not here. `given` replaces what config.json names."""
    found: list[Path] = []
    notes: list[str] = []
    for key, mark in KEYS.items():
        named = config.get(key)
        if key in given:
            found.append(given[key])
        elif isinstance(named, str) and not any(mark in tensor.name for tensor in tensors):
            folder = _find(named, checkpoint) or _cached(named) or _cached(_hub_of(key, named))
            if folder is not None:
                found.append(folder)
            else:
                notes.append(
                    f"{key} {named!r} is not here, neither as a folder nor in the hub's cache: not counted"
                )
    return found, notes


def own_part(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those of a tower's tensors that are loaded: a CLIP's folder often holds its text side too."""
    seeing = [tensor for tensor in tensors if any(mark in tensor.name for mark in PICTURES)]
    return seeing or list(tensors)


def _find(named: str, checkpoint: Path) -> Path | None:
    path = Path(named).expanduser()
    folder = checkpoint.absolute()
    bases = [Path()] if path.is_absolute() else [folder, *folder.parents, Path.cwd()]
    for candidate in [*(base / path for base in bases), checkpoint.parent / path.name]:
        if candidate.is_dir() and any(candidate.iterdir()):
            return candidate
    return None


def _hub_of(key: str, named: str) -> str:
    if key == "mm_vision_tower":
        return CLIP_HUB
    name = Path(named).name.lower()
    return CONVNEXT_HUB[next((size for size in ("xxlarge", "base") if size in name), "large")]


def _cached(hub: str) -> Path | None:
    """The folder of a model in the hub's cache on this machine, at its main revision."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    root = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{hub.replace('/', '--')}"
    try:
        snapshot = root / "snapshots" / (root / "refs" / "main").read_text("ascii").strip()
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None
