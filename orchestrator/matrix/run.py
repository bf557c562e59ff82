"""Runs a matrix: a cell builds its environment, loads the model, makes the calls; then it is held against the reference."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from packaging.utils import canonicalize_name

from orchestrator.client import Orchestrator
from orchestrator.devices import host_cores
from orchestrator.environments.commands import cancel, cancellable
from orchestrator.errors import OrchestratorError, PlacementError, ProvisioningError, RemoteError
from orchestrator.events import Event, Listener, ignore
from orchestrator.matrix.compare import Difference, compare, summary
from orchestrator.matrix.schema import LOADING, Cell, MatrixFile
from orchestrator.settings import Settings
from orchestrator.waiting import as_they_end

__all__ = ["CellResult", "MatrixResult", "Outcome", "Runner", "run_matrix"]

Outcome = Literal["pass", "differs", "fails", "cannot install"]
AT_ONCE = 4
SELF_TEST = "self-test"


@dataclass
class CellResult:
    """What came of one cell. `answers` is method -> result; `message` and `hint` tell what went wrong."""

    cell: Cell
    outcome: Outcome = "pass"
    message: str = ""
    hint: str = ""
    log: str = ""
    answers: Mapping[str, Any] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    environment: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    checkpoint: str = ""
    seconds: float = 0.0

    @property
    def largest(self) -> float | None:
        """The largest difference of any number, None where nothing was compared."""
        if self.outcome in ("fails", "cannot install"):
            return None
        return max((d.amount for d in self.differences if d.kind == "numbers"), default=0.0)

    def shown(self, axis: str) -> str:
        """Its value on an axis for people: what `latest` was is told."""
        value = self.cell.get(axis) or ""
        found = self.versions.get(canonicalize_name(axis))
        return f"{found} (latest)" if value == "latest" and found else value


@dataclass
class MatrixResult:
    """All cells in the order of the file, and which of them is the reference."""

    file: MatrixFile
    cells: list[CellResult]
    reference: Cell
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every cell passed."""
        return all(result.outcome == "pass" for result in self.cells)


def run_matrix(
    file: MatrixFile,
    cells: Sequence[Cell],
    reference: Cell,
    settings: Settings,
    *,
    parallel: int | None = None,
    listener: Listener = ignore,
) -> MatrixResult:
    """Runs every cell, `parallel` at a time (by default as many as there are cores, at most 4).

    A cell that fails does not stop the others; one for which no device has the room waits until another has ended.
    Where the file names no reference, it is the first cell that answers. Ctrl-C ends builds and workers alike; nothing
    is left running.
    """
    start = time.monotonic()
    done: dict[Cell, CellResult] = {}
    at_once = max(1, min(parallel or min(AT_ONCE, host_cores()), len(cells)))
    with Runner(file, settings, at_once=at_once, listener=listener) as runner:
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(runner.run, cell) for cell in cells]
            try:
                for future in as_they_end(futures):
                    result = future.result()
                    done[result.cell] = result
                    listener(_news(f"{result.cell.name}: {result.outcome}", len(done), len(cells)))
            except BaseException:
                for future in futures:
                    future.cancel()
                runner.stop()
                raise
        results = [done[cell] for cell in cells]
        if (
            not file.reference and done[reference].outcome != "pass"
        ):  # nobody chose it: take one that answered
            reference = next((result.cell for result in results if result.outcome == "pass"), reference)
        runner.judge(results, done[reference])
    listener(dataclasses.replace(_news(f"{len(cells)} cells", len(done), len(cells)), finished=True))
    return MatrixResult(file, results, reference, time.monotonic() - start)


def _news(words: str, done: int, total: int) -> Event:
    return Event("workflow", "matrix", words, done, total, "cells")


class Runner:
    """Runs cells and judges what they answered. A context manager; its workers end with it.

    Every worker gets the same number of threads, however many run: sums in another order move the last bits, and
    that must not look like a difference between versions.
    """

    def __init__(
        self, file: MatrixFile, settings: Settings, *, at_once: int = 1, listener: Listener = ignore
    ) -> None:
        self.file, self.listener = file, listener
        threads = settings.threads or max(1, host_cores() // at_once)
        self.orchestrator = Orchestrator(
            settings=dataclasses.replace(settings, threads=threads), listener=listener
        )
        self._stopped = threading.Event()
        self._room = threading.Condition()
        self._active = 0  # cells that run and do not wait for room
        self._ended = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.orchestrator.close()

    def stop(self) -> None:
        """Ends every build and worker under way; what waits for room gives up."""
        cancel(self._stopped)
        self.orchestrator.close()
        with self._room:
            self._room.notify_all()

    def run(self, cell: Cell) -> CellResult:
        """Builds, loads and calls one cell; failures become its outcome."""
        start = time.monotonic()
        result = CellResult(cell)
        with self._room:
            self._active += 1
        try:
            with cancellable(self._stopped):
                self._answer_when_there_is_room(cell, result)
        except ProvisioningError as error:
            result.outcome, result.log = "cannot install", error.log
            result.message, result.hint = error.message, error.hint or ""
        except OrchestratorError as error:
            result.outcome, result.log = "fails", _log_of(error)
            result.message = error.message.removeprefix(f"{_deployed(cell)}: ")  # the table says which cell
            result.hint = error.hint or ""
        finally:
            with self._room:
                self._active -= 1
                self._ended += 1
                self._room.notify_all()
        result.seconds = time.monotonic() - start
        return result

    def judge(self, results: Sequence[CellResult], reference: CellResult) -> None:
        """Sets the outcome of the cells that answered, by their self-tests and by what the reference answered."""
        answered = reference.outcome == "pass"
        for result in results:
            if result.outcome != "pass":
                continue
            if result is not reference and result.answers:
                if not answered:
                    result.outcome, result.message = (
                        "fails",
                        f"the reference ({reference.cell.name}) gave no answer",
                    )
                    continue
                result.differences += compare(reference.answers, result.answers, self.file.compare)
            result.message = summary(result.differences)
            if any(not difference.allowed for difference in result.differences):
                result.outcome = "differs"

    def _answer_when_there_is_room(self, cell: Cell, result: CellResult) -> None:
        while True:
            with self._room:
                ended = self._ended
            try:
                return self._answer(cell, result)
            except PlacementError:
                if not self._another_ended(ended):
                    raise

    def _another_ended(self, ended: int) -> bool:
        """Waits until more than `ended` cells have; False when none is left that could, or on `stop`."""
        with self._room:
            self._active -= 1
            if self._active > 0:  # the last one gives up and so wakes those that wait
                self._room.wait_for(lambda: self._ended > ended or self._stopped.is_set())
            self._active += 1
            return self._ended > ended and not self._stopped.is_set()

    def _answer(self, cell: Cell, result: CellResult) -> None:
        file = self.file
        loading: dict[str, Any] = {axis: value for axis, value in cell.values if axis in LOADING}
        name = loading.pop("family", None) or file.family
        loading.setdefault("checkpoint", file.checkpoint)
        requirements = [*file.with_, *cell.requirements]
        family = self.orchestrator.catalog.get(name, requirements)
        if "python" in loading:
            family = family.on_python(loading["python"])
        # In this thread, which `stop` reaches; and so the versions are known whatever the load comes to.
        environment = self.orchestrator.environments.ensure(family, self.listener)
        result.environment, result.versions = environment.id, dict(environment.versions)
        if file.self_test:
            result.differences = self_test_differences(self.orchestrator.self_test(name, with_=requirements))
        if not file.call:
            return
        with self.orchestrator.load(
            name,
            with_=requirements,
            name=_deployed(cell),
            trust_remote_code=file.trust_remote_code,
            allow_ignored_keys=file.allow_ignored_keys,
            **loading,
            **file.options,
        ) as model:
            if model.checkpoint is not None:
                result.checkpoint = f"{model.checkpoint.spec} ({model.checkpoint.revision or 'local'})"
            result.answers = {
                method: model.call(method, timeout=file.timeout, **arguments)
                for method, arguments in file.call.items()
            }


def _deployed(cell: Cell) -> str:
    return f"cell {cell.name}"


def self_test_differences(told: Mapping[str, Any]) -> list[Difference]:
    """What a family's self-test says, as differences from its recorded numbers."""
    tolerance = float(told.get("tolerance", 0.0))
    found = dict(told.get("differences") or {})
    if not found and told.get("max_abs"):
        found = {"numbers": told["max_abs"]}
    differences = [
        Difference(
            path=f"{SELF_TEST}.{name}",
            kind="numbers",
            what=f"off by {amount:.3g} from the recorded numbers (tolerance {tolerance:.3g})",
            short=f"{amount:.2g}",
            amount=float(amount),
            allowed=amount <= tolerance,
        )
        for name, amount in found.items()
        if amount
    ]
    if not told["ok"] and all(difference.allowed for difference in differences):
        what = str(told.get("error") or "the self-test says no")
        differences.append(
            Difference(path=SELF_TEST, kind="structure", what=what, short="no", amount=1.0, allowed=False)
        )
    return differences


def _log_of(error: OrchestratorError) -> str:
    if isinstance(error, RemoteError):
        return error.remote_traceback
    return "\n".join(getattr(error, "last_lines", ()))
