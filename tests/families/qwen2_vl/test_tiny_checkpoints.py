"""The tiny checkpoints: the published layout, the same bytes for the same seed, and real sizes that add up."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import struct
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[3] / "workers" / "tiny_checkpoints" / "qwen2_vl.py"
STYLES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")

# Sizes of the published models, from their config.json.
REAL = {
    ("qwen2-vl", "2B"): {
        "vocabulary": 151936, "hidden": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "intermediate": 8960,
        "tied": True, "vision": 1280, "depth": 32, "vision_heads": 16, "vision_intermediate": 5120, "patch": 14,
    },
    ("qwen2-vl", "7B"): {
        "vocabulary": 152064, "hidden": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "intermediate": 18944,
        "tied": False, "vision": 1280, "depth": 32, "vision_heads": 16, "vision_intermediate": 5120, "patch": 14,
    },
    ("qwen2.5-vl", "7B"): {
        "vocabulary": 152064, "hidden": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "intermediate": 18944,
        "tied": False, "vision": 1280, "depth": 32, "vision_heads": 16, "vision_intermediate": 3420, "patch": 14,
    },
}  # fmt: skip
PUBLISHED = {
    ("qwen2-vl", "2B"): 2_208_985_600,
    ("qwen2-vl", "7B"): 8_291_375_616,
    ("qwen2.5-vl", "7B"): 8_292_166_656,
}


@pytest.fixture(scope="module")
def makers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_qwen2_vl", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def made(makers: ModuleType, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / request.param
    folder.mkdir()
    makers.STYLES[request.param](folder, 0)
    return folder


def header(file: Path) -> dict[str, dict[str, object]]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return dict(json.loads(stream.read(length)))


@pytest.mark.parametrize("made", STYLES, indirect=True)
def test_files_and_names_are_the_published_ones(made: Path) -> None:
    names = {file.name for file in made.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
            "chat_template.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"} <= names  # fmt: skip
    tensors = header(made / "model.safetensors")
    wanted = (
        "model.visual.patch_embed.proj.weight"
        if made.name == "qwen3-vl"
        else "visual.patch_embed.proj.weight"
    )
    assert wanted in tensors
    config = json.loads((made / "config.json").read_text())
    assert ("lm_head.weight" in tensors) is not config["tie_word_embeddings"]


@pytest.mark.parametrize("made", STYLES, indirect=True)
def test_one_folder_serves_every_version(made: Path) -> None:
    """RoPE's base where 4.x and 5.x look, merges as strings, a tokenizer class that both know."""
    config = json.loads((made / "config.json").read_text())
    text = config.get("text_config", config)
    assert text["rope_theta"] >= 1e6
    assert text["rope_scaling"]["mrope_section"]
    assert text.get("tie_word_embeddings", config["tie_word_embeddings"]) == config["tie_word_embeddings"]
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    assert all(isinstance(merge, str) for merge in tokenizer["model"]["merges"])
    assert json.loads((made / "tokenizer_config.json").read_text())["tokenizer_class"] == "Qwen2Tokenizer"


@pytest.mark.parametrize("made", STYLES, indirect=True)
def test_ids_of_config_and_tokenizer_agree(made: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    ids = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    assert config["image_token_id"] == ids["<|image_pad|>"]
    assert config["video_token_id"] == ids["<|video_pad|>"]
    size = config.get("text_config", config)["vocab_size"]
    assert size == max(ids.values()) + 1 == len(tokenizer["model"]["vocab"]) + len(ids)


def test_a_seed_means_the_same_bytes(makers: ModuleType, tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> str:
        folder = tmp_path / name
        folder.mkdir()
        makers.STYLES["qwen2-vl"](folder, seed)
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


@pytest.mark.parametrize("which", REAL, ids="-".join)
def test_real_sizes_give_the_published_number_of_parameters(
    makers: ModuleType, which: tuple[str, str]
) -> None:
    shapes = makers.shapes(which[0], REAL[which])
    assert sum(math.prod(shape) for shape in shapes.values()) == PUBLISHED[which]
