"""What tests wait for, with a limit that nothing but a hang reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

LONG = 60.0
"""Seconds after which a test has hung; nothing is ever measured against it."""


def until(condition: Callable[[], object], seconds: float = LONG) -> None:
    """Waits for `condition`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process is gone; a zombie holds nothing."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
