"""The folder of a worker's socket: new, private, with a name that nobody can guess, and short."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from pathlib import Path

import psutil

from orchestrator.errors import WorkerStartError

__all__ = ["make_folder", "remove_folder"]

_LONGEST = 107 - len("/orc-3fffff-f0000000-12345678/s")  # what a unix socket's address can hold
_NAME = re.compile(r"orc-([0-9a-f]{1,7})-([0-9a-f]{1,16})-.+")
_swept: set[tuple[int, str]] = set()


def make_folder() -> Path:
    """A new folder of mode 0700. It cannot have been there before, so nobody can have prepared it.

    Raises:
        WorkerStartError: nowhere is a place for it.
    """
    tried = []
    for base in _bases():
        try:
            _refuse_exchange(base)
            _sweep(base)
            return Path(tempfile.mkdtemp(prefix=f"orc-{os.getpid():x}-{_namespace():x}-", dir=base))
        except OSError as error:
            tried.append(f"{base}: {error.strerror}")
    raise WorkerStartError(
        f"no folder for a socket could be made ({'; '.join(tried) or 'every path is too long'})",
        hint="set TMPDIR to a short path that can be written",
    )


def _bases() -> list[str]:
    """Where it may lie, best first."""
    wanted = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp", os.path.expanduser("~"))  # noqa: S108
    return list(dict.fromkeys(base for base in wanted if base and len(os.fsencode(base)) <= _LONGEST))


def _refuse_exchange(base: str) -> None:
    """Where others can rename what is not theirs, they could put a folder of their own in its place."""
    found = os.stat(base)
    kept = found.st_mode & stat.S_ISVTX or not found.st_mode & 0o022
    if found.st_uid not in (0, os.getuid()) or not kept:
        raise PermissionError(errno.EPERM, "others can exchange what lies in it")


def remove_folder(folder: Path) -> None:
    """Removes it with its socket; not being there is fine."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            entry.unlink(missing_ok=True)  # zmq and the keeper remove it too
        folder.rmdir()


def _sweep(base: str) -> None:
    """Removes, once in a process, the folders of processes that were killed before their keeper was there to do it.

    Only where process ids mean the same: a container that shares the folder has its own.
    """
    if (os.getpid(), base) in _swept:
        return
    _swept.add((os.getpid(), base))
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # another process may be sweeping too
                if _is_left_over(entry):
                    remove_folder(Path(entry.path))


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    """Whether it is the folder of a process of this user's that is gone."""
    named = _NAME.fullmatch(entry.name)
    return (
        named is not None
        and int(named[2], 16) == _namespace() != 0
        and not psutil.pid_exists(int(named[1], 16))
        and entry.is_dir(follow_symlinks=False)
        and entry.stat(follow_symlinks=False).st_uid == os.getuid()
    )


def _namespace() -> int:
    """The process ids' namespace; 0 where it is not known."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
