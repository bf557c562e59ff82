"""Every size's style and its HD version through the client, in the families' real environments on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.client import Orchestrator
from orchestrator.errors import LoadError, RemoteError

PROMPT = "What is in the picture?"
BEGINNINGS = {
    "7b": "A chat between a curious user",
    "13b": "A chat between a curious user",
    "34b": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat",
    "8b": "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant.",
    "8x7b": "[INST] <image>\nWhat is in the picture? [/INST]",
    "2b": "<start_of_turn>user\n<image>\nWhat is in the picture?<end_of_turn>\n<start_of_turn>model\n",
}
Maker = Callable[..., Path]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def family_of(size: str) -> str:
    return "minigemini-2b" if size == "2b" else "minigemini"


@pytest.mark.parametrize("hd", [False, True], ids=["standard", "hd"])
@pytest.mark.parametrize("size", BEGINNINGS)
def test_style(
    orchestrator: Orchestrator, tiny: Maker, pictures: list[np.ndarray], size: str, hd: bool
) -> None:
    """Loads under a name that says nothing; whole, streamed, batched and repeated answers agree."""
    folder = tiny("minigemini", f"minigemini-{size}{'-hd' if hd else ''}", "checkpoint")
    with orchestrator.load(family_of(size), checkpoint=folder, dtype="float32", device_map="cpu") as model:
        seen = model.forward(images=[pictures[1]], prompt=PROMPT)
        assert str(seen["prompt"]).startswith(BEGINNINGS[size])
        tokens = 80 if hd else 16
        assert [feature.shape[0] for feature in seen["image_features"]] == [tokens]
        assert seen["logits"].shape[0] == len(seen["input_ids"]) - 1 + tokens
        assert seen["logits"].dtype == np.float32
        assert seen["input_ids"].dtype == np.int64
        answer = model.generate(images=[pictures[1]], prompt=PROMPT, max_new_tokens=8, return_ids=True)
        assert answer["finish_reason"] in ("length", "stop")
        assert int(seen["logits"][-1].argmax()) == answer["token_ids"][0]
        pieces = list(model.stream("generate", images=[pictures[1]], prompt=PROMPT, max_new_tokens=8))
        assert "".join(pieces) == answer["text"]
        request = {"images": [pictures[1]], "prompt": PROMPT}
        batch = model.generate_batch([request, {"prompt": "Hello"}], max_new_tokens=8, return_ids=True)
        assert batch[0] == answer
        assert batch[1] == model.generate(prompt="Hello", max_new_tokens=8, return_ids=True)
        drawn = [model.generate(prompt=PROMPT, max_new_tokens=8, temperature=1.0, seed=3) for _ in range(2)]
        assert drawn[0] == drawn[1]
        assert model.report["image_tokens"]["global"] is hd


def test_gemma_at_the_wrong_pin_names_the_family(orchestrator: Orchestrator, tiny: Maker) -> None:
    with pytest.raises(LoadError, match=r"(?s)Gemma.*transformers 4\.36\.2.*'minigemini-2b'"):
        orchestrator.load("minigemini", checkpoint=tiny("minigemini", "minigemini-2b"), dtype="float32")


def test_llama_runs_beside_gemma(orchestrator: Orchestrator, tiny: Maker, pictures: list[np.ndarray]) -> None:
    """Our implementation calls the model's body itself, so 4.39 answers like 4.36, where the original fails."""
    folder = tiny("minigemini", "minigemini-7b")
    answers = []
    for family in ("minigemini", "minigemini-2b"):
        with orchestrator.load(family, checkpoint=folder, dtype="float32", device_map="cpu") as model:
            answers.append(
                model.generate(images=[pictures[0]], prompt=PROMPT, max_new_tokens=8, return_ids=True)
            )
    assert answers[0] == answers[1]


def test_mistakes_reach_the_caller(
    orchestrator: Orchestrator, tiny: Maker, pictures: list[np.ndarray]
) -> None:
    with orchestrator.load(
        "minigemini", checkpoint=tiny("minigemini", "minigemini-7b-hd"), dtype="float32"
    ) as model:
        with pytest.raises(RemoteError, match="HD checkpoint"):
            model.generate(images=pictures[:2], prompt=PROMPT)
        with pytest.raises(RemoteError, match="roles are system, user, assistant"):
            model.generate(messages=[{"role": "tool", "content": "x"}])
    with pytest.raises(LoadError, match=r"with_=\['quantization'\]"):
        orchestrator.load("minigemini", checkpoint=tiny("minigemini", "minigemini-7b"), load_in_4bit=True)
