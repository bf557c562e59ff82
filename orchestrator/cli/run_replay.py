"""`orchestrator run --replay RUN.JSON`: a recorded run once more, held against what it gave."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.console import Console
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.workflow import Run
    from orchestrator.workflow.replay import ColumnComparison

__all__ = ["replay"]


def replay(
    console: Console, path: Path, out: Path | None, pairs: tuple[str, ...], *, sandbox: bool | None
) -> int:
    """The exit code: 1 where anything differs or an item failed.

    What is missing of it (environments, checkpoints, packages) is made and fetched in the recorded versions, with the
    network where that is allowed; the run itself is offline.
    """
    from orchestrator.checkpoints import CheckpointStore
    from orchestrator.client import Orchestrator
    from orchestrator.environments import EnvironmentStore
    from orchestrator.workflow import replay as again
    from orchestrator.workflow.inputs import parse_overrides
    from orchestrator.workflow.record import read_record, recorded_inputs
    from orchestrator.workflow.restoring import fetch_checkpoints, fetch_packages, restore_environments

    path = path / "run.json" if path.is_dir() else path
    record = read_record(path)
    again.check_results(path.parent)
    workflow = again.recorded_workflow(record)
    told = record["workflow"]
    given = parse_overrides(pairs)
    for name in given:
        if name not in told.get("withheld", ()):
            raise ConfigError(
                f"--input {name}: --replay takes the recorded value; only secrets are given again"
            )
    inputs = recorded_inputs(record, given, workflow.file, f"orchestrator run --replay {path}")
    secrets = workflow.secrets(inputs)
    store = EnvironmentStore(console.settings)
    settings = dataclasses.replace(console.settings, offline=True)
    with (
        secrets.hidden(),
        console.progress() as listener,
        Orchestrator(settings=settings, listener=secrets.listener(listener)) as orc,
    ):
        files = (orc.checkpoints, CheckpointStore(console.settings, store, orc.catalog))
        notes = fetch_packages(record, *files, listener)
        execution = workflow.start(
            orc,
            inputs=inputs,
            out=out,
            listener=listener,
            sandbox=told.get("sandbox") if sandbox is None else sandbox,
        )
        try:
            again.check_inputs(record, execution.inputs)
            notes += fetch_checkpoints(execution.roster, *files, listener)
            notes += restore_environments(record, path.parent, execution.roster, store, listener)
            notes += again.not_as_recorded(record, execution.roster)
        except BaseException:
            execution.folder.rmdir()  # nothing is in it yet
            raise
        for note in notes:
            console.talk(note)
        run = execution.run()
    found = again.compare(path.parent, run)
    _show(console, run, notes, found)
    return 1 if run.exit_code or not all(column.equal for column in found) else 0


def _show(console: Console, run: Run, notes: list[str], found: list[ColumnComparison]) -> None:
    from orchestrator.workflow.replay import shown

    if console.json_output:
        columns = [shown(column) for column in found]
        console.json({"folder": run.folder, "notes": notes, "columns": columns})
        return
    rows: list[tuple[Any, ...]] = [(c.column, c.rows, len(c.differing), f"{c.largest:.3g}") for c in found]
    console.table(("column", "rows", "differ", "largest difference"), rows)
    console.talk(str(run.report))
