"""`orchestrator matrix FILE`: the same calls over versions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.console import Console, OutFile, json_option, pass_console

if TYPE_CHECKING:
    from orchestrator.matrix import Cell, MatrixResult

__all__ = ["command"]

OUT = OutFile()


@click.command("matrix")
@click.argument("matrix", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--only",
    multiple=True,
    metavar="AXIS=VALUE",
    help="Only the cells with this value, and the reference that they are held against. Repeatable.",
)
@click.option(
    "--parallel", type=click.IntRange(1), help="Cells at a time; by default as many as cores, at most 4."
)
@click.option(
    "--allow-ignored-keys",
    is_flag=True,
    help="Load although a version ignores keys of config.json; the numbers then tell what that does.",
)
@click.option("--html", "html_path", type=OUT, help="Write the heat map, one file.")
@click.option("--junitxml", type=OUT, help="Write JUnit XML.")
@click.option("--markdown", type=OUT, help="Write the table as Markdown.")
@click.option("--github", is_flag=True, help="Run nothing; print the include list for a workflow matrix.")
@click.option("--dry-run", is_flag=True, help="Run nothing; list the cells.")
@json_option
@pass_console
def command(
    console: Console,
    matrix: Path,
    only: Sequence[str],
    parallel: int | None,
    allow_ignored_keys: bool,
    html_path: Path | None,
    junitxml: Path | None,
    markdown: Path | None,
    github: bool,
    dry_run: bool,
) -> None:
    """Run the calls of a MATRIX file over its axes; each cell passes, differs, fails or cannot be installed.

    On GitHub the table goes into the step's summary and every cell that does not pass becomes an annotation.
    Exit code 0 when every cell passes, else 1. The file, its outputs and a GitHub workflow: docs/matrix.md.
    """
    from orchestrator.matrix import expand, read_matrix, run_matrix

    file = read_matrix(matrix)
    file.allow_ignored_keys |= allow_ignored_keys
    chosen = dict(_pair(text) for text in only)
    with console.progress() as listener:
        cells, reference = expand(file, console.settings, listener, only=chosen)
        if github or dry_run:
            _list(console, cells, github)
            return
        result = run_matrix(file, cells, reference, console.settings, parallel=parallel, listener=listener)
    _write(result, html_path, junitxml, markdown)
    _show(console, result, matrix)
    raise click.exceptions.Exit(0 if result.ok else 1)


def _pair(text: str) -> tuple[str, str]:
    axis, equals, value = text.partition("=")
    if not equals or not axis:
        raise click.BadParameter(f"{text!r}: write AXIS=VALUE", param_hint="--only")
    return axis, value.lstrip("=")


def _list(console: Console, cells: Sequence[Cell], github: bool) -> None:
    import json

    values = [dict(cell.values) for cell in cells]
    if github:
        console.data(json.dumps({"include": values}))
    elif console.json_output:
        console.json(values)
    else:
        console.table(list(values[0]), [list(value.values()) for value in values])


def _write(
    result: MatrixResult, html_path: Path | None, junitxml: Path | None, markdown: Path | None
) -> None:
    from orchestrator.matrix import output
    from orchestrator.matrix.page import as_html

    for path, make in (
        (html_path, as_html),
        (junitxml, output.as_junit),
        (markdown, output.as_markdown),
    ):
        if path is not None:
            path.write_text(make(result), encoding="utf-8")


def _show(console: Console, result: MatrixResult, path: Path) -> None:
    from orchestrator.matrix import output

    if console.json_output:
        console.json(output.as_json(result))
    else:
        console.table(output.columns(result), output.rows(result))
        for hint in dict.fromkeys(cell.hint for cell in result.cells if cell.hint):
            console.talk(f"hint: {console.in_its_words(hint)}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        place = os.path.relpath(
            path, os.environ.get("GITHUB_WORKSPACE") or None
        )  # GitHub knows no other paths
        for line in output.github_annotations(result, place):
            click.echo(line, err=console.json_output)
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(output.as_markdown(result))
