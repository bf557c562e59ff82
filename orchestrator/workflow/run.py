"""A workflow, and a run of it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from orchestrator import __version__
from orchestrator.errors import ConfigError, WorkflowError
from orchestrator.events import Event, Listener, ignore
from orchestrator.processes import require_bubblewrap
from orchestrator.workflow.calls import Caller, Memory
from orchestrator.workflow.engine import Engine
from orchestrator.workflow.graph import Graph, compile_graph
from orchestrator.workflow.inputs import from_everywhere, read_inputs
from orchestrator.workflow.models import Models, Roster
from orchestrator.workflow.outputs import add_outputs
from orchestrator.workflow.plan import Plan, make_plan
from orchestrator.workflow.record import describe_input, describe_seat, keep_locks, package_fetcher
from orchestrator.workflow.report import write_report
from orchestrator.workflow.results import Results
from orchestrator.workflow.schema import WorkflowFile, convert
from orchestrator.workflow.scope import Scope
from orchestrator.workflow.secret_inputs import Secrets, given_again, secrets_of, steps_given
from orchestrator.workflow.tables import read_rows, to_arrow, to_pandas
from orchestrator.workflow.values import plain
from orchestrator.workflow.yaml_source import YamlSource

__all__ = ["Execution", "Run", "Workflow"]


@dataclass
class Run:
    """A run that is over. `record` is what run.json holds."""

    folder: Path
    record: dict[str, Any] = field(repr=False)
    failed: int
    rows: int

    @property
    def exit_code(self) -> int:
        """0, or 1 when an item failed."""
        return 1 if self.failed else 0

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.folder / "report.html"

    def results(self) -> list[dict[str, Any]]:
        """The rows, with their arrays."""
        return list(read_rows(self.folder))

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame; needs pandas."""
        return to_pandas(self.folder)

    def to_arrow(self) -> Any:
        """The rows as a pyarrow.Table; needs pyarrow."""
        return to_arrow(self.folder)

    def _repr_html_(self) -> str:
        return (
            f"<b>{escape(self.record['name'])}</b>: {self.rows} rows in {self.record['seconds']:.1f} s, "
            f"{self.failed} failed &middot; <a href='{escape(str(self.report))}'>report</a>"
        )


@dataclass(frozen=True)
class Workflow:
    """A workflow file, checked: nothing in it refers to what is not there."""

    file: WorkflowFile
    source: YamlSource
    graph: Graph
    base: Path

    @classmethod
    def read(cls, path: str | Path) -> Workflow:
        """Reads and checks a file.

        Raises:
            ConfigError: with file, line, column and the nearest known name.
        """
        path = Path(path)
        return cls._checked(YamlSource.read(path), path.resolve().parent)

    @classmethod
    def parse(cls, text: str, *, name: str = "<text>", base: Path | None = None) -> Workflow:
        """Reads and checks a text; relative paths start from `base` (default: the current folder)."""
        return cls._checked(YamlSource.parse(text, name=name), base or Path.cwd())

    @classmethod
    def _checked(cls, source: YamlSource, base: Path) -> Workflow:
        file = convert(source)
        graph = compile_graph(file, source)
        add_outputs(graph)
        return cls(file, source, graph, base)

    def run(self, models: Models, **arguments: Any) -> Run:
        """Runs it to the end: `start(models, …).run()`."""
        return self.start(models, **arguments).run()

    def plan(
        self,
        models: Models,
        *,
        inputs: Mapping[str, Any] | None = None,
        listener: Listener = ignore,
        memory: Memory | None = None,
    ) -> Plan:
        """What a run would do. Packages that inputs name are fetched; nothing else happens.

        Raises:
            ConfigError: an input is wrong.
        """
        fetch = package_fetcher(models, listener)
        values = read_inputs(self.file, self.source, inputs or {}, fetch, base=self.base)
        secrets = secrets_of(self.file, inputs or {})
        with secrets.hidden():
            return make_plan(self.graph, self.roster(models, values), values, memory or Memory(), secrets)

    def roster(self, models: Models, inputs: Mapping[str, Any], *, sandbox: bool | None = None) -> Roster:
        """The models, none of them loaded.

        Raises:
            ConfigError: there is no such family, with file, line and column.
        """
        roster = Roster(models, self.file.models, inputs, self.base, sandbox=sandbox)
        for name, seat in roster.seats.items():
            try:
                roster.family(seat)
            except ConfigError as error:
                key = "with" if self._is_family(models, seat.family) else "family"
                raise self.source.error(error.message, ("models", name, key), hint=error.hint) from None
        return roster

    @staticmethod
    def _is_family(models: Models, name: str) -> bool:
        try:
            models.catalog.get(name)
        except ConfigError:
            return False
        return True

    def start(
        self,
        models: Models,
        *,
        inputs: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        listener: Listener = ignore,
        memory: Memory | None = None,
        again: bool = False,
        sandbox: bool | None = None,
    ) -> Execution:
        """Reads the inputs and makes the run's folder; nothing is loaded yet.

        Args:
            models: an `Orchestrator`.
            inputs: values that take the place of defaults.
            out: the folder; by default runs/NAME-TIME under the current one. It must be new or empty, unless
                `again`: then what an earlier run wrote there is written anew.
            memory: remembers results of earlier runs; by default nothing.
            sandbox: confine the workers of every model, or of none; by default as the file and the families say.

        Raises:
            ConfigError: an input is wrong.
            SandboxUnavailable: a sandbox is asked for, and this machine has no bubblewrap or forbids it.
        """
        given = from_everywhere(self.file, inputs or {})
        values = read_inputs(self.file, self.source, given, package_fetcher(models, listener), base=self.base)
        roster = self.roster(models, values, sandbox=sandbox)
        if any(seat.sandbox for seat in roster.seats.values()):
            require_bubblewrap()
        folder = _folder(self.file.name, out, again=again)
        return Execution(self, roster, values, given, folder, listener, memory or Memory(), sandbox)

    def secrets(self, inputs: Mapping[str, Any]) -> Secrets:
        """The secrets among values that are given for inputs."""
        return secrets_of(self.file, inputs)


class Execution:
    """One run; `folder` is where it writes."""

    def __init__(
        self,
        workflow: Workflow,
        roster: Roster,
        inputs: dict[str, Any],
        overrides: Mapping[str, Any],
        folder: Path,
        listener: Listener,
        memory: Memory,
        sandbox: bool | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.workflow, self.inputs, self.folder = workflow, inputs, folder
        self.overrides = overrides
        self.secrets = workflow.secrets(overrides)
        self.listener = self.secrets.listener(listener)
        self.roster = roster
        memory.begin(self.roster)
        self.scope = Scope(workflow.graph, inputs)
        self.results = Results(folder, self.secrets)
        given = steps_given(workflow.graph, self.secrets.withheld)
        caller = Caller(memory, self._heard, workflow.file.on_error, secrets=self.secrets, given=given)
        self.engine = Engine(workflow.graph, self.scope, self.roster, caller, self.results, self._heard)
        self.started = time.time()
        self.state = "running"
        self.record: dict[str, Any] = {}

    def run(self) -> Run:
        """Runs to the end and writes the folder.

        Raises:
            OrchestratorError: a model cannot be loaded, or a step failed whose `on_error` is stop. What is
                finished by then is in the folder.
            ConfigError: another run is writing to the folder.
        """
        with self._alone(), self.secrets.hidden():
            return self._run()

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return f"orchestrator run --resume {self.folder} {given_again(self.secrets.withheld)}".rstrip()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two runs in one folder would write over each other."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another run is writing to {self.folder}", hint="wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise self._of_the_folder(error) from None
        try:
            yield
        finally:
            (self.folder / ".lock").unlink(missing_ok=True)
            lock.release()

    def _run(self) -> Run:
        self.started = time.time()
        failure: BaseException | None = None
        try:
            self.results.begin()
            self._write()
            self.engine.run()
            self.state = "finished"
        except BaseException as error:
            self.roster.stop()
            failure = self._of_the_folder(error) if isinstance(error, OSError) else error
            self.state = "failed" if isinstance(error, Exception) else "interrupted"
            self.secrets.cross_out_of(failure)
            self.error: str = str(getattr(failure, "message", failure) or type(failure).__name__)
        try:
            record = self._end()
        except OSError as error:
            failure = failure or self._of_the_folder(error)
        finally:
            with contextlib.suppress(Exception):
                self.roster.unload()
        if failure is not None:
            raise failure
        return Run(self.folder, record, self.failed, self.results.rows)

    @property
    def failed(self) -> int:
        """Calls that failed, and outputs that refer to what is not in a value."""
        return self.engine.failed + self.results.unread.total()

    def _end(self) -> dict[str, Any]:
        """Writes what is known at the end, each file even where another could not be."""
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self._report(self.record))
            stack.callback(self._write)
            stack.callback(lambda: keep_locks(self.folder, self.roster, look=self.look))
            self.results.close()
        return self.record

    @property
    def look(self) -> bool:
        """Whether environments may be looked for: whoever pressed Ctrl-C does not wait for uv."""
        return self.state != "interrupted"

    def _of_the_folder(self, error: OSError) -> WorkflowError:
        """Only the run's folder is written here: the disk is full, or the folder is gone."""
        return WorkflowError(
            f"cannot write to {self.folder}: {error.strerror or error}",
            hint=f"make room there and go on: what is finished is kept ({self.resume})",
        )

    def _heard(self, event: Event) -> None:
        self.listener(event)

    def _write(self) -> None:
        self.record = self._record()
        text = json.dumps(self.record, ensure_ascii=False, indent=2, default=str)
        fresh = self.folder / ".run.json"
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(self.folder / "run.json")

    def _record(self) -> dict[str, Any]:
        roster, secrets = self.roster, self.secrets
        return {
            "version": 1,
            "name": self.workflow.file.name,
            "state": self.state,
            "error": getattr(self, "error", None),
            "started": datetime.fromtimestamp(self.started).astimezone().isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 3),
            "rows": self.results.rows,
            "failed": self.failed,
            "steps": {
                step.id: _tally(self.results.steps[step.id])
                for step in self.workflow.file.steps
                if step.id in self.results.steps
            },
            "models": {
                name: describe_seat(roster, seat, secrets, look=self.look)
                for name, seat in roster.seats.items()
            },
            "inputs": {name: describe_input(name, value, secrets) for name, value in self.inputs.items()},
            "errors": self.results.errors,
            "host": {
                "orchestrator": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "cpus": os.cpu_count(),
                "command": secrets.command(sys.argv[1:]),
            },
            "workflow": {
                "path": self.workflow.source.name,
                "base": str(self.workflow.base),
                "inputs": plain(
                    {name: value for name, value in self.overrides.items() if name not in secrets.withheld}
                ),
                "withheld": list(secrets.withheld),
                "sandbox": self.sandbox,
                "text": self.workflow.source.text,
            },
        }

    def _report(self, record: dict[str, Any]) -> None:
        write_report(self.folder / "report.html", self.workflow.graph, record, self.results)


def _tally(tally: Any) -> dict[str, Any]:
    calls = sum(tally.counts.values())
    ran = tally.counts["done"] + tally.counts["failed"]
    return {
        "model": tally.model,
        "calls": calls,
        **dict(tally.counts),
        "seconds": round(tally.seconds, 4),
        "mean_seconds": round(tally.seconds / ran, 4) if ran else None,
        "slowest_seconds": round(tally.slowest, 4),
    }


def _folder(name: str, out: str | Path | None, *, again: bool) -> Path:
    if out is not None:
        folder = Path(out)
        if not again and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            resumable = (folder / "run.json").exists()
            hint = f", or go on with it: orchestrator run --resume {folder}" if resumable else ""
            raise ConfigError(f"{folder} is not an empty folder", hint=f"choose another --out{hint}")
        _make(folder)
        return folder
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = Path("runs") / f"{name}-{stamp}{'' if number == 1 else f'-{number}'}"
        if not folder.exists():
            _make(folder)
            return folder
    raise ConfigError(f"too many runs named {name!r} in this second")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from None
