"""Bounds that a family overrides: the clash they make is meant; any other still refuses the environment."""

from __future__ import annotations

import subprocess

import pytest

from orchestrator.environments import build
from orchestrator.environments.interpreters import find_interpreter
from orchestrator.environments.recipe import Recipe
from orchestrator.errors import ProvisioningError
from orchestrator.events import ignore


def test_an_environment_with_overridden_bounds_is_built(machine):
    machine.wheel("old", "1.0")
    machine.wheel("old", "2.0")
    machine.wheel("display", "1.0")
    machine.wheel("model", "1.0", requires=["old<2", "display"])
    overrides = """override-dependencies = ["old==2.0", "display; python_version < '3'"]"""
    environment = machine.ensure(machine.declare("family", ["model"], uv=overrides))
    assert environment.versions["old"] == "2.0"
    assert "display" not in environment.versions


@pytest.mark.parametrize(
    ("overridden", "refused"), [(("old", "display"), False), (("old",), True), ((), True)]
)
def test_only_what_is_overridden_may_clash(machine, tmp_path, monkeypatch, overridden, refused):
    words = (
        "Found 2 incompatibilities\n"
        "The package `model` requires `old<2`, but `2.0` is installed\n"
        "The package `model` requires `Display`, but it's not installed\n"
    )
    answer = subprocess.CompletedProcess([], 1, stdout="", stderr=words)
    monkeypatch.setattr(build, "run_uv", lambda *arguments, **options: answer)
    interpreter = find_interpreter(machine.settings, ">=3.8")
    recipe = Recipe("family", interpreter, "model==1.0\n", "hardlink", overridden=overridden)
    if not refused:
        build._check(machine.settings, recipe, tmp_path, ignore)
        return
    with pytest.raises(ProvisioningError, match="does not fit together"):
        build._check(machine.settings, recipe, tmp_path, ignore)
