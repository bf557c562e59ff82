"""One line that says what a benchmark ran on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata

import psutil

__all__ = ["describe"]


def describe() -> str:
    """Processor, cores, memory, kernel, Python, the libraries that matter, load and date."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("pyzmq", "numpy", "msgpack", "uv"))
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, {versions}; "
        f"load {os.getloadavg()[0]:.1f}, {datetime.now(UTC):%Y-%m-%d}"
    )
