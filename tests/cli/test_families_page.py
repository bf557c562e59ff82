"""docs/families.md, done as it says: its two files, its script, its commands, its Python."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.environments import Catalog, Family
from orchestrator.environments.family import OrchestratorTable

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")


def block(language: str, holding: str) -> str:
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in text]
    return found


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


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
    assert (
        run(project, sys.executable, "-c", block("python", "import Orchestrator")) == "house float32\nmouse"
    )
    assert run(project, sys.executable, "-c", block("python", "asyncio")) == "['dog', 'zebra']\ncat"


def test_it_names_every_family_and_method_that_comes_with_it(catalog: Catalog) -> None:
    told: dict[str, set[str]] = {}
    for families, methods in re.findall(
        r"^\| (.*) \| (.*) \|$", PAGE[PAGE.index("## Those") :], re.MULTILINE
    ):
        names = set(re.findall(r"`(\w+)(?:\(.*?\))?`", methods))
        told |= dict.fromkeys(re.findall(r"`([\w-]+)`", families), names)
    assert told == {name: methods_of(catalog.get(name)) for name in catalog.names()}


def methods_of(family: Family) -> set[str]:
    """The public methods of its class but for those that every class may have, read without importing it."""
    (body,) = [
        node.body
        for file in family.worker_file.parent.glob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == family.worker_class
    ]
    methods = {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
    return methods - {"close", "self_test"}


def test_it_names_every_key() -> None:
    keys = {field.replace("_", "-") for field in OrchestratorTable.__struct_fields__}
    rows = re.findall(r"^\| (.*?) \|", section("What the file may say"), re.MULTILINE)
    assert keys == set(re.findall(r"`([^`]+)`", " ".join(rows)))
