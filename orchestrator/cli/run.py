"""`orchestrator run WORKFLOW`: from a file to a folder with results and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.workflow import Execution, Run, Workflow

__all__ = ["command"]

GIB = 2**30


@click.command("run")
@click.argument("workflow", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="NAME=VALUE",
    help="The value of an input; more than once for a list.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The run's folder [default: runs/NAME-TIME]."
)
@click.option(
    "--resume", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="Go on with an unfinished run: only what is missing is computed.",
)  # fmt: skip
@click.option(
    "--replay", type=click.Path(exists=True, path_type=Path), metavar="RUN.JSON",
    help="Make a recorded run again, offline and without the cache, and compare.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be computed and what is cached; do nothing.")
@click.option("--fresh", is_flag=True, help="Compute everything, whatever is cached.")
@click.option("--no-cache", is_flag=True, help="Neither read nor write the cache.")
@click.option("--parquet", is_flag=True, help="Write results.parquet as well; needs pyarrow.")
@click.option("--open", "open_", is_flag=True, help="Open the report when it is done.")
@json_option
@pass_console
def command(
    console: Console,
    workflow: Path | None,
    *,
    inputs: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    replay: Path | None,
    dry_run: bool,
    fresh: bool,
    no_cache: bool,
    parquet: bool,
    open_: bool,
) -> None:
    """Run WORKFLOW, a YAML file, and write results.jsonl, arrays, run.json and report.html.

    \b
      orchestrator run examples/photo_story.yaml
      orchestrator run examples/photo_story.yaml --input photos=~/Pictures --out story
      orchestrator run --resume story
    """
    from orchestrator.client import Orchestrator
    from orchestrator.workflow.inputs import parse_overrides

    if replay is not None:
        _replay(console, replay, out)
        return
    if parquet:
        from orchestrator.workflow.tables import check_parquet

        check_parquet()
    checked, overrides = _chosen(workflow, resume, parse_overrides(inputs))
    if resume is not None and out is not None:
        raise ConfigError("--resume goes on in its own folder: leave out --out")
    with (
        console.progress() as listener,
        Orchestrator(settings=console.settings, listener=listener) as orc,
        _memory(console, orc, fresh=fresh, off=no_cache) as memory,
    ):
        if dry_run:
            plan = checked.plan(orc, inputs=overrides, listener=listener, memory=memory)
            _show_plan(console, plan)
            return
        execution = checked.start(
            orc,
            inputs=overrides,
            out=resume or out,
            listener=listener,
            memory=memory,
            again=resume is not None,
        )
        run = _finished(console, execution)
    if parquet:
        from orchestrator.workflow.tables import write_parquet

        write_parquet(run.folder)
    _show(console, run)
    if open_:
        click.launch(str(run.report))
    if run.exit_code:
        raise click.exceptions.Exit(run.exit_code)


def _replay(console: Console, path: Path, out: Path | None) -> None:
    """Exit code 1 where anything differs."""
    from orchestrator.client import Orchestrator
    from orchestrator.workflow import replay as again
    from orchestrator.workflow.record import read_record

    path = path / "run.json" if path.is_dir() else path
    record = read_record(path)
    workflow = again.recorded_workflow(record)
    settings = dataclasses.replace(console.settings, offline=True)
    with console.progress() as listener, Orchestrator(settings=settings, listener=listener) as orc:
        execution = workflow.start(orc, inputs=record["workflow"]["inputs"], out=out, listener=listener)
        for change in again.changed_environments(record, execution.roster):
            console.talk(f"not as recorded: {change}")
        again.check_inputs(record, execution.inputs)
        run = _finished(console, execution)
    found = again.compare(path.parent, run)
    if console.json_output:
        console.json({"folder": run.folder, "columns": [again.shown(column) for column in found]})
    else:
        rows = [(c.column, c.rows, len(c.differing), f"{c.largest:.3g}") for c in found]
        console.table(("column", "rows", "differ", "largest difference"), rows)
        console.talk(str(run.report))
    if run.exit_code or not all(column.equal for column in found):
        raise click.exceptions.Exit(1)


def _chosen(
    path: Path | None, resume: Path | None, overrides: dict[str, Any]
) -> tuple[Workflow, dict[str, Any]]:
    """The workflow and its inputs: from the file, or as the run to go on with recorded them."""
    from orchestrator.workflow import Workflow
    from orchestrator.workflow.record import read_record

    if resume is None:
        if path is None:
            raise ConfigError("WORKFLOW is missing", hint="orchestrator run FILE.yaml")
        return Workflow.read(path), overrides
    recorded = read_record(resume / "run.json")["workflow"]
    given = {**recorded["inputs"], **overrides}
    if path is not None:
        return Workflow.read(path), given
    return Workflow.parse(recorded["text"], name=recorded["path"], base=Path(recorded["base"])), given


@contextmanager
def _memory(console: Console, orc: Any, *, fresh: bool, off: bool) -> Iterator[Any]:
    from orchestrator.workflow.cache import Cache, CacheMemory
    from orchestrator.workflow.calls import Memory
    from orchestrator.workflow.identity import Identifier

    if off:
        yield Memory()
        return
    cache = Cache(console.settings.home / "results", int(console.settings.results_limit * GIB))
    try:
        yield CacheMemory(cache, Identifier(orc), fresh=fresh)
    finally:
        cache.close()


def _finished(console: Console, execution: Execution) -> Run:
    try:
        return execution.run()
    except BaseException:
        console.talk(
            f"what is finished is in {execution.folder}; go on: orchestrator run --resume {execution.folder}"
        )
        raise


def _show(console: Console, run: Run) -> None:
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


def _show_plan(console: Console, plan: Any) -> None:
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
