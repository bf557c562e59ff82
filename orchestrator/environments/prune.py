"""Which environments may go, why, and what that frees."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.environments.catalog import Catalog
from orchestrator.environments.environment import Environment
from orchestrator.environments.family import Family
from orchestrator.environments.sizes import Inodes, Size, scan
from orchestrator.errors import OrchestratorError

__all__ = ["Candidate", "Pruned", "choose", "drop_unused_bytecode", "in_use", "wanted_by"]


@dataclass(frozen=True)
class Candidate:
    """An environment that may go."""

    environment: Environment
    reason: str
    size: Size
    held_by: tuple[int, ...] = ()
    """Processes that run in it; then it stays."""


@dataclass(frozen=True)
class Pruned:
    """What was removed, or with `dry_run` would be."""

    candidates: tuple[Candidate, ...] = ()
    freed: int = 0
    """Bytes, leftovers included; less than the sum of sizes, because files are shared."""
    leftovers: tuple[Path, ...] = field(default=())
    """Folders of builds that were killed."""
    dry_run: bool = False


def choose(
    environments: Sequence[Environment],
    *,
    older_than: float | None,
    max_bytes: int | None,
    wanted: Callable[[Environment], bool] | None,
    last_used: Callable[[str], float],
) -> tuple[list[Candidate], int]:
    """The environments that may go, and the bytes that removing those not in use frees.

    `older_than` is in seconds since the last use. `max_bytes` is what those that remain may hold on their own:
    the least recently used go first. `wanted` says whether a family would still choose it.
    """
    inodes = {environment.id: scan([environment.path]) for environment in environments}
    reasons: dict[str, str] = {}
    for environment in environments:
        age = time.time() - last_used(environment.id)
        if wanted is not None and not wanted(environment):
            reasons[environment.id] = "no family wants it any more"
        elif older_than is not None and age > older_than:
            reasons[environment.id] = f"not used for {age / 86400:.0f} days"
    if max_bytes is not None:
        staying = [e for e in environments if e.id not in reasons]
        for environment in sorted(staying, key=lambda e: last_used(e.id)):
            left = _union(inodes[e.id] for e in staying if e.id not in reasons)
            if left.size().own <= max_bytes:
                break
            reasons[environment.id] = f"the store holds more than {max_bytes} bytes"
    candidates = [
        Candidate(e, reasons[e.id], inodes[e.id].size(), in_use(e.path))
        for e in environments
        if e.id in reasons
    ]
    going = _union(inodes[c.environment.id] for c in candidates if not c.held_by)
    return candidates, going.size().own


def wanted_by(
    catalog: Catalog, labels: Callable[[str], Sequence[str]], find: Callable[[Family], Environment | None]
) -> Callable[[Environment], bool]:
    """Whether a family of the catalog, or a variant that asked for it before, would choose an environment today."""

    def chosen_by(label: str) -> str | None:
        with contextlib.suppress(OrchestratorError):
            found = find(catalog.get(label))
            return None if found is None else found.id
        return None

    plain = {chosen_by(name) for name in catalog.names()}

    def wanted(environment: Environment) -> bool:
        asked = (label for label in (*labels(environment.id), environment.family))
        return environment.id in plain or any(chosen_by(label) == environment.id for label in asked)

    return wanted


def in_use(path: Path) -> tuple[int, ...]:
    """The processes that were started with the interpreter of the environment at `path`."""
    prefix = f"{path}/bin/"
    found: list[int] = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = process.info["cmdline"] or [""]
        if command[0].startswith(prefix):
            found.append(process.info["pid"])
    return tuple(found)


def drop_unused_bytecode(pool: Path) -> None:
    """Removes the shared byte code that no environment links to any more."""
    for file in pool.rglob("*.pyc"):
        with contextlib.suppress(OSError):
            if file.stat().st_nlink == 1:
                file.unlink()
    for shelf in pool.glob("*/*"):
        if not any(shelf.rglob("*.pyc")):
            shutil.rmtree(shelf, ignore_errors=True)


def _union(parts: Iterable[Inodes]) -> Inodes:
    everything = Inodes()
    for part in parts:
        everything.add(part)
    return everything
