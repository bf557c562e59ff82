"""Which copy of each vision weight is used: the checkpoint's own or the tower folder's, as the original code decides.

* CLIP: the checkpoint's copy wins whenever its shards with patch-mining weights hold one, whatever config.json says.
* ConvNeXt: the tower folder's, unless `optimize_vision_tower_aux` is true.
* A copy that the original would not look at is used when there is no other, and the report says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

from .places import CLIP_HUB, find_tower, has_weights, hub_of, read_json, tower_weights
from .weights import Tensors

__all__ = ["Source", "VisionSources", "vision_sources"]

MARKERS = ("vlm_uni", "vision_fpn", "vision_stages")  # shards with such names are read for vision weights
CLIP_MARK, CLIP_ROOT = "vision_tower.vision_tower.", "vision_model."
AUX_MARK, TRUNK = "vision_tower_aux.", "visual.trunk."
IGNORED = ("embeddings.position_ids",)  # a buffer that old versions stored


class Source(NamedTuple):
    """Tensors of one tower, by the tower's own parameter names."""

    tensors: Tensors
    names: Dict[str, str]
    origin: str

    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Shape by the tower's own names."""
        return {own: self.tensors.shape(stored) for own, stored in self.names.items()}


class VisionSources(NamedTuple):
    """Everything that the vision side is made from."""

    clip: Source
    convnext: List[Source]
    clip_config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    convnext_name: str
    notes: List[str]


def vision_sources(
    checkpoint: Path,
    tensors: Tensors,
    config: Mapping[str, Any],
    vision_tower: Optional[str] = None,
    vision_tower_aux: Optional[str] = None,
) -> VisionSources:
    """Find both towers. Raises FileNotFoundError that lists every place when a tower is nowhere."""
    notes: List[str] = []
    read_by_original = {
        entry.file for name, entry in tensors.entries.items() if any(mark in name for mark in MARKERS)
    }
    configured, configured_aux = config.get("mm_vision_tower"), config.get("mm_vision_tower_aux")
    folder, looked = find_tower(vision_tower, configured, checkpoint, CLIP_HUB)
    folder_aux, looked_aux = find_tower(vision_tower_aux, configured_aux, checkpoint, hub_of(configured_aux))
    clip = clip_source(tensors, read_by_original, folder, notes)
    if clip is None:
        raise missing("CLIP", "vision_tower", CLIP_HUB, looked)
    trained = bool(config.get("optimize_vision_tower_aux", False))
    convnext = convnext_sources(tensors, read_by_original, folder_aux, trained, notes)
    if not convnext:
        raise missing("ConvNeXt", "vision_tower_aux", hub_of(configured_aux), looked_aux)
    here = folder or checkpoint
    return VisionSources(
        clip=clip,
        convnext=convnext,
        clip_config=read_json(here / "config.json") if folder else {},
        preprocessor=read_json(here / "preprocessor_config.json"),
        convnext_name=f"{configured_aux or ''} {folder_aux or ''}",
        notes=notes,
    )


def clip_source(
    tensors: Tensors, read: Set[Path], folder: Optional[Path], notes: List[str]
) -> Optional[Source]:
    """CLIP's weights: the checkpoint's, else the folder's."""
    inside = {
        name.split(CLIP_MARK, 1)[1].replace(CLIP_ROOT, "", 1): name
        for name in tensors.entries
        if CLIP_MARK in name and not name.endswith(IGNORED)
    }
    seen = any(tensors.entries[name].file in read for name in inside.values())
    weightless = folder is None or not has_weights(folder)
    if inside and (seen or weightless):
        return Source(tensors, inside, "checkpoint")
    if folder is None:
        return None
    if inside:
        notes.append(
            "the checkpoint's CLIP lies in shards without patch-mining weights, which the original code does not read: "
            f"CLIP is taken from {folder}"
        )
    own = Tensors([tower_weights(folder)])
    names = {
        name[name.index(CLIP_ROOT) + len(CLIP_ROOT) :]: name for name in own.entries if CLIP_ROOT in name
    }
    names = names or {
        name: name for name in own.entries if name.startswith(("embeddings.", "encoder.", "pre_"))
    }
    return Source(own, {name: stored for name, stored in names.items() if name not in IGNORED}, str(folder))


def convnext_sources(
    tensors: Tensors, read: Set[Path], folder: Optional[Path], trained: bool, notes: List[str]
) -> List[Source]:
    """ConvNeXt's stem and stages, each from the checkpoint or from the folder; [] when a part is nowhere."""
    own = Tensors([tower_weights(folder)]) if folder and has_weights(folder) else None
    sources: List[Source] = []
    for part in ("vision_stem", "vision_stages"):
        inside = {
            name.split(AUX_MARK, 1)[1]: name for name in tensors.entries if f"{AUX_MARK}{part}." in name
        }
        outside: Dict[str, str] = {}
        if own is not None:
            stored = own.with_prefix(TRUNK + part.replace("vision_", "") + ".")
            outside = {f"{part}.{rest}": name for rest, name in stored.items()}
        wanted = trained and any(tensors.entries[name].file in read for name in inside.values())
        if inside and (wanted or not outside):
            sources.append(Source(tensors, inside, "checkpoint"))
            if not wanted:
                notes.append(f"ConvNeXt's {part} is the checkpoint's copy: its own folder was not found")
        elif outside and own is not None:
            sources.append(Source(own, outside, str(folder)))
        else:
            return []
    return sources


def missing(tower: str, option: str, hub: str, looked: List[str]) -> FileNotFoundError:
    """The error for a tower that is nowhere."""
    places = "; ".join(dict.fromkeys(looked))
    return FileNotFoundError(
        f"the {tower} tower is neither in the checkpoint nor found elsewhere; looked at: {places}. Give {option}= a "
        f"folder, or 'hf:{hub}', which is fetched"
    )
