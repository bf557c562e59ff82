"""What families built on PyTorch share: the dtype argument, batches with progress, the out-of-memory ladder, self-tests.

torch and transformers are imported when a function needs them: this module itself needs numpy only.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

import numpy as np

from orchestrator.worker import cancelled, progress
from orchestrator.worker.context import current
from orchestrator.worker.memory import is_out_of_memory, release_memory, shortages

__all__ = [
    "CPU",
    "dtype_argument",
    "dtype_on",
    "torch_dtype",
    "map_batches",
    "once_more",
    "release_memory",
    "compare",
    "texts_of",
    "pairs_of",
    "pair_length",
    "known_name",
    "version_of",
]

Item = TypeVar("Item")
Row = TypeVar("Row")

CPU = SimpleNamespace(
    device="cpu", devices=("cpu",), device_map="cpu", max_memory={}, dtype="float32", threads=1
)
"""A placement for self-tests and for using a worker's class without the orchestrator."""


def version_of(module: Any) -> tuple[int, int]:
    """Major and minor version of a module."""
    numbers = re.findall(r"\d+", str(module.__version__))
    return int(numbers[0]), int(numbers[1])


def torch_dtype(name: str) -> Any:
    """torch's dtype of that name; "auto" stays "auto" (the checkpoint's own)."""
    import torch

    return name if name == "auto" else getattr(torch, name)


def dtype_on(placement: Any, half_on_gpu: bool) -> str:
    """The placement's dtype; with `half_on_gpu` float16 where the device is a GPU, which is slow in it on a CPU."""
    return "float16" if half_on_gpu and str(placement.device).startswith("cuda") else str(placement.dtype)


def dtype_argument(name: str) -> Dict[str, Any]:
    """The dtype as a keyword of `from_pretrained`: `dtype` from transformers 4.56 on, `torch_dtype` before.

    It is always given: the default differs (4.x float32, 5.x the checkpoint's), which would change answers in silence.
    """
    import transformers

    keyword = "dtype" if version_of(transformers) >= (4, 56) else "torch_dtype"
    return {keyword: torch_dtype(name)}


def map_batches(
    function: Callable[[List[Item]], Sequence[Row]],
    items: Sequence[Item],
    batch_size: int,
    *,
    length: Optional[Callable[[Item], int]] = None,
    what: str = "items",
) -> List[Row]:
    """`function` over `items` in batches; the rows come back in the order of `items`.

    With `length`, batches are made of items of like length, longest first, so that little is computed on padding and a
    lack of memory shows at once. When a batch does not fit, the cache is freed and it is tried once more; after that
    its size is halved and kept, and the work goes on from where it was. Each step is noted with the call. A single item
    that does not fit raises. Stops with CancelledError between batches when the call was cancelled.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    order = list(range(len(items)))
    if length is not None:
        lengths = [length(item) for item in items]
        order.sort(key=lambda index: -lengths[index])
    rows: List[Any] = [None] * len(items)
    done = 0
    freed = False
    while done < len(order):
        stop_if_cancelled()
        chosen = order[done : done + batch_size]
        results = attempt(function, [items[index] for index in chosen], last=freed and len(chosen) == 1)
        if results is None:
            if freed:
                batch_size = len(chosen) // 2
                current.recovered(f"batches of {batch_size}")
            else:
                freed = True
                current.recovered(f"freed the cache (batches of {len(chosen)})")
            release_memory()
            continue
        if len(results) != len(chosen):
            raise RuntimeError(f"a batch of {len(chosen)} {what} gave {len(results)} results")
        for index, row in zip(chosen, results):
            rows[index] = row
        done += len(chosen)
        progress(what, done, len(items))
    return rows


def once_more(function: Callable[[], Row]) -> Row:
    """`function()`; where memory runs out, a second time with the cache freed, which is noted with the call.

    For work that no batch can make smaller; `function` begins anew, seeds included.
    """
    rows = attempt(lambda _: [function()], [None], last=False)
    if rows is None:
        current.recovered("freed the cache")
        release_memory()
        rows = attempt(lambda _: [function()], [None], last=True)
    assert rows is not None  # the last attempt raises
    return rows[0]


def texts_of(texts: Union[str, Sequence[str]]) -> List[str]:
    """`texts` as a list; a single string is a list of one (its letters are not taken for texts).

    Raises:
        TypeError: one of them is no str; names its place.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] is a {type(text).__name__}, not a str")
    return texts


def pairs_of(pairs: Sequence[Sequence[str]]) -> List[Tuple[str, str]]:
    """The pairs of query and text, each checked.

    Raises:
        TypeError: one of them is not two strings; names its place.
    """
    for index, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pairs[{index}] is not [query, text]")
    return [(pair[0], pair[1]) for pair in pairs]


def pair_length(pair: Tuple[str, str]) -> int:
    """The length of both texts."""
    return len(pair[0]) + len(pair[1])


def known_name(folder: str, names: Iterable[str]) -> Optional[str]:
    """The longest of `names` that a checkpoint folder stands for; its name may have been made safe ("BAAI_bge_m3__0123456789ab")."""
    safe_folder = re.sub(r"\W", "_", folder)
    for name in sorted(names, key=len, reverse=True):
        safe = re.escape(re.sub(r"\W", "_", name))
        if re.match(rf"(?:.*_)?{safe}(?:__[0-9A-Za-z]*|_[0-9a-f]{{8}})?$", safe_folder):
            return name
    return None


def attempt(
    function: Callable[[List[Item]], Sequence[Row]], batch: List[Item], *, last: bool
) -> Optional[Sequence[Row]]:
    """`function(batch)`, or None when it did not fit (its tensors are free on return); raises if it was the `last`."""
    try:
        shortages.batch(len(batch))
        return function(batch)
    except (RuntimeError, MemoryError) as error:
        if last or not is_out_of_memory(error):
            raise
        return None


def stop_if_cancelled() -> None:
    """Raise CancelledError when the running call was cancelled."""
    if cancelled():
        from concurrent.futures import CancelledError

        raise CancelledError


def compare(
    got: Mapping[str, Any], recorded: Mapping[str, Sequence[float]], tolerance: float
) -> Dict[str, Any]:
    """Hold numbers against recorded ones: {"ok", "max_abs", "tolerance", "differences", "got"}.

    Each value of `got` is an array; the first len(recorded) numbers of it, flattened, are compared. A missing or
    non-finite number is a difference of infinity.
    """
    differences: Dict[str, float] = {}
    seen: Dict[str, List[float]] = {}
    for name, expected in recorded.items():
        values = np.asarray(got[name], dtype=np.float64).ravel()[: len(expected)]
        seen[name] = [round(float(value), 7) for value in values]
        if values.size != len(expected) or not np.isfinite(values).all():
            differences[name] = float("inf")
        else:
            differences[name] = float(np.abs(values - np.asarray(expected)).max()) if values.size else 0.0
    worst = max(differences.values()) if differences else float("inf")
    return {
        "ok": worst <= tolerance,
        "max_abs": worst,
        "tolerance": tolerance,
        "differences": differences,
        "got": seen,
    }
