"""Interpreters: which one is chosen, and that pyenv's shims do no harm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.environments import interpreters as module
from orchestrator.environments.interpreters import (
    Interpreter,
    choose,
    find_interpreter,
    installed_interpreters,
)
from orchestrator.errors import InterpreterNotFound

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
INSTALLED = [Interpreter(Path(f"/p{v}"), v) for v in ("3.99.1", f"{RUNNING}.7", "3.9.18", "3.8.18")]


@pytest.mark.parametrize(
    ("wanted", "minor", "expected"),
    [
        (">=3.8", None, f"{RUNNING}.7"),
        (">=3.8", "3.9", "3.9.18"),
        (">=3.8", "3.7", f"{RUNNING}.7"),
        (">=3.8,<3.10", None, "3.9.18"),
        (">=3.50", None, "3.99.1"),
    ],
)
def test_the_locks_version_then_the_running_one_then_the_newest(wanted, minor, expected):
    assert choose(INSTALLED, wanted, minor).version == expected


def test_none_fits():
    assert choose(INSTALLED, "==3.7.*", None) is None


def test_the_running_interpreter_is_found(machine):
    base = Path(sys._base_executable).resolve()
    found = installed_interpreters(machine.settings)
    assert base in [interpreter.path for interpreter in found]
    assert all(not interpreter.version.startswith(("2.", "3.6", "3.7")) for interpreter in found)


def test_what_is_behind_shims_that_do_not_work_is_found(machine, monkeypatch):
    shims = machine.root / ".pyenv" / "shims"
    behind = machine.root / ".pyenv" / "versions" / RUNNING / "bin"
    for folder in (shims, behind):
        folder.mkdir(parents=True)
    (shims / "python3").write_text("#!/bin/sh\necho 'pyenv: python3: command not found' >&2\nexit 127\n")
    (shims / "python3").chmod(0o755)
    (behind / "python3").symlink_to(sys._base_executable)
    monkeypatch.setenv("HOME", str(machine.root))
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.setenv("PATH", str(shims))
    found = installed_interpreters(machine.settings, fresh=True)
    assert [interpreter.path for interpreter in found] == [Path(sys._base_executable).resolve()]


def test_the_answer_is_kept_until_an_interpreter_changes(machine, monkeypatch):
    link = machine.root / "python"
    link.symlink_to(sys._base_executable)
    monkeypatch.setattr(module, "_ask_uv", lambda _: [Interpreter(link, "3.11.7")])
    assert installed_interpreters(machine.settings, fresh=True)[0].path == link
    monkeypatch.setattr(module, "_ask_uv", lambda _: [])
    assert installed_interpreters(machine.settings)
    link.unlink()
    assert installed_interpreters(machine.settings) == []


def test_a_missing_one_is_looked_for_again_before_giving_up(machine, monkeypatch):
    installed_interpreters(machine.settings)
    asked = []
    monkeypatch.setattr(module, "_ask_uv", lambda _: asked.append(1) or [Interpreter(Path("/new"), "3.99.1")])
    assert find_interpreter(machine.settings, "==3.99.*").path == Path("/new")
    assert asked
    with pytest.raises(InterpreterNotFound, match=r"installed: 3\.99\.1"):
        find_interpreter(machine.settings, "==3.98.*")
