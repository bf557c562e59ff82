"""How much disk environments take, with what is shared told apart: most of their files are hard links."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Inodes", "Size", "scan"]


@dataclass(frozen=True)
class Size:
    """Bytes of one or several environments, each file counted once."""

    total: int
    own: int
    """What nothing else links to: the bytes that removing them frees."""

    @property
    def shared(self) -> int:
        """What uv's cache or other environments have too."""
        return self.total - self.own


class Inodes:
    """The files below some folders by identity, with the number of names that they have there."""

    def __init__(self) -> None:
        self.names: Counter[tuple[int, int]] = Counter()
        self.sizes: dict[tuple[int, int], tuple[int, int]] = {}

    def add(self, other: Inodes) -> None:
        """Adds the files of another collection."""
        self.names.update(other.names)
        self.sizes.update(other.sizes)

    def size(self) -> Size:
        """A file is their own when every name that it has is among theirs."""
        total = sum(size for size, _ in self.sizes.values())
        own = sum(size for key, (size, links) in self.sizes.items() if links <= self.names[key])
        return Size(total, own)


def scan(paths: Iterable[Path]) -> Inodes:
    """Reads the sizes and links of all files below `paths`."""
    found = Inodes()
    for path in paths:
        for entry in _files(str(path)):
            status = entry.stat(follow_symlinks=False)
            key = (status.st_dev, status.st_ino)
            found.names[key] += 1
            found.sizes[key] = (status.st_blocks * 512, status.st_nlink)
    return found


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        elif entry.is_file(follow_symlinks=False):
            yield entry
