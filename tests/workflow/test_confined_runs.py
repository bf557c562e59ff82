"""`sandbox` of a model and `run --sandbox`, to the load and, where bubblewrap is there, to the worker."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fake_models import FakeModels

from orchestrator import Orchestrator
from orchestrator.errors import SandboxUnavailable
from orchestrator.processes import require_bubblewrap
from orchestrator.settings import Settings
from orchestrator.workflow import Workflow

TEXT = """
version: 1
name: w
models: {a: {family: python}, b: {family: python, sandbox: true}, c: {family: python, sandbox: false}}
steps:
- {id: a, model: a, call: f, with: {x: 1}}
- {id: b, model: b, call: f, with: {x: 1}}
- {id: c, model: c, call: f, with: {x: 1}}
"""
ATTEMPT = """
import os

def attempt(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return os.strerror(error.errno)
    return "written"
"""


def asked_for(sandbox: bool | None, out: str) -> dict[str, bool | None]:
    models = FakeModels(python={"f": lambda x: x})
    Workflow.parse(TEXT).run(models, sandbox=sandbox, out=out)
    return {arguments["name"]: arguments.get("sandbox") for _, arguments in models.loads}


def test_the_files_key_and_what_takes_its_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.workflow.run.require_bubblewrap", lambda: "bwrap")
    assert asked_for(None, "as-the-file-says") == {"a": None, "b": True, "c": False}
    assert asked_for(True, "all") == {"a": True, "b": True, "c": True}
    assert asked_for(False, "none") == {"a": False, "b": False, "c": False}
    assert json.loads((here / "all" / "run.json").read_text())["workflow"]["sandbox"] is True


def test_without_bubblewrap_nothing_is_begun(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(SandboxUnavailable, match="not installed"):
        asked_for(None, "out")
    assert not (here / "out").exists()
    assert asked_for(False, "out") == {"a": False, "b": False, "c": False}


@pytest.mark.slow
def test_a_confined_step_writes_nothing(here: Path, settings: Settings) -> None:
    try:
        require_bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(error.message)
    target = Path.home() / f"written-by-{os.getpid()}"
    (here / "steps.py").write_text(ATTEMPT)
    workflow = Workflow.parse(
        "version: 1\nname: w\nmodels: {m: {family: ./steps.py}}\n"
        f"steps: [{{id: a, model: m, call: attempt, with: {{path: {target}}}}}]\n"
    )
    try:
        with Orchestrator(settings=settings) as orc:
            (row,) = workflow.run(orc, sandbox=True, out="out").results()
        assert row["a"] == "Read-only file system"
        assert not target.exists()
    finally:
        target.unlink(missing_ok=True)
