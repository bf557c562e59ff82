"""Runs in the family's environment: bytes of a checkpoint's weights, and the peak of resident memory while it loads.

usage: python memory_use.py SMALL CHECKPOINT DTYPE
"""

import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
from orchestrator.worker.family import import_family  # noqa: E402

small, checkpoint, dtype = sys.argv[1:]
model_class = import_family(str(ROOT / "workers" / "qwen2_vl"), "Qwen2VL")


def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {key}")


placement = SimpleNamespace(
    device="cpu", devices=["cpu"], device_map="cpu", max_memory={}, dtype=dtype, threads=2
)
model_class(small, placement=placement)
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
before = memory("VmRSS")
model = model_class(checkpoint, placement=placement).model
weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
print(json.dumps([weights, memory("VmHWM") - before]))
