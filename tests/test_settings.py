"""Settings: which layer wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.settings import load_settings


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[tool.orchestrator]\ntorch-backend = "cu126"\nthreads = 3\n')
    return tmp_path


def test_the_command_line_goes_before_the_environment_before_the_project(project: Path) -> None:
    environ = {"ORCHESTRATOR_TORCH_BACKEND": "cpu"}
    found = load_settings({"threads": 5}, project=project, environ=environ)
    assert (found.torch_backend, found.threads) == ("cpu", 5)
    assert (found.sources["torch_backend"], found.sources["threads"]) == ("environment", "command line")


def test_an_empty_variable_is_none(project: Path) -> None:
    """Taken at its word it was a backend without a name, which brought CUDA, and a store in the current folder."""
    environ = {"ORCHESTRATOR_TORCH_BACKEND": "", "ORCHESTRATOR_HOME": ""}
    found = load_settings(project=project, environ=environ)
    assert found.torch_backend == "cu126"
    assert found.home == load_settings(project=project, environ={}).home


def test_what_cannot_be_meant_is_refused_with_its_place(project: Path) -> None:
    with pytest.raises(
        ConfigError, match="'threads' in environment cannot be 'many': expected a whole number"
    ):
        load_settings(project=project, environ={"ORCHESTRATOR_THREADS": "many"})
    (project / "pyproject.toml").write_text("[tool.orchestrator]\nthread = 3\n")
    with pytest.raises(ConfigError, match="did you mean 'threads'"):
        load_settings(project=project, environ={})
