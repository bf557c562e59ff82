"""Shared memory without a name: memfd descriptors, sealed so that no peer can make a reader fault."""

from __future__ import annotations

import fcntl
import os

__all__ = ["available", "is_sealed", "readable", "sealed"]

_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_ADD_SEALS, _GET_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033), getattr(fcntl, "F_GET_SEALS", 1034)


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
        os.posix_fallocate(fd, 0, capacity)  # fails now if memory is short, not with SIGBUS later
        fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
