"""What a worker leaves behind when its keeper was killed and could not see to it: known by a mark in its environment."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

__all__ = ["MARK", "kill_marked"]

MARK = "ORCHESTRATOR_WORKER"
"""The variable that every process below a worker inherits, in whatever session it is."""
_LOOKS = 5  # one may be forking while it is looked for


def kill_marked(mark: str) -> None:
    """Kills every process whose environment bears `mark`."""
    for _ in range(_LOOKS):
        found = _marked(f"{MARK}={mark}".encode())
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _marked(wanted: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # gone, or another user's
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
