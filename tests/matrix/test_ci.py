"""This project's own CI: its workflow is read, and what its steps run is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    """The jobs of ci.yml."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {}
    found: dict[str, Any] = workflow["jobs"]
    return found


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


@pytest.mark.slow
def test_the_cells_that_are_printed_are_the_jobs_that_run(jobs: dict[str, Any], tmp_path: Path) -> None:
    """The list that one job prints is the other's matrix, and each of its entries chooses a cell of the file."""
    (step,) = (step for step in jobs["cells"]["steps"] if step.get("id") == "list")
    output = tmp_path / "output"
    shell(step["run"], GITHUB_OUTPUT=str(output))
    name, _, printed = output.read_text().strip().partition("=")
    cells = json.loads(printed)["include"]
    assert jobs["cells"]["outputs"] == {name: f"${{{{ steps.list.outputs.{name} }}}}"}
    versions = jobs["versions"]
    assert versions["needs"] == "cells"
    assert versions["strategy"]["matrix"] == f"${{{{ fromJSON(needs.cells.outputs.{name}) }}}}"
    used = set(re.findall(r"\$\{\{ matrix\.(\w+) \}\}", json.dumps(versions)))
    assert all(used == set(cell) for cell in cells)
    (command,) = (s["run"] for s in versions["steps"] if "orchestrator matrix" in s.get("run", ""))
    done = shell(f"{command} --dry-run --json", TRANSFORMERS=cells[-1]["transformers"])
    assert json.loads(done.stdout) == [cells[0], cells[-1]]  # the reference is always run
