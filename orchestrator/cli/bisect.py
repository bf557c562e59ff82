"""`orchestrator bisect FILE`: the first version at which a call changes or breaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from packaging.version import VERSION_PATTERN

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.matrix import Bisection, CellResult, MatrixFile

__all__ = ["command"]


@click.command("bisect")
@click.argument("matrix", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--axis", help="The distribution whose versions are halved; by default the matrix's only version axis."
)
@click.option("--good", required=True, metavar="VERSION", help="A version that answers as it should.")
@click.option("--bad", required=True, metavar="VERSION", help="A later version that does not.")
@json_option
@pass_console
def command(console: Console, matrix: Path, axis: str | None, good: str, bad: str) -> None:
    """Find the first version between two at which the calls of a MATRIX file change or break.

    Only the versions that are looked at are built: seven of a hundred. Other axes keep their first value. What
    counts as a change is the file's `compare`. Two examples: docs/matrix.md.
    """
    from orchestrator.environments.versions import releases
    from orchestrator.matrix import Cell, Runner, axis_values, bisect, read_matrix

    file = read_matrix(matrix)
    name = _axis(file, axis)
    with console.progress() as listener:
        others = tuple(
            (key, axis_values(file, key, console.settings, listener)[0]) for key in file.axes if key != name
        )
        for option, version in (("--good", good), ("--bad", bad)):
            if not re.fullmatch(VERSION_PATTERN, version, re.VERBOSE | re.IGNORECASE):
                raise click.BadParameter(f"{version!r} is no version", param_hint=option)
        versions = [str(v) for v in releases(console.settings, name, f">={good},<={bad}", listener)]
        if len(versions) < 2 or versions[0] != good or versions[-1] != bad:
            raise ConfigError(f"{name} {good} and {bad} are not two releases, the older one first")
        with Runner(file, console.settings, listener=listener) as runner:

            def run(version: str) -> CellResult:
                result = runner.run(Cell((*others, (name, version))))
                console.talk(f"{name} {version}: {'answers' if result.outcome == 'pass' else result.outcome}")
                return result

            found = bisect(versions, run, lambda result, reference: runner.judge([result], reference))
    if console.json_output:
        console.json(_json(found, name, len(versions)))
    else:
        _tell(console, found, name)


def _axis(file: MatrixFile, axis: str | None) -> str:
    from orchestrator.matrix.schema import LOADING

    candidates = [name for name in file.axes if name not in LOADING]
    if axis is not None:
        if axis in LOADING:
            raise ConfigError(f"--axis {axis}: only the versions of a distribution have an order")
        return axis
    if len(candidates) != 1:
        raise ConfigError(
            f"which axis? {', '.join(candidates) or 'the matrix has none'}", hint="add --axis NAME"
        )
    return candidates[0]


def _json(found: Bisection, name: str, releases: int) -> dict[str, object]:
    from orchestrator.matrix.output import cell_json

    return {
        "axis": name,
        "good": found.good.cell.get(name),
        "bad": found.bad.cell.get(name),
        "outcome": found.bad.outcome,
        "message": found.bad.message,
        "hint": found.bad.hint,
        "cannot_install_between": list(found.between),
        "releases": releases,
        "tried": [cell_json(result) for result in found.tried],
    }


def _tell(console: Console, found: Bisection, name: str) -> None:
    from packaging.version import Version

    console.table(
        (name, "outcome", "what"),
        [
            (r.cell.get(name), r.outcome, r.message.splitlines()[0] if r.message else "")
            for r in sorted(found.tried, key=lambda r: Version(r.cell.get(name) or "0"))
        ],
    )
    console.data(
        f"\n{name} {found.bad.cell.get(name)} is the first that {_verb(found.bad)}: {found.bad.message}"
    )
    console.data(
        f"{name} {found.good.cell.get(name)} is the last that answers as {found.tried[0].cell.get(name)} does"
    )
    if found.between:
        console.data(f"between the two, and not to be installed here: {', '.join(found.between)}")
    if found.bad.hint:
        console.data(f"hint: {console.in_its_words(found.bad.hint)}")


def _verb(result: CellResult) -> str:
    return "differs" if result.outcome == "differs" else "fails"
