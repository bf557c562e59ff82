"""Byte code shared between environments: what the import probe of one has compiled is linked into the next.

Distributions come from uv's cache as hard links, so a file's content, size and time are the same in every
environment, and Python accepts byte code made in another. It is written by rename and never changed in place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from orchestrator.environments.environment import site_packages

__all__ = ["keep", "reuse"]


def reuse(path: Path, pool: Path) -> int:
    """Links the byte code that the pool has into the environment at `path`; returns the number of files."""
    site, count = site_packages(path), 0
    made: set[Path] = set()
    for info, shelf in _shelves(site, pool):
        for source in shelf.rglob("*.pyc") if shelf.is_dir() else ():
            target = site / source.relative_to(shelf)
            if target.parent not in made:
                if not target.parent.parent.is_dir():
                    continue
                target.parent.mkdir(exist_ok=True)
                made.add(target.parent)
            count += _link(source, target)
        del info
    return count


def keep(path: Path, pool: Path) -> int:
    """Links the byte code in the environment at `path` into the pool; returns the number of files."""
    site, count = site_packages(path), 0
    for info, shelf in _shelves(site, pool):
        for source in _compiled(site, info):
            target = shelf / source.relative_to(site)
            target.parent.mkdir(parents=True, exist_ok=True)
            count += _link(source, target)
    return count


def _shelves(site: Path, pool: Path) -> Iterator[tuple[Path, Path]]:
    tag = site.parent.name
    for info in sorted(site.glob("*.dist-info")):
        try:
            record = (info / "RECORD").read_bytes()
        except OSError:
            continue
        name = info.name.removesuffix(".dist-info")
        yield info, pool / tag / f"{name}-{sha256(record).hexdigest()[:16]}"


def _compiled(site: Path, info: Path) -> Iterator[Path]:
    folders: dict[Path, None] = {}
    for line in (info / "RECORD").read_text(encoding="utf-8", errors="replace").splitlines():
        name = line.partition(",")[0]
        if name.endswith(".py") and not name.startswith(("..", "/")):
            folders[(site / name).parent] = None
    for folder in folders:
        cache = folder / "__pycache__"
        if folder != site and cache.is_dir():  # modules directly in site-packages share their cache folder
            yield from cache.glob("*.pyc")


def _link(source: Path, target: Path) -> int:
    try:
        os.link(source, target)
    except OSError:  # there already, another file system, or too many links: it is compiled anew instead
        return 0
    return 1
