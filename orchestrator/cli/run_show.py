"""What `orchestrator run` says: the plan, the end of a run, and where to go on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from orchestrator.cli.console import Console

if TYPE_CHECKING:
    from orchestrator.workflow import Run

__all__ = ["show", "show_plan"]


def show(console: Console, run: Run) -> None:
    """The end of a run: its failures, its figures, and on stdout where its report is."""
    record = run.record
    if console.json_output:
        console.json(
            {"folder": run.folder, "report": run.report, "exit_code": run.exit_code, **_short(record)}
        )
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


def _short(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "state", "seconds", "rows", "failed", "steps", "errors")
    return {key: record[key] for key in keys}


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
