"""Runs in a family's environment: bytes of a checkpoint's weights, and the peak of resident memory while it loads.

usage: python memory_use.py ROOT SMALL CHECKPOINT DTYPE…     (a line for each dtype, loaded one after the other)
"""

import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace

root, small, checkpoint, *dtypes = sys.argv[1:]
sys.argv[1:] = [root, str(Path(small).parent)]
sys.path.insert(0, str(Path(__file__).parent))
import inside  # noqa: E402


def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {key}")


def load(folder, dtype):
    placement = SimpleNamespace(device="cpu", device_map="cpu", max_memory={}, dtype=dtype)
    return inside.MODEL(folder, placement=placement)


for dtype in dtypes:
    load(small, dtype)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = memory("VmRSS")
    model = load(checkpoint, dtype)
    modules = (model.loaded.language, model.loaded.images)
    weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    print(json.dumps([dtype, weights, memory("VmHWM") - before]))
    del model, modules
