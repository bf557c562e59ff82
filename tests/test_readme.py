"""The README's promises that a test can hold: its commands and its workflow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator import Orchestrator
from orchestrator.cli.main import COMMANDS
from orchestrator.workflow import Workflow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_two_commands_come_first_each_in_one_line() -> None:
    main_job, tests = blocks("bash")[:2]
    assert main_job.count("\n") == tests.count("\n") == 1
    assert main_job.strip().endswith("orchestrator run examples/photo_story.yaml")
    assert tests.strip().endswith("pytest -q -n auto --dist loadfile")
    assert README.index("```bash") < README.index("## ")


@pytest.mark.slow
def test_the_workflow_runs_as_it_stands(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "photos").mkdir()
    for shade in (0, 200):
        (tmp_path / "photos" / f"{shade}.jpg").write_bytes(b"P6 64 48 255\n" + bytes([shade]) * (64 * 48 * 3))
    with Orchestrator() as orc:
        run = Workflow.parse(text, name="README.md", base=tmp_path).run(orc, out=tmp_path / "out")
    assert run.exit_code == 0
    assert [(bool(row["label"]), row["vector"].shape) for row in run.results()] == [(True, (384,))] * 2


def test_every_command_is_named_and_exists() -> None:
    (listing,) = re.findall(r"```\n(orchestrator run.*?)```", README, re.DOTALL)
    named = {
        word for line in listing.splitlines() for word in re.findall(r"(?:^orchestrator|\|) (\w+)", line)
    }
    assert named <= set(COMMANDS)
    assert set(COMMANDS) - named <= {"graph", "schema"}
