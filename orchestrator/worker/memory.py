"""Memory: how much there is at this moment, how running out of it is recognised, and a way to run out at will.

`ORCHESTRATOR_INJECT_OUT_OF_MEMORY` is an aid for tests of the out-of-memory ladder. Entries, separated by commas:
`3` the third batch that this worker computes fails, `>8` so does every batch of more than 8 items, `call:2` so does
the second call, before it begins.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from typing import Any, Dict, List, Optional, Tuple

__all__ = ["INJECT", "Shortages", "is_out_of_memory", "memory_now", "release_memory", "shortages"]

INJECT = "ORCHESTRATOR_INJECT_OUT_OF_MEMORY"
_WORDS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory",
    "cublas_status_alloc_failed", "cudnn_status_alloc_failed",
)  # fmt: skip
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the host's memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def release_memory() -> None:
    """Gives back what nothing refers to any more, on the host and on the GPU."""
    gc.collect()
    torch = _torch()
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def memory_now() -> Dict[str, Dict[str, int]]:
    """Bytes by device as this process sees them: `used` by this process, `free` for it, `total`.

    On a GPU `used` is what torch has taken from the driver, the CUDA context not counted.
    """
    found = {"cpu": _host()}
    torch = _torch()
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            used = torch.cuda.memory_reserved(index)
            found[f"cuda:{index}"] = {"used": int(used), "free": int(free), "total": int(total)}
    return found


class Shortages:
    """What `ORCHESTRATOR_INJECT_OUT_OF_MEMORY` asks for; counts batches and calls from 1."""

    def __init__(self, text: str = "") -> None:
        self.batches, self.calls, self.above = _parse(text)
        self._batch = self._call = 0

    def batch(self, size: int) -> None:
        """A batch of `size` items begins.

        Raises:
            RuntimeError: "out of memory", where one is to be injected.
        """
        self._batch += 1
        if self._batch in self.batches or (self.above is not None and size > self.above):
            raise RuntimeError(f"out of memory (injected, batch {self._batch} of {size} items)")

    def call(self) -> None:
        """A call begins; raises as `batch` does."""
        self._call += 1
        if self._call in self.calls:
            raise RuntimeError(f"out of memory (injected, call {self._call})")


def _parse(text: str) -> Tuple[List[int], List[int], Optional[int]]:
    batches: List[int] = []
    calls: List[int] = []
    above = None
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = re.match(r"(call:|>)?(\d+)$", entry)
        if match is None:
            raise ValueError(f"{INJECT}: {entry!r} is none of 3, >8 and call:2")
        number = int(match.group(2))
        if match.group(1) == ">":
            above = number
        else:
            (calls if match.group(1) else batches).append(number)
    return batches, calls, above


shortages = Shortages(os.environ.get(INJECT, ""))


def _torch() -> Any:
    """torch if the family has imported it."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "cuda") else None


def _host() -> Dict[str, int]:
    """Resident bytes of this process; free and total RAM, a control group's limit counted."""
    total, free = _kilobytes("/proc/meminfo", "MemTotal"), _kilobytes("/proc/meminfo", "MemAvailable")
    for folder, limit_name, used_name in _groups():
        limit, used = _number(folder + limit_name), _number(folder + used_name)
        if limit is not None and used is not None and 0 < limit < _UNLIMITED:
            total, free = min(total, limit), min(free, max(0, limit - used))
    return {"used": _kilobytes("/proc/self/status", "VmRSS"), "free": free, "total": total}


def _groups() -> List[Tuple[str, str, str]]:
    found = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found.append((f"/sys/fs/cgroup{path.rstrip('/')}/", "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            folder = f"/sys/fs/cgroup/memory{path.rstrip('/')}/"
            found.append((folder, "memory.limit_in_bytes", "memory.usage_in_bytes"))
    return found


def _kilobytes(path: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _read(path), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def _number(path: str) -> Optional[int]:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
