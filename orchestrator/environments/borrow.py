"""Borrowing the torch layer: torch's own distributions from an interpreter that has them, by their RECORDs.

Vendor images ship a torch that no index has. Its files are linked into the new environment, those of torch's
distributions and no others; the interpreter that lends them is not changed.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from packaging.utils import canonicalize_name

from orchestrator.environments.environment import site_packages
from orchestrator.environments.existing import Existing, look_into
from orchestrator.environments.interpreters import Interpreter
from orchestrator.environments.requirements import in_torch_layer, name_of, parse
from orchestrator.errors import InstallError, ResolutionError
from orchestrator.settings import Settings

__all__ = ["PREFIX", "lend", "take"]

PREFIX = "borrow:"
"""`ORCHESTRATOR_TORCH_BACKEND=borrow:/path/to/python`."""
OPTIONAL = {"torchvision", "torchaudio"}
"""They are taken only where the family needs them: built for another torch they break its import."""


def lend(
    settings: Settings, label: str, backend: str, bounds: Iterable[str], interpreter: Interpreter
) -> Mapping[str, str]:
    """What `backend` has of the torch layer: folder of a `.dist-info` -> digest of its RECORD.

    Raises:
        InterpreterNotFound: it names no interpreter.
        ResolutionError: its Python or its torch is not one that the family allows.
    """
    python = Path(backend.removeprefix(PREFIX)).expanduser()
    lender = look_into(settings, python)
    if lender.minor != interpreter.minor:
        raise ResolutionError(
            f"{label}: {python} is Python {lender.version}, and the environment is to be {interpreter.version}",
            hint=f"narrow the family's requires-python to =={lender.minor}.* and lock it again",
        )
    for text in bounds:
        version = lender.distributions.get(name_of(text))
        if version is None or not parse(text).specifier.contains(version, prereleases=True):
            raise ResolutionError(f"{label} needs {text}, and {python} has {version or 'none'}")
    wanted = {name_of(text) for text in bounds}
    infos = [info for name, info in _torch_infos(lender) if name not in OPTIONAL - wanted]
    return {str(info): _record_digest(info) for info in infos}


def take(folder: Path, lent: Iterable[str]) -> int:
    """Links the files of the lent distributions into the environment at `folder`; returns their number.

    Raises:
        InstallError: a distribution has no RECORD, or a file of it is missing.
    """
    site, count = site_packages(folder), 0
    for info in map(Path, lent):
        source = info.parent
        for name in _files(info):
            target = site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _link(source / name, target)
            except OSError as error:
                raise InstallError(f"{source / name} cannot be borrowed: {error.strerror}") from None
            count += 1
    return count


def _torch_infos(lender: Existing) -> Iterator[tuple[str, Path]]:
    seen: set[str] = set()
    for site in lender.sites:
        for info in sorted(site.glob("*.dist-info")):
            name = canonicalize_name(info.name.removesuffix(".dist-info").rpartition("-")[0])
            if in_torch_layer(name) and name not in seen:
                seen.add(name)
                yield name, info


def _record_digest(info: Path) -> str:
    try:
        return sha256((info / "RECORD").read_bytes()).hexdigest()
    except OSError:
        raise InstallError(
            f"{info} has no RECORD: it does not say which files are its own, and cannot be borrowed",
            hint="run the family in that interpreter as it is: python = '…' in [tool.orchestrator]",
        ) from None


def _files(info: Path) -> Iterator[str]:
    """The distribution's files inside `site-packages`; its console scripts stay where they are."""
    with (info / "RECORD").open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            name = os.path.normpath(row[0]) if row else ""
            if name and not name.startswith(("..", "/")) and not name.endswith(".pyc"):
                yield name


def _link(source: Path, target: Path) -> None:
    real = source.resolve(strict=True)
    try:
        os.link(real, target)
    except FileExistsError:
        return
    except OSError:  # another file system, or a read-only layer of an image: a link by name then, or a copy
        try:
            target.symlink_to(real)
        except OSError:
            shutil.copy2(real, target)
