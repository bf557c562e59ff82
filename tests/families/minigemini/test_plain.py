"""The parts of the worker that need no environment: prompts, devices, variants, places."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from orchestrator.devices import Inventory
from orchestrator.errors import PlacementError
from orchestrator.placement import SHAPES, estimate_from_config, place

WORKER = Path(__file__).parents[3] / "workers" / "minigemini"
GIB = 1 << 30


def part(name: str) -> Any:
    """A module of the worker without the package's own code, which wants torch."""
    package = sys.modules.setdefault("minigemini_parts", types.ModuleType("minigemini_parts"))
    package.__path__ = [str(WORKER)]
    return importlib.import_module(f"minigemini_parts.{name}")


def turns(*texts: str, images: int = 0) -> list[dict[str, Any]]:
    made = [
        {"role": ("user", "assistant")[index % 2], "content": [{"type": "text", "text": text}]}
        for index, text in enumerate(texts)
    ]
    made[0]["content"][:0] = [{"type": "image", "image": None}] * images
    return made


VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. "
)
LLAMA_3 = (
    "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able to "
    "understand the visual content that the user provides, and assist the user with a variety of tasks using natural "
    "language.<|eot_id|>"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna_v1", VICUNA + "USER: <image>\nQ ASSISTANT: A</s>USER: R ASSISTANT:"),
        (
            "chatml_direct",
            (
                "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ<|im_end|>"
                "<|im_start|>assistant\nA<|im_end|><|im_start|>user\nR<|im_end|><|im_start|>assistant\n"
            ),
        ),
        ("mistral_instruct", "[INST] <image>\nQ [/INST] A </s><s>[INST] R [/INST]"),
        (
            "gemma",
            (
                "<start_of_turn>user\n<image>\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<eos>"
                "<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n"
            ),
        ),
        (
            "llama_3",
            LLAMA_3 + "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ<|eot_id|>"
            "<|start_header_id|>system<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|>"
            "<|start_header_id|>system<|end_header_id|>\n\n",
        ),
    ],
)
def test_templates(template: str, expected: str) -> None:
    assert part("prompts").render(template, turns("Q", "A", "R", images=1)) == expected


def test_two_pictures_are_numbered() -> None:
    prompt = part("prompts").render("mistral_instruct", turns("Q", images=2))
    assert prompt == "[INST] Image 1:<image>\nImage 2:<image>\nQ [/INST]"


@pytest.mark.parametrize(
    ("bos", "expected"), [(1, [1, 5, -200, 6, 7, -200]), (None, [1, 5, -200, 1, 6, 7, -200, 1])]
)
def test_bos_is_kept_once(bos: int | None, expected: list[int]) -> None:
    """Where the tokenizer has no BOS, an id of 1 is nothing special."""

    class Tokenizer:
        bos_token_id = bos

        def __call__(self, text: str) -> Any:
            return types.SimpleNamespace(input_ids=[1, *map(int, text.split())])

    assert part("prompts").image_token_ids("5<image>6 7<image>", Tokenizer()) == expected


def parts(**changes: Any) -> Any:
    values = {"first": 2 * GIB, "workspace": GIB, "layers": [GIB] * 8, "last": GIB, "tied": False, **changes}
    return part("layout").Parts(**values)


def test_sequential_fills_a_device_before_the_next() -> None:
    lay_out = part("layout").lay_out
    one = lay_out(parts(), "sequential", "cuda:0", {"cuda:0": 13 * GIB, "cuda:1": 13 * GIB})
    assert set(one.values()) == {"cuda:0"}
    two = lay_out(parts(), "sequential", "cuda:0", {"cuda:0": 6 * GIB, "cuda:1": 13 * GIB})
    assert [two[name] for name in ("first", "2", "3", "7", "last")] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cuda:1",
        "cuda:1",
    ]
    tied = lay_out(parts(tied=True), "sequential", "cuda:0", {"cuda:0": 6 * GIB, "cuda:1": 13 * GIB})
    assert tied["last"] == "cuda:0"  # one tensor cannot be on two devices


def test_balanced_spreads_evenly() -> None:
    placed = part("layout").lay_out(parts(), "auto", "cuda:0", {"cuda:0": 20 * GIB, "cuda:1": 20 * GIB})
    counts = [sum(device == f"cuda:{index}" for device in placed.values()) for index in (0, 1)]
    assert counts == [5, 5]


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    lay_out = part("layout").lay_out
    budgets = {"cuda:0": 5 * GIB, "cuda:1": 4 * GIB, "cpu": 64 * GIB}
    with pytest.raises(RuntimeError, match=r"needs 12\.00 GiB .*from layer 6 on.*allow_offload"):
        lay_out(parts(), "sequential", "cuda:0", budgets)
    with pytest.raises(RuntimeError, match="must be on the first device"):
        lay_out(parts(), "sequential", "cuda:0", {"cuda:0": 2 * GIB, "cuda:1": 40 * GIB})
    with_cpu = lay_out(parts(), "sequential", "cuda:0", budgets, True)
    assert [with_cpu[name] for name in ("1", "2", "5", "6", "last")] == [
        "cuda:0",
        "cuda:1",
        "cuda:1",
        "cpu",
        "cpu",
    ]


@pytest.mark.parametrize("detail", [768, 1536])
@pytest.mark.parametrize("name", ["mgm-7b", "mgm-13b", "mgm-34b", "mgm-8x7b"])
def test_planned_budgets_come_to_the_orchestrators_own_plan(name: str, detail: int) -> None:
    """Every machine of 2 to 4 cards on which it has to be spread; the towers' workspace is in the plan already."""
    needs = estimate_from_config({**SHAPES[name], "image_size_aux": detail}, "float16")
    layers = [block for block in needs.blocks if block.kind == "layer"]
    sizes = parts(
        first=sum(block.weights.bytes("float16") for block in needs.blocks if block.first),
        workspace=3 * 2 * 2880 * detail**2 // 16,
        layers=[block.weights.bytes("float16") for block in layers],
        last=next(block.weights.bytes("float16") for block in needs.blocks if block.kind == "head"),
    )
    seen = 0
    for cards, size, ram in [(n, gib, ram) for n in (2, 3, 4) for gib in range(6, 64, 5) for ram in (0, 9)]:
        machine = Inventory.parse(f"{cards}x{size}GiB,cpu:64GiB", cores=8)
        limits = {**dict.fromkeys(range(cards), f"{size - 1}GiB"), "cpu": f"{ram}GiB"} if ram else None
        try:
            plan = place(needs, machine, dtype="float16", max_memory=limits)
        except PlacementError:
            continue
        if len(plan.shares) < 2:
            continue
        seen += 1
        budgets, planned = part("layout").budgets_of(plan.max_memory)
        placed = part("layout").lay_out(sizes, plan.device_map, plan.device, budgets, planned=planned)
        wanted = {b.name.rpartition(".")[2]: s.label for s in plan.shares for b in s.blocks if b in layers}
        assert wanted == {name: placed[name] for name in wanted}, (cards, size, ram)
    assert seen > 4


def test_explicit_maps() -> None:
    lay_out = part("layout").lay_out
    device_map = {"": 0, "model.layers.1": "cuda:1", "lm_head": 1}
    placed = lay_out(parts(layers=[GIB] * 11), device_map, "cuda:0", {})
    assert (placed["first"], placed["1"], placed["10"], placed["last"]) == (
        "cuda:0",
        "cuda:1",
        "cuda:0",
        "cuda:1",
    )
    with pytest.raises(ValueError, match=r"nothing of model\.layers\.0"):
        lay_out(parts(), {"model.embed_tokens": 0}, "cuda:0", {})
    for where, word in (("cpu", "allow_offload"), ("disk", "no device")):
        with pytest.raises(ValueError, match=word):
            lay_out(parts(), {"": 0, "model.layers.7": where}, "cuda:0", {})


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        ({"model_type": "mini_gemini"}, "model.layers.0.mlp.up_proj.weight", "llama"),
        ({"model_type": "mgm"}, "model.layers.0.block_sparse_moe.gate.weight", "mixtral"),
        ({"architectures": ["MiniGeminiGemmaForCausalLM"]}, "model.norm.weight", "gemma"),
        ({"hidden_act": "gelu"}, "model.norm.weight", "gemma"),
        ({"model_type": "mini_gemini_mistral"}, "model.norm.weight", "mistral"),
        ({}, "model.norm.weight", "llama"),
    ],
)
def test_variants(config: dict[str, Any], name: str, expected: str) -> None:
    assert part("variants").choose_variant(config, {name: (1,)}) == expected


@pytest.mark.parametrize(
    ("variant", "config", "tokens", "folder", "expected"),
    [
        ("llama", {}, {}, "anything", "vicuna_v1"),
        ("llama", {}, {"<|im_start|>": 6}, "MGM-7B", "chatml_direct"),
        ("llama", {"rope_theta": 5000000.0}, {}, "x", "chatml_direct"),
        ("llama", {}, {}, "MGM-34B-HD", "chatml_direct"),
        ("llama", {}, {"<|start_header_id|>": 1}, "x", "llama_3"),
        ("llama", {"rope_parameters": {"rope_theta": 500000}}, {}, "x", "llama_3"),
        ("mixtral", {"rope_theta": 1e6}, {}, "MGM-34B", "mistral_instruct"),
        ("gemma", {}, {}, "MGM-34B", "gemma"),
    ],
)
def test_conversation_formats(
    variant: str, config: dict[str, Any], tokens: dict[str, int], folder: str, expected: str
) -> None:
    assert part("variants").choose_template(variant, config, tokens, folder) == expected


def test_towers_are_looked_for_upwards(tmp_path: Path) -> None:
    """The checkpoint's folder before its ancestors, an empty folder nowhere."""
    find = part("places").find_tower
    checkpoint = tmp_path / "a" / "checkpoint"
    for base in (tmp_path, checkpoint):
        (base / "zoo" / "clip").mkdir(parents=True)
    (tmp_path / "zoo" / "clip" / "config.json").write_text(json.dumps({}))
    assert find(None, "zoo/clip", checkpoint, "no/such")[0] == tmp_path / "zoo" / "clip"
    (checkpoint / "zoo" / "clip" / "config.json").write_text(json.dumps({}))
    assert find(None, "zoo/clip", checkpoint, "no/such")[0] == checkpoint / "zoo" / "clip"
    found, looked = find(None, "zoo/other", checkpoint, "no/such")
    assert found is None
    assert looked[0] == str(checkpoint / "zoo" / "other")
    assert looked[-2:] == ["zoo/other in the hub's cache", "no/such in the hub's cache"]
