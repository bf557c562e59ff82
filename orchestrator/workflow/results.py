"""A run's folder: results.jsonl, arrays/*.npz, summary.json and what the report needs."""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from orchestrator.workflow.engine import Sink
from orchestrator.workflow.graph import Node
from orchestrator.workflow.pieces import write_npy
from orchestrator.workflow.references import ReferenceFailure, references_in
from orchestrator.workflow.scope import Index, Outcome, Scope
from orchestrator.workflow.secret_inputs import NO_SECRETS, Secrets
from orchestrator.workflow.values import File, plain

__all__ = ["ArrayFiles", "Bar", "Results", "StepTally"]

CARDS = 200  # items that the report shows
BARS = 5000  # calls that the report draws
ERRORS = 1000  # errors that run.json lists


@dataclass
class StepTally:
    """What became of a step's calls. `seconds` is the time spent in calls of this run."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    model: str | None = None


@dataclass(frozen=True)
class Bar:
    """One call on the time line; `started` in seconds since the epoch."""

    step: str
    index: Index
    started: float
    seconds: float
    failed: bool


class ArrayFiles:
    """One .npz for each column, written as the rows come; a key is the row's index (and the way into its value)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, zipfile.ZipFile] = {}
        self._written: set[tuple[str, str]] = set()

    def put(self, column: str, key: str, array: np.ndarray[Any, Any]) -> Any:
        """Writes an array; gives what stands for it in JSON. Arrays of objects are written as lists."""
        if array.dtype.hasobject:
            return plain(array.tolist())
        name = re.sub(r"[^\w.-]", "_", column) + ".npz"
        if name not in self._open:
            self.folder.mkdir(exist_ok=True)
            self._open[name] = zipfile.ZipFile(self.folder / name, "w", zipfile.ZIP_STORED, allowZip64=True)
        where = f"{self.folder.name}/{name}"
        known = {"$array": where, "key": key, "dtype": str(array.dtype), "shape": list(array.shape)}
        if (name, key) in self._written:  # a value that several rows share
            return known
        self._written.add((name, key))
        with self._open[name].open(f"{key}.npy", "w", force_zip64=True) as stream:
            write_npy(stream, np.asarray(array))
        return known

    def close(self) -> None:
        """Ends the files; without it they cannot be read."""
        while self._open:
            self._open.popitem()[1].close()


class Results(Sink):
    """Writes what a run makes, as it comes, secrets crossed out. `close` puts the rows in order."""

    def __init__(self, folder: Path, secrets: Secrets = NO_SECRETS) -> None:
        self.folder, self.secrets = folder, secrets
        self.arrays = ArrayFiles(folder / "arrays")
        self.steps: dict[str, StepTally] = {}
        self.bars: list[Bar] = []
        self.errors: list[dict[str, Any]] = []
        self.cards: list[tuple[Index, dict[str, Any]]] = []
        self.rows = 0
        self.unread: Counter[str] = Counter()
        """Outputs by name, with the number of rows in which they refer to what is not in a value."""
        self.shown: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.began = 0.0
        self._stream: TextIO | None = None
        self._order: list[tuple[int, Index]] = []

    def begin(self) -> None:
        """Opens the files; what an earlier run left in them is gone."""
        self.began = time.time()
        (self.folder / "summary.json").unlink(missing_ok=True)
        self._stream = (self.folder / "results.jsonl").open("w", encoding="utf-8")

    def call(self, node: Node, index: Index, outcome: Outcome) -> None:
        """Counts it, and notes its error."""
        tally = self.steps.setdefault(node.id, StepTally(model=node.model))
        tally.counts["cached" if outcome.cached else outcome.status] += 1
        if outcome.seconds and not outcome.cached:
            tally.seconds += outcome.seconds
            tally.slowest = max(tally.slowest, outcome.seconds)
            if len(self.bars) < BARS:
                failed = outcome.status == "failed"
                self.bars.append(Bar(node.id, index, outcome.started, outcome.seconds, failed))
        if outcome.status == "failed" and len(self.errors) < ERRORS:
            error = self.secrets.value(_error(outcome))
            self.errors.append({"step": node.id, "index": list(index), **error})

    def row(self, node: Node, index: Index, read: Callable[[Any], Any], scope: Scope) -> None:
        """Writes a line of results.jsonl."""
        at = dict(zip(node.axes, index, strict=True))
        line: dict[str, Any] = {"index": list(index), "item": self.secrets.value(_items(node, at, scope))}
        if node.arguments["over"]:
            line["over"] = node.arguments["over"]
        errors, unread = _upstream(node, at, scope), dict[str, str]()
        for name, part in node.arguments["outputs"].items():
            value, error = self._read(read, part)
            if error and not errors and not _absent(part, node, at, scope):
                unread[name] = error
            key = "-".join(str(at[axis]) for axis in node.arguments["depends"][name]) or "all"
            line[name] = self._plain(name, key, value)
        for name, error in unread.items():
            self._unread(name, index, error)
        errors |= unread
        if errors:
            errors = line["errors"] = {name: self.secrets.text(error) for name, error in errors.items()}
        assert self._stream is not None
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
        self._order.append((node.number, index))
        self.rows += 1
        if node.arguments["card"] and len(self.cards) < CARDS:
            card = {name: self._read(read, part)[0] for name, part in node.arguments["card"].items()}
            self.cards.append((index, {**card, "errors": errors}))

    def summary(self, node: Node, read: Callable[[Any], Any], scope: Scope) -> None:
        """Writes summary.json and keeps what the report shows."""
        for name, part in node.arguments["outputs"].items():
            value, error = self._read(read, part)
            if error and name not in self.unread and not _absent(part, node, {}, scope):
                self._unread(name, (), error)
            self.outputs[name] = self._plain(name, "all", value)
        if self.outputs:
            text = json.dumps(self.outputs, ensure_ascii=False, indent=2)
            (self.folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        self.shown["intro"] = self._read(read, node.arguments["intro"])[0]
        for part in ("figures", "tables"):
            self.shown[part] = [
                {key: plain(self._read(read, value)[0]) for key, value in entry.items()}
                for entry in node.arguments[part]
            ]

    def _unread(self, output: str, index: Index, error: str) -> None:
        """An output that refers to what is not in a value: told as a failed call is."""
        self.unread[output] += 1
        if len(self.errors) < ERRORS:
            self.errors.append({"step": f"outputs.{output}", "index": list(index), "error": error})

    def close(self) -> None:
        """Closes the files; rows that came out of order are put in order."""
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            stream.close()
        finally:
            self.arrays.close()
        self.cards.sort(key=lambda card: card[0])
        order = sorted(range(len(self._order)), key=lambda i: self._order[i])
        if order != list(range(len(order))):
            _reorder(self.folder / "results.jsonl", order)

    def _read(self, read: Callable[[Any], Any], part: Any) -> tuple[Any, str]:
        """What a part shows, or why there is nothing to show."""
        try:
            return self.secrets.value(read(part)), ""
        except (ReferenceFailure, OSError, UnicodeDecodeError) as error:
            return None, self.secrets.text(str(error))

    def _plain(self, column: str, key: str, value: Any) -> Any:
        count = 0

        def put(array: np.ndarray[Any, Any]) -> Any:
            nonlocal count
            count += 1
            return self.arrays.put(column, key if count == 1 else f"{key}.{count - 1}", array)

        return plain(value, put)


def _reorder(path: Path, order: list[int]) -> None:
    starts, place = [], 0
    with path.open("rb") as stream:
        for line in stream:
            starts.append(place)
            place += len(line)
    fresh = path.with_suffix(".sorted")
    with path.open("rb") as stream, fresh.open("wb") as target:
        for number in order:
            stream.seek(starts[number])
            target.write(stream.readline())
    fresh.replace(path)


def _items(node: Node, at: dict[str, int], scope: Scope) -> dict[str, Any]:
    """The items of a row's loops by the names that steps give them; large ones are left out."""
    found = {}
    for name, binding in node.scope.items():
        if binding.axis is not None:
            item = scope.items(binding.axis, at)[at[binding.axis]]
            if not isinstance(item, np.ndarray):
                found[name] = item.origin if isinstance(item, File) else plain(item)
    return found


def _upstream(node: Node, at: dict[str, int], scope: Scope) -> dict[str, str]:
    errors = {}
    for use in node.uses:
        index = tuple(at[axis] for axis in scope.graph.nodes[use.step].axes if axis in at)
        outcome = scope.outcomes[use.step].get(index)
        if outcome is not None and outcome.error:
            errors[use.step] = outcome.error
    return errors


def _absent(part: Any, node: Node, at: dict[str, int], scope: Scope) -> bool:
    """Whether something that a column refers to was skipped for this item: then there is nothing to look into."""
    for reference, _ in references_in(part):
        for use in scope.graph.use(reference, node.axes, node.scope):
            index = tuple(at[axis] for axis in scope.graph.nodes[use.step].axes if axis in at)
            outcome = scope.outcomes[use.step].get(index)
            if outcome is not None and outcome.status != "done":
                return True
    return False


def _error(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = {"error": outcome.error}
    if outcome.hint:
        found["hint"] = outcome.hint
    trace = getattr(outcome.exception, "remote_traceback", "")
    if trace:
        found["traceback"] = trace
    if outcome.attempts > 1:
        found["attempts"] = outcome.attempts
    return found
