"""How a process ended, in words; the kernel's OOM killer told apart from other SIGKILLs."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

__all__ = ["describe", "oom_kills"]


def describe(returncode: int | None, *, by_us: bool = False, out_of_memory: bool = False) -> str:
    """`returncode` as in `subprocess`, as the end of a sentence that begins with the worker's name."""
    if returncode is None:
        return "is still running"
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if out_of_memory:
        return "was killed by the kernel because memory ran out (OOM killer)"
    return f"was ended by us with {name}" if by_us else f"was killed by {name}"


def oom_kills() -> int:
    """OOM kills so far: of this process's control group where that is known, else of the whole machine."""
    for path, key in _sources():
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
    return 0


def _sources() -> list[tuple[Path, str]]:
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers == "":
                found.append((Path("/sys/fs/cgroup" + place) / "memory.events", "oom_kill"))
            elif "memory" in controllers.split(","):
                found.append((Path("/sys/fs/cgroup/memory" + place) / "memory.oom_control", "oom_kill"))
    return [*found, (Path("/proc/vmstat"), "oom_kill")]
