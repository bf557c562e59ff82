"""Version-neutral metadata, and the check that tells what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import models
from tiny.models import edit, make

from orchestrator.checkpoints import check_readable
from orchestrator.checkpoints.neutral import (
    copy_folder,
    neutral_config,
    neutral_tokenizer,
    neutral_tokenizer_config,
    neutralise,
)
from orchestrator.checkpoints.readable import TRAPS
from orchestrator.errors import CheckpointError

OLD = {"transformers": "4.36.2", "tokenizers": "0.15.2"}
NEW = {"transformers": "5.23.0", "tokenizers": "0.23.3"}


def test_rope_gets_both_spellings_from_either() -> None:
    new = neutral_config({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}})
    assert new["rope_theta"] == 1e5
    assert "rope_scaling" not in new
    old = neutral_config({"rope_theta": 1e5, "rope_scaling": None})
    assert old["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e5}


def test_old_scalings_have_only_the_keys_that_4_36_allows() -> None:
    config = neutral_config({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}})
    assert config["rope_scaling"] == {"type": "linear", "factor": 2.0}


def test_newer_scalings_keep_everything() -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.5,
    }
    config = neutral_config({"rope_parameters": rope})
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
    }
    assert (config["rope_theta"], config["partial_rotary_factor"]) == (5e5, 0.5)
    again = neutral_config({"rope_theta": 5e5, "rope_scaling": config["rope_scaling"]})
    assert again["rope_parameters"]["rope_type"] == "llama3"
    assert again["rope_parameters"]["rope_theta"] == 5e5


def test_a_base_for_each_kind_of_layer() -> None:
    layers = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    config = neutral_config({"rope_parameters": layers})
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert neutral_config(old) == old  # one flat dictionary would be wrong


def test_configs_inside_a_config_are_done_too() -> None:
    inner = {"model_type": "llama", "rope_parameters": {"rope_theta": 1e5}, "dtype": "bfloat16"}
    config = neutral_config({"text_config": inner, "id2label": {"0": "a"}})
    assert config["text_config"]["rope_theta"] == 1e5
    assert config["text_config"]["torch_dtype"] == "bfloat16"
    assert config["id2label"] == {"0": "a"}


def test_merges_become_strings_unless_that_would_be_ambiguous() -> None:
    assert neutral_tokenizer({"model": {"merges": [["a", "b"]]}})["model"]["merges"] == ["a b"]
    blank = {"model": {"merges": [["a b", "c"]]}}
    assert neutral_tokenizer(blank) == blank


def test_metaspace_gets_its_old_key_wherever_it_is() -> None:
    space = {"type": "Metaspace", "prepend_scheme": "never", "split": False}
    document = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [space]},
        "decoder": {**space, "prepend_scheme": "first"},
    }
    result = neutral_tokenizer(document)
    assert result["pre_tokenizer"]["pretokenizers"][0]["add_prefix_space"] is False
    assert result["decoder"]["add_prefix_space"] is True


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ["input_ids", "attention_mask"]),
        ({"type_vocab_size": 2}, ["input_ids", "token_type_ids", "attention_mask"]),
    ],
)
def test_the_tokenizers_class_and_what_it_returns(config: dict[str, Any], names: list[str]) -> None:
    result = neutral_tokenizer_config(
        {"tokenizer_class": "TokenizersBackend", "is_local": True}, {"model": {}}, config
    )
    assert result["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert result["model_input_names"] == names
    assert "is_local" not in result


@pytest.mark.parametrize(("writer", "expected"), [("5.23.0", False), ("4.36.2", True), (None, True)])
def test_cleaning_up_is_said_as_the_writer_meant_it(writer: str | None, expected: bool) -> None:
    config = {} if writer is None else {"transformers_version": writer}
    assert neutral_tokenizer_config({"a": 1}, {}, config)["clean_up_tokenization_spaces"] is expected


def test_listed_special_tokens_get_their_old_name() -> None:
    result = neutral_tokenizer_config({"extra_special_tokens": ["<a>"]}, {}, {})
    assert result["additional_special_tokens"] == ["<a>"]
    assert "extra_special_tokens" not in result


def test_a_folder_is_made_neutral_once(tmp_path: Path) -> None:
    folder = models.as_saved_by_5(make("llama", tmp_path / "m"))
    changes = neutralise(folder)
    assert [change.split(":")[0] for change in changes] == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert neutralise(folder) == []
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (folder / "chat_template.jinja").read_text()


def test_hard_links_elsewhere_keep_their_content(tmp_path: Path) -> None:
    source = models.as_saved_by_5(make("llama", tmp_path / "m"))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    copy_folder(source, tmp_path / "copy")
    assert (source / "model.safetensors").stat().st_nlink == 2
    assert neutralise(tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


# -- the check ------------------------------------------------------------------------------------------------


def listed_tokens(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda t: t.update(extra_special_tokens=["<a>"]))


def whole_words(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda t: t["model"].update(ignore_merges=True))


def new_metaspace(folder: Path) -> None:
    edit(
        folder / "tokenizer.json",
        lambda t: t.update(decoder={"type": "Metaspace", "prepend_scheme": "first"}),
    )


def legacy_gemma(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(model_type="gemma", hidden_act="gelu"))


def lose_scaling(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c["rope_parameters"].update(rope_type="linear", factor=2.0))


CASES = [
    ("rope-base", models.lose_rope_base, "transformers", ["4.36.2", "4.57.6"], ["5.0.0", "5.23.0"]),
    ("rope-base", lose_scaling, "transformers", ["4.36.2", "4.57.6"], ["5.0.0"]),
    ("tokenizer-class", models.lose_tokenizer_class, "transformers", ["4.36.2", "4.57.6"], ["5.0.0"]),
    ("merge-pairs", models.pair_merges, "tokenizers", ["0.15.2", "0.19.1"], ["0.20.0", "0.23.3"]),
    ("ignore-merges", whole_words, "tokenizers", ["0.15.2", "0.18.0"], ["0.19.0"]),
    ("metaspace", new_metaspace, "tokenizers", ["0.15.2"], ["0.19.1"]),
    ("chat-template", models.move_template, "transformers", ["4.36.2", "4.46.3"], ["4.47.1", "5.23.0"]),
    ("extra-special-tokens", listed_tokens, "transformers", ["4.47.1", "4.57.6"], ["4.46.3", "5.23.0"]),
    (
        "gemma-activation",
        legacy_gemma,
        "transformers",
        ["4.38.2", "4.48.3", "4.57.6"],
        ["4.39.3", "4.47.1", "5.23.0"],
    ),
]


@pytest.mark.parametrize(("trap", "fall_in", "package", "bad", "good"), CASES)
def test_a_trap_is_seen_between_its_bounds(
    tmp_path: Path, trap: str, fall_in: Callable[[Path], None], package: str, bad: list[str], good: list[str]
) -> None:
    folder = make("llama", tmp_path / "m")
    for version in (*bad, *good):
        assert check_readable(folder, {package: version}) == []
    fall_in(folder)
    for version in bad:
        (problem,) = check_readable(folder, {package: version})
        assert (problem.trap, problem.reader, problem.path) == (trap, f"{package} {version}", folder)
    for version in good:
        assert check_readable(folder, {package: version}) == []


def test_every_trap_has_a_case() -> None:
    assert {trap.name for trap in TRAPS} == {case[0] for case in CASES}


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "ignore-merges"])
def test_importing_cures(
    tmp_path: Path, case: tuple[str, Callable[[Path], None], str, list[str], list[str]]
) -> None:
    folder = make("llama", tmp_path / "m")
    case[1](folder)
    neutralise(folder)
    for version in (*case[3], *case[4]):
        assert check_readable(folder, {case[2]: version}) == []


def test_the_error_names_key_reader_and_remedy(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "m")
    models.lose_rope_base(folder)
    error = check_readable(folder, OLD)[0].error()
    assert isinstance(error, CheckpointError)
    assert "transformers 4.36.2 does not read rope_parameters" in error.message
    assert str(error.hint).startswith(f"orchestrator checkpoint import {folder} DEST")
    assert "allow_ignored_keys=True" in str(error.hint)


def test_what_import_cannot_cure_names_the_version_that_can(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "m")
    whole_words(folder)
    (problem,) = check_readable(folder, OLD)
    assert problem.remedy.endswith("--with 'tokenizers>=0.19'")


def test_what_has_no_metadata_has_no_problems(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    assert check_readable(tmp_path / "w.pth", OLD) == []
    assert check_readable(tmp_path, OLD) == []


def test_an_environment_without_transformers_has_no_problems(tmp_path: Path) -> None:
    assert check_readable(models.as_saved_by_5(make("llama", tmp_path / "m")), {"torch": "2.13.0"}) == []


def test_a_transformer_in_a_folder_of_its_own_is_looked_at(tmp_path: Path) -> None:
    models.lose_rope_base(make("llama", tmp_path / "m" / "0_Transformer"))
    assert [problem.trap for problem in check_readable(tmp_path / "m", OLD)] == ["rope-base"]


def test_broken_json_is_said(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "m")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        check_readable(folder, OLD)
