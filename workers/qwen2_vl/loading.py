"""Weights into the library's model: dtype always stated, no silent offload, nothing missing, nothing left on meta."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import sys
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

from orchestrator.worker import progress
from orchestrator.worker.inference import dtype_argument, version_of

from .mapped import PageReturn

__all__ = ["MODEL_TYPES", "load_model"]

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
QUANTIZED_PART = 0.9
"""What the library leaves of each budget where it quantizes; ours have that room taken off already."""


def load_model(
    checkpoint: str,
    placement: Any,
    *,
    attn_implementation: Optional[str] = None,
    quantization: Optional[Mapping[str, Any]] = None,
) -> Any:
    """The model of `checkpoint` in eval mode on the placement's devices; `quantization` is for bitsandbytes.

    Raises ValueError for another model type, ImportError without bitsandbytes where it is needed, RuntimeError when
    weights are missing, offloaded unasked or on meta.
    """
    _let_torchvision_import()
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"{checkpoint} is a {config.model_type} checkpoint; this family serves {', '.join(MODEL_TYPES)}. "
            "`orchestrator family suggest` names the family of a checkpoint."
        )
    options: Dict[str, Any] = dtype_argument(placement.dtype)
    options.update(_device_arguments(placement, quantized=bool(quantization)))
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if quantization:
        options["quantization_config"] = _bitsandbytes(quantization)
    if version_of(transformers) < (5, 0):
        options["low_cpu_mem_usage"] = True
    give_back = PageReturn(checkpoint)
    with _told_as_progress(give_back):
        model, info = _model_class(config).from_pretrained(
            checkpoint, config=config, local_files_only=True, output_loading_info=True, **options
        )
    give_back(now=True)
    _check(model, info, placement)
    _quiet_defaults(model)
    return model.eval()


def _model_class(config: Any) -> Any:
    import transformers

    # AutoModelForImageTextToText came with 4.46; 4.45 knows Qwen2-VL by its class only
    automatic = getattr(transformers, "AutoModelForImageTextToText", None)
    return automatic if automatic is not None else getattr(transformers, config.architectures[0])


def _device_arguments(placement: Any, *, quantized: bool) -> Dict[str, Any]:
    """`device_map` and `max_memory`: on one device nothing is offloaded unless RAM has a budget too."""
    if not isinstance(placement.device_map, str):
        return {"device_map": dict(placement.device_map)}
    if len(placement.devices) <= 1 and not _offloads(placement):
        return {"device_map": {"": placement.device}}
    kept = QUANTIZED_PART if quantized else 1.0
    budgets = {
        int(key) if str(key).isdigit() else key: math.ceil(value / kept)
        for key, value in placement.max_memory.items()
    }
    return {"device_map": placement.device_map, **({"max_memory": budgets} if budgets else {})}


def _offloads(placement: Any) -> bool:
    """Whether layers may stay in RAM: it has a budget beside a GPU's."""
    return placement.device_map != "cpu" and "cpu" in placement.max_memory


def _bitsandbytes(settings: Mapping[str, Any]) -> Any:
    """The library's configuration; ImportError that names the extra where bitsandbytes is missing."""
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "loading in 8 or 4 bits needs bitsandbytes, which this environment does not have; load the family with its "
            "extra, with_=['quantization']"
        )
    return BitsAndBytesConfig(**settings)


def _check(model: Any, info: Dict[str, Any], placement: Any) -> None:
    missing = sorted(info.get("missing_keys") or ())
    mismatched = [str(entry[0]) for entry in info.get("mismatched_keys") or ()]
    if missing or mismatched:
        kinds = (("missing", missing), ("of another shape", mismatched))
        found = "; ".join(_some(name, keys) for name, keys in kinds if keys)
        raise RuntimeError(
            f"the checkpoint does not hold the whole model: {found}. The library would fill in random numbers."
        )
    on_meta = sorted(name for name, tensor in model.named_parameters() if tensor.device.type == "meta")
    asked = placement.device_map if not isinstance(placement.device_map, str) else {}
    away = {str(device) for device in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk"}
    away -= {placement.device, *map(str, asked.values())}
    if _offloads(placement):  # accelerate keeps what is in RAM on meta between two calls
        on_meta, away = [], away - {"cpu"}
    if on_meta or away:
        where = ", ".join(sorted(away)) or "meta"
        raise RuntimeError(
            f"the model does not fit the devices it was given: parts of it went to {where} "
            f"({_some('parameters on meta', on_meta)}). Give it more or larger devices, a smaller dtype, or an "
            "explicit device_map."
        )


def _some(what: str, names: List[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f": {shown}" if names else "")


def _quiet_defaults(model: Any) -> None:
    """Drop the checkpoint's own sampling numbers (top_k 1 among them): every call here states what it wants.

    What is left (eos, pad, repetition penalty) is part of the checkpoint's answers and stays.
    """
    for name, neutral in (("do_sample", False), ("temperature", 1.0), ("top_p", 1.0), ("top_k", 50)):
        setattr(model.generation_config, name, neutral)


@contextlib.contextmanager
def _told_as_progress(each: Callable[[], None]) -> Iterator[None]:
    """The library's loading bars (shards on 4.x, tensors on 5.x) told to the client instead of drawn.

    `each` is called at every step of theirs.
    """
    from transformers.utils import logging

    def bar(_: Any, args: Any, kwargs: Any) -> _Bar:
        return _Bar(*args, each=each, **kwargs)

    if hasattr(logging, "set_tqdm_hook"):
        before = logging.set_tqdm_hook(bar)
        try:
            yield
        finally:
            logging.set_tqdm_hook(before)
        return
    original = logging.tqdm
    logging.tqdm = functools.partial(_Bar, each=each)
    try:
        yield
    finally:
        logging.tqdm = original


class _Bar:
    """What the library uses of tqdm: iteration, `update`, and being a context."""

    def __init__(
        self,
        iterable: Any = None,
        *,
        each: Callable[[], None],
        total: Optional[int] = None,
        desc: str = "",
        **_: Any,
    ) -> None:
        self.each = each
        self.iterable = iterable
        self.total = total if total is not None else len(iterable) if hasattr(iterable, "__len__") else None
        self.message = desc or "loading"
        self.done = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update(1)

    def update(self, count: int = 1) -> None:
        """Tell about every hundredth of the way only: 5.x counts single tensors."""
        self.done += count
        self.each()
        if self.total and (self.done * 100 // self.total > (self.done - count) * 100 // self.total):
            progress(self.message, self.done, self.total)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


def _let_torchvision_import() -> None:
    """Let an installed torchvision import whose compiled part does not fit this torch.

    The registry's build beside a CPU build of torch fails on `operator torchvision::nms does not exist`, and from then
    on the library fails on AutoProcessor. Declaring the two operators is enough for the import; nothing here calls them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        operators = torch.library.Library("torchvision", "DEF")
        operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(operators)


_KEPT: List[Any] = []
"""Operator declarations end with the object that made them."""
