"""What a worker says about itself."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any, Dict

from orchestrator.worker.messages import PROTOCOL
from orchestrator.worker.segments import available

__all__ = ["facts"]


def facts(times: Dict[str, float]) -> Dict[str, Any]:
    """The contents of HELLO. numpy's version is read, not imported: its import waits for the load."""
    return {
        "protocol": PROTOCOL,
        "pid": os.getpid(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("pyzmq", "msgpack", "numpy")},
        "capabilities": ["segments"] if available() else [],
        "byteorder": sys.byteorder,
        "times": times,
    }


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
