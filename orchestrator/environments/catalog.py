"""The catalog: the families of the user's project and the built-in ones, found by name or by checkpoint."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orchestrator
from orchestrator.environments.family import Family, read_family
from orchestrator.environments.script import read_script, script_block, script_target
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings

__all__ = ["Catalog", "builtin_root"]

LABEL = re.compile(r"(?P<name>[^\[\]]+)\[(?P<inside>.+)\]$")


def builtin_root() -> Path:
    """The folder that holds the built-in `envs/` and `workers/`, in a wheel and in a checkout alike."""
    package = Path(orchestrator.__file__).resolve().parent
    data = package / "_data"
    return data if data.is_dir() else package.parent


@dataclass(frozen=True)
class Catalog:
    """Folders that hold `envs/` and `workers/`; the first one that has a name wins."""

    roots: tuple[Path, ...]
    _read: dict[Path, tuple[int, Family]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def default(cls, settings: Settings) -> Catalog:
        """The project's own families before the built-in ones."""
        roots = [settings.project.resolve()] if settings.project is not None else []
        return cls(tuple(dict.fromkeys((*roots, builtin_root()))))

    def names(self) -> list[str]:
        """Every family's name, sorted."""
        return sorted(self._folders)

    def get(self, name: str, with_: Sequence[str] = ()) -> Family:
        """The family called `name`, which may be a label: `sentence-embedding[transformers==4.39.3]`.

        `file.py:Class` is a family too: the user's own class, its needs in the file's `# /// script` block.

        Raises:
            ConfigError: there is none, or its declaration is wrong.
        """
        if target := script_target(name):
            named = script_block(target[0]).get("tool", {}).get("orchestrator", {}).get("family", "python")
            script = read_script(*target, self.get(named), self.get("python"))
            return script.variant(with_) if with_ else script
        if label := LABEL.match(name):
            name, with_ = label["name"], (*re.split(r",\s+", label["inside"]), *with_)
        folder = self._folders.get(name)
        if folder is None:
            near = difflib.get_close_matches(name, self.names(), n=1)
            known = ", ".join(self.names()) or "none"
            raise ConfigError(
                f"there is no family {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"known families: {known}",
            )
        family = self._family(folder)
        return family.variant(with_) if with_ else family

    def for_checkpoint(self, checkpoint_id: str) -> Family | None:
        """The family whose `checkpoints` patterns match the id; the longest pattern decides."""
        matches = [
            (len(pattern), name)
            for name in self.names()
            for pattern in self.get(name).checkpoints
            if fnmatch.fnmatchcase(checkpoint_id.lower(), pattern.lower())
        ]
        return self.get(max(matches)[1]) if matches else None

    @property
    def _folders(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for root in self.roots:
            for file in sorted((root / "envs").glob("*/pyproject.toml")):
                found.setdefault(file.parent.name, file.parent)
        return found

    def _family(self, folder: Path) -> Family:
        stamp = (folder / "pyproject.toml").stat().st_mtime_ns
        known = self._read.get(folder)
        if known is None or known[0] != stamp:
            known = self._read[folder] = (stamp, read_family(folder, folder.parent.parent / "workers"))
        return known[1]
