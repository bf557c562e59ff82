"""Finding the checkpoint inside an unpacked package or folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import CheckpointError

__all__ = ["is_model_folder", "locate", "within"]

WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
LISTED = 8


def locate(root: Path, inside: str | None, spec: str) -> Path:
    """The one checkpoint in `root` (or at `inside` it): a model folder, else a .gguf, else a .pth or .pt file.

    Raises:
        CheckpointError: there is none, or more than one and `inside` does not say which.
    """
    start = root if inside is None else within(root, inside, spec)
    if start.is_file() or is_model_folder(start):
        return start
    for find in (_model_folders, _files(".gguf"), _files(".pth", ".pt")):
        found = find(start)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path.relative_to(root)) for path in found[:LISTED])
            raise CheckpointError(
                f"checkpoint {spec!r} holds {len(found)} checkpoints: {names}",
                hint=f"say which one: {spec.partition('#')[0]}#{found[0].relative_to(root)}",
            )
    content = _content(start)
    raise CheckpointError(
        f"checkpoint {spec!r} holds no model folder (config.json and weights), .gguf or .pth; it holds: {content}",
        hint=None if inside else "a file or folder in it is named by #path/inside",
    )


def within(root: Path, inside: str, spec: str) -> Path:
    """`root/inside`, which must exist and must not lead out of `root`.

    Raises:
        CheckpointError: it does not, or does.
    """
    path = root / inside
    if not path.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(f"checkpoint {spec!r}: {inside!r} leads out of the package")
    if not path.exists():
        here = path.parent if path.parent.is_dir() else root
        content = _content(here)
        raise CheckpointError(
            f"checkpoint {spec!r} has no {inside!r}",
            hint=f"{here.name} holds: {content}",
        )
    return path


def is_model_folder(folder: Path) -> bool:
    """Whether transformers (or sentence-transformers) would load it: metadata with weights beside or below."""
    if (folder / "modules.json").is_file():
        return True
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in WEIGHTS)


def _model_folders(start: Path) -> list[Path]:
    folders = sorted({path.parent for name in ("config.json", "modules.json") for path in start.rglob(name)})
    found: list[Path] = []
    for folder in folders:  # parents sort before their children: parts of a model folder are not models
        if is_model_folder(folder) and not any(folder.is_relative_to(outer) for outer in found):
            found.append(folder)
    return found


def _files(*suffixes: str) -> Callable[[Path], list[Path]]:
    return lambda start: sorted(
        path for path in start.rglob("*") if path.suffix in suffixes and path.is_file()
    )


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:LISTED]) or "nothing"
