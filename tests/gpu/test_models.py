"""Models on a real GPU: three families on one card, estimates against the truth, the ladder, splits, bf16, mistakes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import Model, Orchestrator
from orchestrator.deployments import Deployment
from orchestrator.devices import GIB, Device, Inventory
from orchestrator.errors import DeviceMismatch, OutOfMemory, PlacementError
from orchestrator.events import Event
from orchestrator.placement.place import RUNTIME
from orchestrator.scheduling import Call
from orchestrator.settings import Settings
from orchestrator.specification import Specification
from orchestrator.worker.values import RawTensor

INVENTORY = Inventory.detect()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INVENTORY.accelerators, reason=f"no GPU: {'; '.join(INVENTORY.notes)}"),
]
LONG = 300.0
MIB = 2**20
Checkpoints = Callable[[str], Path]
Tell = Callable[..., None]


def deployment_of(orc: Orchestrator, model: Model) -> Deployment:
    return orc._coordinator.deployments[model.name]


def on_gpu(orc: Orchestrator, card: Device, name: str = "on-gpu") -> Deployment:
    """The class in `gpu_models.py`, in the environment of a family that has torch."""
    family = replace(
        orc.catalog.get("causal-lm"),
        worker_file=Path(__file__).with_name("gpu_models.py"),
        worker_class="OnGpu",
    )
    environment = orc.environments.ensure(family)
    return orc._coordinator._deploy(Specification(name, family, environment, None, devices=(card.uuid,)))


def free_of(card: Device) -> int:
    return Inventory.detect().select(card.uuid).free


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_three_families_on_one_card_at_once_and_the_estimates_hold(
    orc: Orchestrator, card: Device, checkpoints: Checkpoints, tell: Tell
) -> None:
    if card.free < 12 * GIB:
        pytest.skip("less than 12 GiB free")
    before = free_of(card)
    llm = orc.load("causal-lm", checkpoint=checkpoints("llama"), devices=[card.uuid])
    embedder = orc.load("sentence-embedding", checkpoint=checkpoints("bert"), devices=[card.uuid])
    clip = orc.load("clip", checkpoint=checkpoints("tiny-clip"), devices=[card.uuid], half_on_gpu=True)
    models = (llm, embedder, clip)
    assert len({model.environment.id for model in models}) == 3
    picture = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    answers = [
        llm.submit("generate", "the cat", max_new_tokens=8),
        embedder.submit("embed", ["the cat sat on the mat " * 80] * 8, batch_size=8),
        clip.submit("embed_images", [picture] * 4),
    ]
    assert isinstance(answers[0].result(LONG), str)
    assert np.isfinite(answers[1].result(LONG)).all()
    assert np.isfinite(answers[2].result(LONG)).all()
    tell("family", "weights", "reserved before", "measured after load", "estimate/truth")
    tell("---", "---", "---", "---", "---")
    for model in models:
        deployment = deployment_of(orc, model)
        placement = deployment.replicas[0].placement
        assert placement is not None
        assert set(deployment.report.devices.values()) == {"cuda:0"}
        share = placement.shares[0]
        entry = next(e for e in orc._coordinator.room.ledger.entries() if e.name == f"{model.name}.0")
        truth = entry.measured[card.uuid]
        told = deployment.report.memory["cuda:0"]
        tell(
            model.name,
            *(f"{n / MIB:.0f} MiB" for n in (share.weights, share.used, truth)),
            f"{share.used / truth:.2f}",
        )
        assert told["model"] == pytest.approx(share.weights, rel=0.03, abs=2 * MIB)
        assert share.weights <= truth <= share.used  # an upper bound …
        assert share.used - truth <= share.state + share.workspace + RUNTIME["cuda"]  # … and not a wild one
    for model in models:
        model.unload()
    until(lambda: before - free_of(card) < 256 * MIB)


def test_the_ladder_for_real(
    orc: Orchestrator, card: Device, checkpoints: Checkpoints, news: list[Event], tell: Tell
) -> None:
    """All but 3 GiB of the card is taken; a batch of 256 long texts needs more, smaller ones do not."""
    embedder = orc.load("sentence-embedding", checkpoint=checkpoints("bert"), devices=[card.uuid])
    texts = [f"{n} the cat sat on the mat " * 90 for n in range(256)]
    whole = embedder.submit("embed", texts, batch_size=4).result(LONG)
    filler = on_gpu(orc, card, "filler")
    filler.call(Call("fill", [3 * GIB]))
    began = time.perf_counter()
    future = embedder.submit("embed", texts, batch_size=256)
    split = future.result(LONG)
    assert future.recovered[0].startswith("freed the cache")
    assert any(step.startswith("batches of") for step in future.recovered)
    assert any(event.stage == "call" and "memory ran out" in event.message for event in news)
    np.testing.assert_allclose(split, whole, rtol=1e-3, atol=1e-4)
    tell("the ladder", ", then ".join(future.recovered), f"{time.perf_counter() - began:.1f} s")
    filler.call(Call("fill", [64 * MIB]))
    with pytest.raises(OutOfMemory) as caught:
        filler.call(Call("take", [8 * GIB]))
    assert caught.value.memory["cuda:0"]["free"] < GIB
    assert "memory then, cuda:0" in str(caught.value)
    assert np.isfinite(embedder.embed(["the cat"])).all()  # it lives


def test_a_split_with_the_tail_in_ram_is_refused_unless_asked_for(
    orc: Orchestrator, card: Device, checkpoints: Checkpoints
) -> None:
    path = checkpoints("llama")
    with orc.load("causal-lm", checkpoint=path, devices=[card.uuid], name="whole") as whole:
        expected = whole.generate("the cat", max_new_tokens=8, return_ids=True)["ids"]
    small = {card.index: int(1.6 * GIB)}
    with pytest.raises(PlacementError, match="does not fit"):
        orc.load("causal-lm", checkpoint=path, max_memory=small, name="refused")
    with orc.load("causal-lm", checkpoint=path, max_memory={**small, "cpu": 32 * GIB}, name="split") as split:
        devices = deployment_of(orc, split).report.devices
        assert {"cuda:0", "cpu"} <= set(devices.values())
        assert np.array_equal(split.generate("the cat", max_new_tokens=8, return_ids=True)["ids"], expected)


@pytest.mark.parametrize("family", ["minigemini", "qwen2-vl"])
def test_vision_language_families_see_on_the_card_what_they_see_on_the_cpu(
    orc: Orchestrator, card: Device, checkpoints: Checkpoints, family: str
) -> None:
    """MiniGemini also with a layer in RAM, whose inputs cross over and come back. TF32 convolutions round: 1e-2."""
    path = checkpoints({"minigemini": "tiny-minigemini-7b", "qwen2-vl": "tiny-qwen2-vl"}[family])
    places: dict[str, dict[str, Any]] = {"host": {"device_map": "cpu"}, "gpu": {"devices": [card.uuid]}}
    if family == "minigemini":
        places["both"] = {"device_map": {"": card.index, "model.layers.1": "cpu"}, "allow_offload": True}
    question = {"images": [np.arange(56 * 84 * 3, dtype=np.uint8).reshape(56, 84, 3)], "prompt": "What?"}
    seen = {}
    for name, place in places.items():
        with orc.load(family, checkpoint=path, dtype="float32", name=name, **place) as model:
            devices = set(deployment_of(orc, model).report.devices.values())
            assert devices == {"host": {"cpu"}, "gpu": {"cuda:0"}, "both": {"cuda:0", "cpu"}}[name]
            seen[name] = model.forward(**question)["logits"]
            assert isinstance(model.generate(**question, max_new_tokens=8), str)
    for logits in seen.values():
        np.testing.assert_allclose(logits, seen["host"], atol=1e-2)


@pytest.mark.skipif(len(INVENTORY.accelerators) < 2, reason="one GPU")
def test_a_split_over_two_cards(orc: Orchestrator, checkpoints: Checkpoints) -> None:
    path = checkpoints("llama")
    with orc.load("causal-lm", checkpoint=path, name="whole") as whole:
        expected = whole.generate("the cat", max_new_tokens=8, return_ids=True)["ids"]
    limits = {0: int(1.6 * GIB), 1: 4 * GIB}
    with orc.load("causal-lm", checkpoint=path, max_memory=limits, name="split") as split:
        assert set(deployment_of(orc, split).report.devices.values()) == {"cuda:0", "cuda:1"}
        assert np.array_equal(split.generate("the cat", max_new_tokens=8, return_ids=True)["ids"], expected)


@pytest.mark.skipif(len(INVENTORY.accelerators) < 2, reason="one GPU")
def test_memory_that_runs_out_on_one_card_is_looked_for_on_the_other(
    orc: Orchestrator, card: Device, checkpoints: Checkpoints
) -> None:
    embedder = orc.load("sentence-embedding", checkpoint=checkpoints("bert"), devices=[0, 1])
    placement = deployment_of(orc, embedder).replicas[0].placement
    assert placement is not None
    filler = on_gpu(orc, INVENTORY.select(placement.devices[0]), "filler")
    filler.call(Call("fill", [16 * MIB]))
    future = embedder.submit("embed", ["the cat sat " * 200])
    assert np.isfinite(future.result(LONG)).all()
    assert future.recovered[-1] == "another device"


def test_bfloat16_crosses_the_wire_bit_by_bit(orc: Orchestrator, card: Device) -> None:
    deployment = on_gpu(orc, card)
    halves: Any = deployment.call(Call("halves"))
    expected = np.array([1.0, 3e38, 1e-38, -0.0, np.inf], np.float32).view(np.uint32)
    rounded = ((expected + 0x7FFF + ((expected >> 16) & 1)) >> 16).astype(np.uint16)
    assert isinstance(halves, RawTensor)  # no torch on this side
    assert np.array_equal(np.asarray(halves.data).view(np.uint16).ravel(), rounded)
    again: Any = deployment.call(Call("there_and_back", [halves]))
    assert np.array_equal(np.asarray(again.data).view(np.uint16), np.asarray(halves.data).view(np.uint16))
    numbers = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    assert np.array_equal(deployment.call(Call("there_and_back", [numbers])), numbers)


def test_inputs_go_to_the_model_and_mistakes_are_named(orc: Orchestrator, card: Device) -> None:
    deployment = on_gpu(orc, card)
    assert deployment.call(Call("run", [np.ones((2, 16), np.float32)])).shape == (2, 16)
    with pytest.raises(DeviceMismatch) as caught:
        deployment.call(Call("run_stray"))
    assert caught.value.details["module"] == "stray.1"
    assert sorted(caught.value.details["devices"]) == ["cpu", "cuda:0"]


def test_a_model_on_the_card_goes_for_another(
    gpu_settings: Settings, card: Device, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """A limit of 4 GiB for all models: the first one's memory is free again before the second one loads."""
    settings = replace(gpu_settings, memory_limits=f"{card.uuid}=4GiB", room_timeout=0.0)
    with Orchestrator(settings=settings) as orc:
        orc._coordinator.room.ledger.path = tmp_path / "ledger.json"
        first = orc.load(
            "sentence-embedding", checkpoint=checkpoints("bert"), devices=[card.uuid], name="first"
        )
        full = free_of(card)
        orc.load("causal-lm", checkpoint=checkpoints("llama"), devices=[card.uuid], name="second")
        assert deployment_of(orc, first).replicas[0].state == "cold"
        assert free_of(card) < full + 4 * GIB
        assert np.isfinite(first.embed(["the cat"])).all()  # it comes back by itself, the other one goes
