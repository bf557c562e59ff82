"""docs/families.md, done as it says: its two files, its script, its commands, its Python."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.environments.family import OrchestratorTable

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")


def block(language: str, holding: str) -> str:
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in text]
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, language, holding in (
        ("envs/spelling/pyproject.toml", "toml", 'name = "spelling"'),
        ("workers/spelling.py", "python", "class Spelling"),
        ("likeness.py", "python", "# /// script"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block(language, holding))
    return tmp_path


def run(project: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_command_answers(project: Path) -> None:
    answers = {}
    for command in [*block("sh", "family show").splitlines(), *block("sh", "likeness").splitlines()]:
        words = shlex.split(command)
        answers[tuple(words[1:4])] = run(project, sys.executable, "-m", *words)
    assert "spelling.py:Spelling" in answers["family", "show", "spelling"]
    assert answers["call", "spelling", "nearest"].strip() == "zebra"
    assert json.loads(answers["call", "spelling", "scores"])[0][0] == 100
    assert "".join(answers["call", "spelling", "letters"].split()) == "dog"
    assert "rapidfuzz==3.9.7" in (project / "envs" / "spelling" / "requirements.lock").read_text()
    assert float(answers["call", "./likeness.py:ratio", "a=cat"]) == pytest.approx(85.714, abs=0.01)


def test_its_python_answers(project: Path) -> None:
    assert run(project, sys.executable, "-c", block("python", "orc.load")) == "house float32\nmouse"


def test_it_names_every_key() -> None:
    keys = {field.replace("_", "-") for field in OrchestratorTable.__struct_fields__}
    rows = re.findall(r"^\| (.*?) \|", PAGE[PAGE.index("## What the file may say") :], re.MULTILINE)
    assert keys == set(re.findall(r"`([^`]+)`", " ".join(rows)))
