"""`tiny:STYLE[@SEED]`: small random checkpoints in a published layout, made on the spot and kept.

They let examples and tests run where no hub is; their answers mean nothing, and every checkpoint says so.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from filelock import FileLock

from orchestrator.environments.catalog import builtin_root
from orchestrator.errors import CheckpointError
from orchestrator.events import Event, Listener, ignore

__all__ = ["TinyStore", "make_tiny", "tiny_styles"]

Maker = Callable[[Path, int], None]


@dataclass(frozen=True)
class TinyStore:
    """Tiny checkpoints under `folder`, one for each style, seed and state of the code that makes it."""

    folder: Path

    def revision(self, style: str, seed: int) -> str:
        """What the weights depend on: the seed, and the code that makes them.

        Raises:
            CheckpointError: there is no such style.
        """
        return f"{seed}-{hashlib.sha256(_module_of(style).read_bytes()).hexdigest()[:8]}"

    def fetch(self, style: str, seed: int, listener: Listener = ignore) -> Path:
        """The folder of a style, made if it is not here. Safe to use from many threads and processes.

        Raises:
            CheckpointError: there is no such style.
        """
        path = self.folder / f"{style}-{self.revision(style, seed)}"
        if path.is_dir():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{path.name}.lock"):
            if not path.is_dir():
                listener(Event("checkpoint", f"tiny:{style}", "making random weights"))
                part = path.with_name(f".{path.name}.part")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                make_tiny(style, part, seed)
                part.rename(path)
                listener(Event("checkpoint", f"tiny:{style}", "random weights", finished=True))
        return path


def make_tiny(style: str, destination: Path, seed: int = 0) -> None:
    """Writes a tiny checkpoint of `style` into the existing folder `destination`.

    Raises:
        CheckpointError: there is no such style.
    """
    tiny_styles(_module_of(style))[style](destination, seed)


def tiny_styles(module: Path | None = None) -> dict[str, Maker]:
    """What makes each style: of one module, or of all modules in `workers/tiny_checkpoints`."""
    from orchestrator.worker.tiny import load_styles

    found: dict[str, Maker] = {}
    for path in _modules() if module is None else [module]:
        found.update(load_styles(path))
    return found


def _module_of(style: str) -> Path:
    by_style = {name: path for path in _modules() for name in tiny_styles(path)}
    if style not in by_style:
        near = get_close_matches(style, by_style, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise CheckpointError(
            f"there is no tiny checkpoint {style!r}", hint=f"{hint}styles are {', '.join(sorted(by_style))}"
        )
    return by_style[style]


def _modules() -> list[Path]:
    return sorted((builtin_root() / "workers" / "tiny_checkpoints").glob("*.py"))
