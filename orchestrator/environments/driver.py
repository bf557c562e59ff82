"""Whether an NVIDIA driver is at work here, found without torch."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path

__all__ = ["cuda_driver"]

KERNEL_MODULE = Path("/proc/driver/nvidia/version")
SEEN = "unknown"


@lru_cache(maxsize=1)
def cuda_driver() -> str | None:
    """The newest CUDA that the driver runs (`12.8`), `unknown` where it does not say, None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return SEEN if KERNEL_MODULE.exists() else None
    try:
        if pynvml.nvmlDeviceGetCount() == 0:
            return None
        version: int = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return f"{version // 1000}.{version % 1000 // 10}"
    except pynvml.NVMLError:
        return SEEN
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
