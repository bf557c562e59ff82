"""Any `modelscope.pipelines.pipeline(task, model, …)`, in an environment that holds the library at a pin of your choice.

The library imports far more than a task needs: for `multi_modal_embedding` alone all of OFA, and with it fairseq, which
has no wheel and whose build brings a second torch. What is missing and not needed is stood in for, in memory, and
reported in `report["stand_ins"]`; a task that really needs it fails with the name of what is missing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch

from orchestrator.worker import progress
from orchestrator.worker.images import load_image
from orchestrator.worker.inference import CPU, compare, stop_if_cancelled
from orchestrator.worker.tiny import tiny_checkpoint

TINY = Path(__file__).with_name("tiny_checkpoints") / "modelscope_clip.py"
PICTURES = {"multi-modal-embedding": ("img",)}
"""Keys of a task's input that hold pictures and have to be PIL images; other tasks take paths themselves."""
RECORDED = {  # modelscope 1.0.4 (transformers 4.26.1) and 1.40.2 (4.57.6) within 2e-7
    "image": [-0.2234518, -0.2314565, -0.1886293, -0.0853185],
    "text": [0.0009166, 0.1398042, -0.0100417, 0.0954705],
    "scores": [0.2537508, 0.7462492],
}
TOLERANCE = 1e-5


class ModelscopePipeline:
    """One pipeline. `task` is the library's name for it (`multi_modal_embedding` and `multi-modal-embedding` are one).

    Other options go to `pipeline()` as they are. `picture_keys` names the keys of a dict input whose values are made
    PIL images (paths, bytes, arrays or lists of them); it is known for multi-modal embedding.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        task: str,
        picture_keys: Optional[Sequence[str]] = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        self.stand_ins = stand_in_for_missing()
        from modelscope import __version__ as version
        from modelscope.pipelines import pipeline

        self.task = task.replace("_", "-")
        self.picture_keys = tuple(picture_keys if picture_keys is not None else PICTURES.get(self.task, ()))
        device = "gpu" if str(placement.device).startswith("cuda") else "cpu"
        if trust_remote_code:  # not a word of older versions
            options["trust_remote_code"] = True
        # A relative path of one slash would be taken for an id of the hub and looked up on the network.
        self.pipeline = pipeline(self.task, model=os.path.abspath(checkpoint), device=device, **options)
        self.report = {
            "task": self.task,
            "pipeline": type(self.pipeline).__name__,
            "modelscope": version,
            "device": device,
            "stand_ins": list(self.stand_ins),
        }

    def run(self, value: Any, **options: Any) -> Any:
        """`pipeline(value, **options)`: what the published examples write for most tasks."""
        return plain(self.pipeline(self._pictures(value), **options))

    def forward(self, value: Any) -> Any:
        """`pipeline.forward(value)`: what the published examples of multi-modal embedding write.

        For that task `value` is {"img": picture or list} and/or {"text": text or list}; the answer holds
        `img_embedding` and `text_embedding`, (n, dimensions) float32 of length 1, or None.
        """
        with torch.inference_mode():
            return plain(self.pipeline.forward(self._pictures(value)))

    def batch(self, values: Any, **options: Any) -> List[Any]:
        """`run` for each of `values` (or the one value), in their order, one after the other, with progress."""
        values, results = [values] if isinstance(values, (str, bytes, dict)) else list(values), []
        for done, value in enumerate(values):
            stop_if_cancelled()
            results.append(self.run(value, **options))
            progress("inputs", done + 1, len(values))
        return results

    def attribute(self, name: str) -> Any:
        """A value of the pipeline by its dotted name, such as `model.temperature`."""
        value: Any = self.pipeline
        for part in name.split("."):
            if part.startswith("_"):
                raise AttributeError(f"{name}: private")
            value = getattr(value, part)
        return plain(value)

    def close(self) -> None:
        """Give the memory back."""
        del self.pipeline

    def _pictures(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: _opened(item) if key in self.picture_keys else item for key, item in value.items()}

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """The published example of multi-modal embedding and a text task, on tiny seeded checkpoints."""
        rows, columns = np.mgrid[0:45, 0:60]
        picture = np.stack([rows * 5 % 256, columns * 4 % 256, (rows + columns) * 2 % 256], -1).astype(
            np.uint8
        )
        with tiny_checkpoint(TINY, "modelscope-clip-base", seed=0) as checkpoint:
            clip = cls(checkpoint, placement=CPU, task="multi_modal_embedding")
            image = clip.forward({"img": picture})["img_embedding"]
            text = clip.forward({"text": ["一只猫坐在沙发上", "红色的方块"]})["text_embedding"]
        with tiny_checkpoint(TINY, "modelscope-text-classification", seed=0) as checkpoint:
            answer = cls(checkpoint, placement=CPU, task="text-classification").run("我们大家在一起")
        scores = [score for _, score in sorted(zip(answer["labels"], answer["scores"]))]
        return compare({"image": image[0], "text": text[1], "scores": scores}, RECORDED, TOLERANCE)


def plain(value: Any) -> Any:
    """The value with everything the wire cannot carry made plain: tensors to arrays, enums and objects to text."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    known = value is None or isinstance(value, (bool, int, float, str, bytes, np.ndarray))
    return value if known or type(value).__module__.startswith("PIL.") else str(value)


def _opened(value: Any) -> Any:
    return [load_image(item) for item in value] if isinstance(value, (list, tuple)) else load_image(value)


def stand_in_for_missing() -> List[str]:
    """Stand in for what the library imports and these tasks do not use; gives the names of what was stood in for."""
    names = []
    if importlib.util.find_spec("torchvision") is not None and not _torchvision_imports():
        names.append("torchvision's compiled operators")
    if importlib.util.find_spec("fairseq") is None:
        names.append(_without_fairseq())
    return names


def _torchvision_imports() -> bool:
    """Whether torchvision imports by itself; beside a torch of another build its operators are declared empty."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _KEPT.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _KEPT[-1].define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return False
    return True


def _without_fairseq() -> str:
    """modelscope 1.0 takes one name of fairseq; later versions take more, so all of OFA is left out there."""
    import modelscope

    if str(modelscope.__version__).startswith("1.0."):
        _module("fairseq", package=True)
        _module("fairseq.modules", LayerNorm=_layer_norm)
        return "fairseq.modules.LayerNorm"
    ofa = "modelscope.preprocessors.ofa"
    _module(ofa, package=True, __all__=[])
    _module(ofa + ".utils", package=True)
    _module(ofa + ".utils.collate", collate_fn=None)
    _module(ofa + ".utils.constant", OFA_TASK_KEY_MAPPING={})
    return ofa


def _module(name: str, *, package: bool = False, **values: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=package)
    if package:
        module.__path__ = []
    module.__dict__.update(values)
    sys.modules[name] = module


def _layer_norm(shape: Any, eps: float = 1e-5, elementwise_affine: bool = True, export: bool = False) -> Any:  # noqa: ARG001
    """What fairseq.modules.LayerNorm gives where its fused kernel is not installed."""
    return torch.nn.LayerNorm(shape, eps, elementwise_affine)


_KEPT: List[Any] = []  # a torch.library.Library undeclares its operators when it goes
