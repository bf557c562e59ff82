"""The worker's parts in the families' real environments, each check of `checks_*.py` one test."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from orchestrator.environments import Catalog, EnvironmentStore

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CHECKS = sorted(
    node.name
    for file in HERE.glob("checks_*.py")
    for node in ast.parse(file.read_text("utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def outcome(
    catalog: Catalog, store: EnvironmentStore, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Mapping[str, str | None]]:
    """`outcome("minigemini")`: what became of each check there, all run once in one process."""
    done: dict[str, Mapping[str, str | None]] = {}

    def run(family: str) -> Mapping[str, str | None]:
        if family not in done:
            environment = store.ensure(catalog.get(family))
            scratch = tmp_path_factory.mktemp(family)
            ran = subprocess.run(
                [str(environment.python), str(HERE / "inside.py"), str(ROOT), str(scratch)],
                env={
                    "PATH": "/usr/bin:/bin",
                    "HOME": str(scratch),
                    "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": "1",
                },
                capture_output=True,
                text=True,
                timeout=800,
                check=False,
            )
            assert ran.returncode == 0, ran.stderr
            lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"check"')]
            done[family] = {line["check"]: line["problem"] for line in lines}
        return done[family]

    return run


@pytest.mark.parametrize("family", ["minigemini", "minigemini-2b"])
@pytest.mark.parametrize("check", CHECKS)
def test_inside(outcome: Callable[[str], Mapping[str, str | None]], family: str, check: str) -> None:
    problem = outcome(family)[check]
    assert problem is None, problem
