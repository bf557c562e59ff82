"""`orchestrator run WORKFLOW`: from a file to a folder with results and a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.workflow import Workflow

__all__ = ["command"]

GIB = 2**30


@click.command("run")
@click.argument("workflow", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="NAME=VALUE",
    help="The value of an input; more than once for a list. NAME alone: that variable's value.",
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
@click.option(
    "--sandbox/--no-sandbox", default=None,
    help="Confine the workers (bubblewrap): no network, no files to write [default: as the file says].",
)  # fmt: skip
@click.option("--parquet", is_flag=True, help="Write results.parquet as well; needs pyarrow.")
@click.option("--open", "open_", is_flag=True, help="Open the report when it is done.")
@json_option
@pass_console
def command(
    console: Console,
    /,
    workflow: Path | None,
    inputs: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    replay: Path | None,
    sandbox: bool | None,
    **switches: bool,
) -> None:
    """Run WORKFLOW, a YAML file, and write results.jsonl, arrays, run.json and report.html.

    \b
      orchestrator run examples/photo_story.yaml
      orchestrator run examples/photo_story.yaml --input photos=~/Pictures --out story
      orchestrator run --resume story
    """
    if replay is None:
        chosen = _chosen(workflow, inputs, resume, sandbox)
        code = _run(console, chosen, resume, out, **switches)
    else:
        from orchestrator.cli.run_replay import replay as run_again

        if workflow is not None or resume is not None or any(switches.values()):
            raise ConfigError(
                "--replay makes a run again as it was: only --out, --sandbox and --input of its secrets go with it"
            )
        code = run_again(console, replay, out, inputs, sandbox=sandbox)
    raise click.exceptions.Exit(code)


@dataclass(frozen=True)
class _Chosen:
    """What to run: as the command line says, or as the run to go on with recorded it."""

    workflow: Workflow
    inputs: dict[str, Any]
    sandbox: bool | None


def _chosen(path: Path | None, pairs: tuple[str, ...], resume: Path | None, sandbox: bool | None) -> _Chosen:
    from orchestrator.workflow import Workflow
    from orchestrator.workflow.inputs import parse_overrides
    from orchestrator.workflow.record import read_record, recorded_inputs

    inputs = parse_overrides(pairs)
    if resume is None:
        if path is None:
            raise ConfigError("WORKFLOW is missing", hint="orchestrator run FILE.yaml")
        return _Chosen(Workflow.read(path), inputs, sandbox)
    record = read_record(resume / "run.json")
    told = record["workflow"]
    if path is not None:
        checked = Workflow.read(path)
    else:
        checked = Workflow.parse(told["text"], name=told["path"], base=Path(told["base"]))
    command = f"orchestrator run{'' if path is None else f' {path}'} --resume {resume}"
    known = recorded_inputs(record, inputs, checked.file, command)
    return _Chosen(checked, known, told.get("sandbox") if sandbox is None else sandbox)


def _run(
    console: Console,
    chosen: _Chosen,
    resume: Path | None,
    out: Path | None,
    *,
    dry_run: bool,
    parquet: bool,
    open_: bool,
    **cache: bool,
) -> int:
    """The exit code."""
    from orchestrator.cli.run_show import show, show_plan, show_unfinished
    from orchestrator.client import Orchestrator
    from orchestrator.workflow.tables import check_parquet, write_parquet

    if resume is not None and out is not None:
        raise ConfigError("--resume goes on in its own folder: leave out --out")
    if parquet:
        check_parquet()
    secrets = chosen.workflow.secrets(chosen.inputs)
    with (
        secrets.hidden(),
        console.progress() as listener,
        Orchestrator(settings=console.settings, listener=secrets.listener(listener)) as orc,
        _memory(console, orc, **cache) as memory,
    ):
        given: dict[str, Any] = {"inputs": chosen.inputs, "listener": listener, "memory": memory}
        if dry_run:
            show_plan(console, chosen.workflow.plan(orc, **given))
            return 0
        execution = chosen.workflow.start(
            orc, out=resume or out, again=resume is not None, sandbox=chosen.sandbox, **given
        )
        try:
            run = execution.run()
        except BaseException as error:
            show_unfinished(console, execution, error)
            raise
    if parquet:
        write_parquet(run.folder)
    show(console, run)
    if open_:
        click.launch(str(run.report))
    return run.exit_code


@contextmanager
def _memory(console: Console, orc: Any, *, fresh: bool, no_cache: bool) -> Iterator[Any]:
    from orchestrator.workflow.cache import Cache, CacheMemory
    from orchestrator.workflow.calls import Memory
    from orchestrator.workflow.identity import Identifier

    if no_cache:
        yield Memory()
        return
    cache = Cache(console.settings.home / "results", int(console.settings.results_limit * GIB))
    try:
        yield CacheMemory(cache, Identifier(orc), fresh=fresh)
    finally:
        cache.close()
