"""Which versions of a distribution there are: asked of uv, so that every index, mirror and folder of wheels counts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from orchestrator.environments.uv import refusal, run_uv
from orchestrator.errors import ConfigError
from orchestrator.events import Event, Listener, ignore
from orchestrator.settings import Settings

__all__ = ["newest", "newest_of_each_minor", "releases"]

MOST = 200


def newest(settings: Settings, name: str, specifier: str = "", listener: Listener = ignore) -> Version | None:
    """The newest release that a specifier allows and this machine's indexes have; None when there is none.

    Raises:
        InstallError: the index cannot be asked. ConfigError: the specifier cannot be read.
    """
    try:
        SpecifierSet(specifier)
    except InvalidSpecifier:
        raise ConfigError(
            f"{specifier!r} is not a version specifier", hint="write for example '>=4.36,<4.40'"
        ) from None
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "wanted.in"
        wanted.write_text(f"{name}{specifier}\n", encoding="utf-8")
        done = run_uv(
            settings,
            ["pip", "compile", "--no-deps", "--no-header", "--no-annotate", "-q", str(wanted)],
            listener=listener,
            subject=name,
        )
    if done.returncode == 1 and "No solution found" in done.stderr:
        return None
    if done.returncode != 0:
        raise refusal(f"the versions of {name} cannot be listed", done)
    line = next(line for line in done.stdout.splitlines() if "==" in line)
    return Version(line.partition("==")[2].split(";")[0].strip())


def newest_of_each_minor(
    settings: Settings, name: str, specifier: str, listener: Listener = ignore
) -> list[Version]:
    """The newest patch of every minor version that a specifier allows, oldest first."""
    found: list[Version] = []
    bound = specifier
    while (version := newest(settings, name, bound, listener)) is not None and len(found) < MOST:
        found.append(version)
        bound = _and(specifier, f"<{version.major}.{version.minor}")
        listener(Event("environment", name, f"{len(found)} found, down to {version}"))
    listener(Event("environment", name, f"{len(found)} minor versions", finished=True))
    return found[::-1]


def releases(settings: Settings, name: str, specifier: str, listener: Listener = ignore) -> list[Version]:
    """Every release that a specifier allows, oldest first."""
    found: list[Version] = []
    bound = specifier
    while (version := newest(settings, name, bound, listener)) is not None and len(found) < MOST:
        found.append(version)
        bound = _and(specifier, f"<{version.public}")
        listener(Event("environment", name, f"{len(found)} found, down to {version}"))
    listener(Event("environment", name, f"{len(found)} releases", finished=True))
    return found[::-1]


def _and(specifier: str, more: str) -> str:
    return f"{specifier},{more}" if specifier else more
