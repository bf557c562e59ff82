"""An environment: a folder that was built, checked and published, and what is on record about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.environments.records import read_json

__all__ = ["MARKER", "Environment", "read_environment", "read_recipe", "site_packages"]

MARKER = "orchestrator.json"
"""The last file written into an environment: a folder without it was never finished."""


@dataclass(frozen=True)
class Environment:
    """A finished environment. Its folder is never changed; another content is another environment."""

    id: str
    family: str
    """The label of the family that it was asked for by; other families may share it."""
    path: Path
    python: Path
    """The environment's interpreter."""
    python_version: str
    versions: Mapping[str, str]
    """Distribution -> version, of everything installed."""
    modules_cache: Path
    """For `HF_MODULES_CACHE`: remote code of two versions of transformers must not share a folder."""
    torch_backend: str = "none"
    created: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds that each step of the build took."""
    borrowed: bool = False
    """Whether it is somebody else's interpreter, used as it is."""


def read_environment(path: Path, home: Path, label: str | None = None) -> Environment | None:
    """The finished environment in a folder; None where there is none, or its interpreter is gone."""
    record = read_json(path / MARKER)
    python = path / "bin" / "python"
    if record is None or record.get("id") != path.name or not python.exists():  # also a link to a removed one
        return None
    try:
        recipe = record["recipe"]
        return Environment(
            id=record["id"],
            family=label or recipe["label"],
            path=path,
            python=python,
            python_version=recipe["interpreter"]["version"],
            versions=record["versions"],
            modules_cache=home / "modules" / record["id"],
            torch_backend=recipe["torch_backend"],
            created=record["created"],
            timings=record["timings"],
        )
    except (KeyError, TypeError):  # another version's marker: it is built anew when it is wanted
        return None


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe that the environment in a folder was built from, as its marker has it."""
    record = read_json(path / MARKER)
    return None if record is None else record.get("recipe")


def site_packages(path: Path) -> Path:
    """The folder that an environment's distributions are in."""
    found = sorted((path / "lib").glob("python3.*/site-packages"))
    return found[0] if found else path / "lib" / "site-packages"
