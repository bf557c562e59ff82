"""What the library is told of devices, without torch."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from types import SimpleNamespace

WORKER = Path(__file__).parents[3] / "workers" / "qwen2_vl"


def test_budgets_make_up_for_what_the_library_keeps_back_to_quantize() -> None:
    package = sys.modules.setdefault("qwen2_vl_parts", types.ModuleType("qwen2_vl_parts"))
    package.__path__ = [str(WORKER)]
    loading = importlib.import_module("qwen2_vl_parts.loading")
    planned = {"0": 22_548_578_304, "1": 1_000_000_007}
    placement = SimpleNamespace(
        device="cuda:0", devices=("GPU-1", "GPU-2"), device_map="sequential", max_memory=planned
    )
    plain = loading._device_arguments(placement, quantized=False)
    assert plain == {"device_map": "sequential", "max_memory": {0: planned["0"], 1: planned["1"]}}
    small = loading._device_arguments(placement, quantized=True)["max_memory"]
    left = {key: budget * 0.90 for key, budget in small.items()}  # as its quantizers compute it
    assert all(planned[str(key)] <= budget < planned[str(key)] + 1 for key, budget in left.items())
