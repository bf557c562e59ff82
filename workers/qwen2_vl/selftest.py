"""Numbers recorded for tiny seeded checkpoints: whether an environment computes what this family's pins compute.

Recorded on transformers 5.23.0 (torch 2.13.0, CPU, float32); 4.57.6 and 4.45.2 gave them within 4e-6. One of the two
pictures needs resizing, so that another image backend (0.002 off) shows as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import numpy as np

from orchestrator.worker.inference import CPU, compare, version_of
from orchestrator.worker.tiny import tiny_checkpoint

__all__ = ["run"]

TOLERANCE = 2e-4
FIRST_VERSION = {"qwen2-vl": (4, 45), "qwen2.5-vl": (4, 49), "qwen3-vl": (4, 57)}
RECORDED: Dict[str, List[float]] = {
    "qwen2-vl features": [0.129692, -0.051965, 0.706531, 0.981603, 0.091962, -0.296869],
    "qwen2-vl logits": [0.864638, 0.106529, -0.200044, 0.678399, -0.791778, 0.729129],
    "qwen2-vl tokens": [534, 243, 350, 243, 110, 501],
    "qwen2-vl clip": [0.733662, 0.439745, -0.699271, 1.78712, 0.753461, -0.24634],
    "qwen2.5-vl features": [-0.325397, -0.689761, 0.524731, -0.483593, -0.903562, 0.360429],
    "qwen2.5-vl logits": [0.500131, 1.549769, 1.724552, -1.025574, -0.830337, 1.261613],
    "qwen2.5-vl tokens": [416, 557, 399, 213, 113, 591],
    "qwen2.5-vl clip": [0.799634, 0.946391, 1.256628, -0.03138, -0.2682, 0.204556],
    "qwen3-vl features": [0.245323, -0.026934, 1.258463, -1.47967, -0.704674, -0.066822],
    "qwen3-vl logits": [1.373468, 0.688566, 0.013386, -0.312554, 0.180492, 0.328594],
    "qwen3-vl tokens": [508, 350, 350, 350, 234, 501],
}


def run(worker: Any, makers: Path) -> Dict[str, Any]:
    """Picture features, logits, a greedy answer and a clip's logits for every generation that this version knows."""
    import transformers

    styles = [style for style, first in FIRST_VERSION.items() if version_of(transformers) >= first]
    got: Dict[str, Any] = {}
    for style in styles:
        with tiny_checkpoint(makers, style) as checkpoint:
            got.update(
                (f"{style} {name}", value) for name, value in _numbers(worker(checkpoint, placement=CPU))
            )
    recorded = {name: values for name, values in RECORDED.items() if name.split()[0] in styles}
    return compare(got, recorded, TOLERANCE)


def _numbers(model: Any) -> Any:
    """Names with flat arrays; the clip only where versions agree on its prompt (Qwen3-VL's changed)."""
    pictures = [_drawn(56, 84, 0), _drawn(75, 100, 1)]
    seen = model.forward(images=pictures, prompt="Describe the red boat.")
    yield "features", seen["image_features"][1][0, :6]
    yield "logits", seen["logits"][-1, :6]
    answer = model.generate(
        images=pictures, prompt="Describe the red boat.", max_new_tokens=6, return_ids=True
    )
    yield "tokens", np.asarray(answer["token_ids"])
    if not model.report["model_type"].startswith("qwen3"):
        clip = np.stack([_drawn(112, 84, phase) for phase in range(4)])
        yield "clip", model.forward(videos=[clip], video_fps=2.0, prompt="What is it?")["logits"][-1, :6]


def _drawn(height: int, width: int, phase: int) -> np.ndarray:
    """A picture, (height, width, 3) uint8."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [
        (rows * 3 + phase * 80) % 256,
        (columns * 2 + phase * 50) % 256,
        (rows + columns + phase * 20) % 256,
    ]
    return np.stack(channels, axis=-1).astype(np.uint8)
