"""Is an environment still what was installed? Every file against its RECORD hash, then the import probe."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.utils import canonicalize_name

from orchestrator.environments.environment import Environment, site_packages
from orchestrator.events import Event, Listener, ignore

__all__ = ["Fault", "Verification", "check_files"]


@dataclass(frozen=True)
class Fault:
    """One file that is not as it was installed."""

    distribution: str
    file: str
    """Relative to the environment's folder."""
    kind: Literal["missing", "changed", "unreadable"]
    shared: bool = False
    """Whether the file is a hard link: then uv's cache, and other environments, have the same damage."""


@dataclass(frozen=True)
class Verification:
    """What checking one environment has shown."""

    environment: Environment
    files: int
    bytes: int
    faults: tuple[Fault, ...]
    probe_error: str | None
    """What the import probe said, or None if it passed."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults and self.probe_error is None


@dataclass(frozen=True)
class Expected:
    """A file as RECORD describes it."""

    distribution: str
    path: Path
    algorithm: str
    digest: str


def check_files(environment: Environment, listener: Listener = ignore) -> Verification:
    """Reads every installed file. The probe is not run here."""
    started = time.perf_counter()
    site = site_packages(environment.path)
    faults = list(_missing_distributions(environment, site))
    expected = list(_expected(site))
    total = 0
    # hashlib lets other threads run, so this is as fast as the cores and the disk are.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, (size, fault) in enumerate(
            pool.map(lambda item: _compare(item, environment.path), expected), 1
        ):
            total += size
            if fault is not None:
                faults.append(fault)
            if done % 2000 == 0:
                listener(Event("environment", environment.family, "verifying", done, len(expected), "files"))
    return Verification(environment, len(expected), total, tuple(faults), None, time.perf_counter() - started)


def _missing_distributions(environment: Environment, site: Path) -> Iterator[Fault]:
    present = {
        canonicalize_name(info.name.removesuffix(".dist-info").rpartition("-")[0]): info
        for info in site.glob("*.dist-info")
    }
    for name in environment.versions:
        info = present.get(canonicalize_name(name))
        if info is None or not (info / "RECORD").is_file():
            where = site / f"{name}-*.dist-info" if info is None else info / "RECORD"
            yield Fault(name, str(where.relative_to(environment.path)), "missing")


def _expected(site: Path) -> Iterator[Expected]:
    for record in site.glob("*.dist-info/RECORD"):
        name = canonicalize_name(record.parent.name.removesuffix(".dist-info").rpartition("-")[0])
        with record.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                if len(row) >= 2 and "=" in row[1]:
                    algorithm, _, digest = row[1].partition("=")
                    yield Expected(name, site / row[0], algorithm, digest)


def _compare(expected: Expected, root: Path) -> tuple[int, Fault | None]:
    path = Path(os.path.normpath(expected.path))
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            found = hashlib.file_digest(file, expected.algorithm).digest()
    except FileNotFoundError:
        return 0, Fault(expected.distribution, shown, "missing")
    except (OSError, ValueError):
        return 0, Fault(expected.distribution, shown, "unreadable")
    if base64.urlsafe_b64encode(found).rstrip(b"=").decode() == expected.digest.rstrip("="):
        return status.st_size, None
    return status.st_size, Fault(expected.distribution, shown, "changed", shared=status.st_nlink > 1)
