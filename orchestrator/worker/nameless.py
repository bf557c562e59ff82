"""Shared memory without a name: memfd descriptors, sealed so that no peer can make a reader fault."""

from __future__ import annotations

import fcntl
import mmap
import os
from functools import lru_cache

__all__ = ["HUGE_PAGES", "available", "huge_pages", "is_sealed", "readable", "sealed"]

_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_ADD_SEALS, _GET_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033), getattr(fcntl, "F_GET_SEALS", 1034)
_POPULATE_WRITE = getattr(mmap, "MADV_POPULATE_WRITE", 23)  # Linux 5.14
_HUGE_PAGE = 2 << 20
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"
"""The folder with the kernel's switches."""


def available() -> bool:
    """Whether this system has nameless shared memory."""
    return hasattr(os, "memfd_create")


def sealed(capacity: int) -> int:
    """The descriptor of new shared memory, whose length nobody can change.

    Raises:
        OSError: there is no memory for it, or no descriptor.
    """
    fd = os.memfd_create("orchestrator", getattr(os, "MFD_CLOEXEC", 1) | getattr(os, "MFD_ALLOW_SEALING", 2))
    try:
        os.ftruncate(fd, capacity)
        if capacity >= _HUGE_PAGE and huge_pages() == "advise":
            _populate(fd, capacity)
        os.posix_fallocate(fd, 0, capacity)  # fails now if memory is short, not with SIGBUS later
        fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


@lru_cache(None)
def huge_pages() -> str:
    """Whether shared memory gets huge pages: `always`, `within_size`, `advise` (where they are asked for, as here),
    `never` (what Linux begins with), or an empty text where the system does not say."""
    try:
        chosen = _chosen("hugepages-2048kB/shmem_enabled")
    except OSError:  # before Linux 6.8 there is one switch for all sizes
        chosen = "inherit"
    try:
        return _chosen("shmem_enabled") if chosen == "inherit" else chosen
    except OSError:
        return ""


def _chosen(switch: str) -> str:
    with open(os.path.join(HUGE_PAGES, switch)) as file:
        text = file.read()
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else ""


def _populate(fd: int, capacity: int) -> None:
    """Fills it with huge pages, as far as there are some."""
    with mmap.mmap(fd, capacity) as memory:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(_POPULATE_WRITE)
        except OSError:
            pass  # small ones are given after this, or it fails there


def readable(fd: int) -> int:
    """A descriptor of the same memory that can only be read, to be lent on.

    Raises:
        OSError: this system has none.
    """
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def is_sealed(fd: int) -> bool:
    """Whether nobody can change the length of what a descriptor stands for.

    Raises:
        OSError: it cannot be sealed: it is another kind of file.
    """
    return bool(fcntl.fcntl(fd, _GET_SEALS) & _SEALS == _SEALS)
