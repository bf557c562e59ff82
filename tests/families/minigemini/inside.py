"""Runs in a family's environment: every `check_*` of the modules beside it, one JSON line each.

usage: python inside.py ROOT SCRATCH     (ROOT is the checkout, SCRATCH a folder for tiny checkpoints)
"""

import importlib
import json
import sys
import traceback
import types
import warnings
from pathlib import Path

import numpy as np

root, scratch = Path(sys.argv[1]), Path(sys.argv[2])
package = types.ModuleType("orchestrator")  # of which a worker sees `orchestrator.worker` only
package.__path__ = [str(root / "orchestrator")]
sys.modules["orchestrator"] = package
sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")

from orchestrator.worker.family import import_family  # noqa: E402
from orchestrator.worker.inference import CPU  # noqa: E402
from orchestrator.worker.tiny import Weights, load_styles  # noqa: E402

MODULES = ("checks_vision", "checks_loading", "checks_answers", "checks_pictures")
sys.modules["inside"] = sys.modules["__main__"] if __name__ == "__main__" else sys.modules[__name__]
MODEL = import_family(str(root / "workers" / "minigemini"), "MiniGemini")
FAMILY = MODEL.__module__.rsplit(".", 1)[0]


def part(name):
    """A module of the worker."""
    return importlib.import_module(f"{FAMILY}.{name}")


def make(style, seed=0, *, blank=False, **geometry):
    """The folder of a new tiny checkpoint; a `blank` one holds no drawn numbers, which takes no time."""
    folder = scratch / f"{style}-{len(list(scratch.iterdir()))}" / style
    folder.mkdir(parents=True)
    maker = load_styles(root / "workers" / "tiny_checkpoints" / "minigemini.py")[style]
    if blank:
        maker.func.__globals__["Weights"] = Blank
    maker.func(folder, seed, **maker.keywords, geometry=geometry)
    return folder


class Blank(Weights):
    """Zeros in place of seeded numbers."""

    def normal(self, name, *shape, scale=0.0):
        self.arrays[name] = np.zeros(shape, np.float32)


def load(folder, **options):
    """The worker's class on the CPU in float32."""
    return MODEL(str(folder), placement=CPU, **options)


def picture(height=50, width=80, phase=0):
    """uint8 (height, width, 3), without symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 5 + phase, columns * 3 + rows * columns % 7, (rows - columns) * (phase + 2)]
    return (np.stack(channels, -1) % 256).astype(np.uint8)


def refused(call, *words, error=(ValueError, OSError)):
    """`call` must raise `error` with all `words` in its text."""
    try:
        call()
    except error as caught:
        text = str(caught)
    else:
        raise AssertionError(f"nothing was refused; expected {words}")
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"


def main():
    for module in MODULES:
        for name, check in sorted(vars(importlib.import_module(module)).items()):
            if name.startswith("check_"):
                try:
                    check()
                    problem = None
                except Exception:
                    problem = traceback.format_exc()
                print(json.dumps({"check": name, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
