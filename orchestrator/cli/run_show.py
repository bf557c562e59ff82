"""What `orchestrator run` says: the plan, the end of a run, and where to go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.console import Console
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from orchestrator.workflow import Execution, Run

__all__ = ["show", "show_plan", "show_unfinished"]


def show(console: Console, run: Run) -> None:
    """The end of a run: its failures, its figures, and on stdout where its report is."""
    record = run.record
    if console.json_output:
        console.json(_as_json(run.folder, run.exit_code, record))
        return
    for error in record["errors"][:10]:
        where = f"{error['step']}{error['index'] or ''}"
        console.talk(f"failed: {where}: {error['error']}")
    if len(record["errors"]) > 10:
        console.talk(f"… and {len(record['errors']) - 10} more: see {run.folder / 'run.json'}")
    calls = sum(step["calls"] for step in record["steps"].values() if step["model"])
    cached = sum(step.get("cached", 0) for step in record["steps"].values())
    words = [
        f"{record['rows']} rows in {record['seconds']:.1f} s",
        f"{cached} of {calls} calls from the cache",
    ]
    if run.failed:
        words.append(f"{run.failed} failed")
    console.talk(", ".join(words))
    console.data(str(run.report))


def _as_json(folder: Path, exit_code: int, record: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "state", "error", "seconds", "rows", "failed", "steps", "errors")
    known = {"folder": folder, "report": folder / "report.html", "exit_code": exit_code}
    return known | {key: record[key] for key in keys}


def show_unfinished(console: Console, execution: Execution, error: BaseException) -> None:
    """The end of a run that was stopped: with `--json` what is known of it, else where to go on."""
    folder = execution.folder
    if console.json_output and isinstance(error, OrchestratorError) and execution.record:
        console.json(_as_json(folder, error.exit_code, execution.record))
    console.talk(f"what is finished is in {folder}; go on: {execution.resume}")


def show_plan(console: Console, plan: Any) -> None:
    """What a run would do, as two tables."""
    if console.json_output:
        console.json(dataclasses.asdict(plan))
        return
    console.table(
        ("model", "family", "environment", "checkpoint", "load"),
        [
            (
                m.name,
                m.family,
                m.problem or m.environment or "to be built",
                m.checkpoint,
                "yes" if m.load else "no",
            )
            for m in plan.models
        ],
    )
    console.data("")
    console.table(
        ("step", "model", "cached", "to run", "skipped"),
        [(s.id, s.model, s.cached, f"{s.run}{'+' if s.open else ''}", s.skipped) for s in plan.steps],
    )
