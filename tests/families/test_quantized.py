"""8 bits through the families' extra, with bitsandbytes as it is (which computes on CPUs too)."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator import Orchestrator, Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("family", "style"), [("minigemini", "minigemini-7b"), ("qwen2-vl", "qwen2.5-vl")])
def test_eight_bits_answer_almost_like_the_whole_weights(settings: Settings, family: str, style: str) -> None:
    picture = (np.arange(56 * 84 * 3) * 7 % 256).astype(np.uint8).reshape(56, 84, 3)
    with Orchestrator(settings=settings) as orc:
        found = {
            name: orc.load(
                family, checkpoint=f"tiny:{style}", dtype="float32", name=name,
                with_=["quantization"], load_in_8bit=name == "small",
            )
            for name in ("whole", "small")
        }  # fmt: skip
        whole, small = (model.forward(images=[picture], prompt="What?") for model in found.values())
    assert np.array_equal(whole["input_ids"], small["input_ids"])
    assert not np.array_equal(whole["logits"], small["logits"])
    assert np.corrcoef(whole["logits"].ravel(), small["logits"].ravel())[0, 1] > 0.99
