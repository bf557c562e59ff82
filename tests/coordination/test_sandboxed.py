"""`sandbox = true` from the family's file, from `load` and from the command line, to the worker."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import Orchestrator, Settings
from orchestrator.errors import SandboxUnavailable
from orchestrator.processes import require_bubblewrap

CODE = """
import os

def attempt(path):
    try:
        with open(path, "w") as file:
            file.write("x")
    except OSError as error:
        return os.strerror(error.errno)
    return "written"

def read(path):
    with open(path) as file:
        return file.read()

class Walled:
    def attempt(self, path):
        return attempt(path)
"""


@pytest.fixture
def confining() -> None:
    try:
        require_bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(error.message)


@pytest.fixture
def project(tmp_path: Path, settings: Settings) -> Settings:
    """A project with a family `walled` that asks for a sandbox."""
    folder = tmp_path / "envs" / "walled"
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "walled"\n[tool.orchestrator]\nworker = "walled.py"\nsandbox = true\n'
    )
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "walled.py").write_text(CODE)
    return replace(settings, project=tmp_path)


@pytest.mark.slow
def test_the_familys_key_and_its_override(confining: None, project: Settings) -> None:
    target = Path.home() / f"written-by-{os.getpid()}"
    try:
        with Orchestrator(settings=project) as orc:
            walled = orc.load("walled")
            assert walled.attempt(str(target)) == "Read-only file system"
            assert not target.exists()
            free = orc.load("walled", name="free", sandbox=False)
            assert free.attempt(str(target)) == "written"
    finally:
        target.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["attempt", "Walled.attempt"])
def test_from_the_command_line(confining: None, tmp_path: Path, what: str) -> None:
    (tmp_path / "code.py").write_text(CODE)
    target = Path.home() / f"written-by-{os.getpid()}"
    words = ["-q", "call", f"{tmp_path / 'code.py'}:{what}", "--sandbox", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "Read-only file system"
    assert not target.exists()


def test_without_bubblewrap_it_is_refused_before_anything_is_built(
    project: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Orchestrator(settings=replace(project, home=tmp_path / "home")) as orc:
        with pytest.raises(SandboxUnavailable, match="not installed"):
            orc.load("walled")
        assert not list((tmp_path / "home").glob("environments/*"))
