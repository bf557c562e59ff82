"""Any `transformers.pipeline(task, model, …)`, in any version of the library."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np
import torch
import transformers
from transformers import pipeline

from orchestrator.worker import progress
from orchestrator.worker.images import load_image
from orchestrator.worker.inference import CPU, compare, dtype_argument, map_batches, stop_if_cancelled
from orchestrator.worker.tiny import tiny_checkpoint

TINY = Path(__file__).with_name("tiny_checkpoints") / "bert_mnli.py"
RECORDED = {"scores": [0.1299055, 0.2787042, 0.243759]}  # transformers 4.36.2, 4.39.3 and 5.23.0 within 2e-7
TOLERANCE = 1e-5


class TransformersPipeline:
    """One pipeline. `task` is the library's name for it, such as "text-classification" or "image-to-text".

    Other options go to `pipeline()` as they are. Where a task takes pictures, a uint8 array (height, width, 3) or
    bytes are taken for one; paths go through as they are.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        task: str,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        known = _tasks()
        if task not in known and not task.startswith("translation_"):
            raise ValueError(
                f"transformers {transformers.__version__} has no task {task!r}; it has: {', '.join(sorted(known))}"
            )
        self.pipeline = pipeline(
            task,
            model=checkpoint,
            trust_remote_code=trust_remote_code,
            **_placed(placement),
            **options,
        )
        self.task = task
        self.report = {
            "task": task,
            "pipeline": type(self.pipeline).__name__,
            "transformers": transformers.__version__,
            "dtype": str(self.pipeline.model.dtype),
            "device": str(self.pipeline.device),
        }

    def run(self, value: Any, **options: Any) -> Any:
        """`pipeline(value, **options)`; a list of inputs gives a list of results in their order."""
        return plain(self._call(pictures(value), options))

    def batch(self, values: Any, *, batch_size: int = 8, **options: Any) -> List[Any]:
        """The results of `values`, in their order, in batches with progress; a batch that does not fit is halved.

        One value is a list of one: a text is not its letters, a mapping not its keys.
        """

        def some(chosen: List[Any]) -> List[Any]:
            results: List[Any] = plain(self._call(pictures(chosen), {"batch_size": len(chosen), **options}))
            return results

        return map_batches(some, _several(values), batch_size, what="inputs")

    def each(self, values: Any, **options: Any) -> Iterator[Any]:
        """Streams the result of each of `values`, or of the one value, as it comes."""
        values = _several(values)
        for done, value in enumerate(values):
            stop_if_cancelled()
            yield self.run(value, **options)
            progress("inputs", done + 1, len(values))

    def close(self) -> None:
        """Give the memory back."""
        del self.pipeline

    @torch.inference_mode()
    def _call(self, value: Any, options: Dict[str, Any]) -> Any:
        if isinstance(value, dict) and self.task in KEYWORD_TASKS:
            return self.pipeline(**value, **options)
        return self.pipeline(value, **options)

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Classify three texts with a tiny seeded classifier; hold the scores against recorded ones."""
        texts = ["the dog plays football in the water", "a red car", "it is fast"]
        with tiny_checkpoint(TINY, "bert-mnli-named", seed=0) as checkpoint:
            model = cls(checkpoint, placement=CPU, task="text-classification")
            results = model.batch(texts, batch_size=2, top_k=None)
        scores = [entry["score"] for result in results for entry in result if entry["label"] == "entailment"]
        return compare({"scores": scores}, RECORDED, TOLERANCE)


KEYWORD_TASKS = ("zero-shot-classification", "question-answering", "table-question-answering")
"""Tasks whose inputs are keyword arguments (`sequences`, `candidate_labels`; `question`, `context`)."""


def _several(values: Any) -> List[Any]:
    return [values] if isinstance(values, (str, bytes, dict)) else list(values)


def _tasks() -> List[str]:
    from transformers.pipelines import PIPELINE_REGISTRY

    names: List[str] = list(PIPELINE_REGISTRY.get_supported_tasks())
    return names


def _placed(placement: Any) -> Dict[str, Any]:
    """Where the model goes: one device, or accelerate's map when it is spread over several."""
    arguments = dtype_argument(placement.dtype)
    if "dtype" in arguments and "dtype" not in inspect.signature(pipeline).parameters:
        arguments = {"torch_dtype": arguments["dtype"]}
    spread = isinstance(placement.device_map, dict) and len(set(placement.device_map.values())) > 1
    if spread:
        return {**arguments, "device_map": placement.device_map}
    if placement.device_map == "sequential":
        budgets = {
            int(name) if str(name).isdigit() else name: size for name, size in placement.max_memory.items()
        }
        return {**arguments, "device_map": "sequential", "model_kwargs": {"max_memory": budgets}}
    return {**arguments, "device": torch.device(placement.device)}


def pictures(value: Any) -> Any:
    """The value with uint8 arrays and bytes made PIL images, at any depth."""
    if isinstance(value, (bytes, bytearray)) or (
        isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    ):
        return load_image(value)
    if isinstance(value, dict):
        return {key: pictures(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [pictures(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """The value with everything the wire cannot carry made plain: tensors to arrays, other objects to text."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    known = value is None or isinstance(value, (bool, int, float, str, bytes, np.ndarray))
    return value if known or type(value).__module__.startswith("PIL.") else str(value)
