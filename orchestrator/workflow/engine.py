"""Runs a graph: one thread decides, a pool of threads calls. Only the deciding thread touches the state."""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from orchestrator.errors import ConfigError, OrchestratorError, WorkflowError
from orchestrator.events import Event, Listener
from orchestrator.waiting import GLANCE
from orchestrator.workflow.calls import Caller, Job
from orchestrator.workflow.expansion import Expansion
from orchestrator.workflow.graph import Graph, Node
from orchestrator.workflow.models import LoadedModel, Roster, Seat
from orchestrator.workflow.references import Reference, ReferenceFailure, evaluate
from orchestrator.workflow.schema import Retry
from orchestrator.workflow.scope import Index, Outcome, Scope
from orchestrator.workflow.when import Incomparable, holds

__all__ = ["Engine", "Sink"]

BUILTIN_SLOTS = 2
GRACE = 5.0  # seconds that calls under way have to end after a stop


class Sink:
    """Who is told what a run makes of each item. Called on the deciding thread; does nothing by default."""

    def call(self, node: Node, index: Index, outcome: Outcome) -> None:
        """A step is over for one item."""

    def row(self, node: Node, index: Index, read: Callable[[Any], Any], scope: Scope) -> None:
        """Everything that a row of the results shows is over; `read` evaluates a part of it."""

    def summary(self, node: Node, read: Callable[[Any], Any], scope: Scope) -> None:
        """Everything is over."""


class Engine:
    """One run. `calls` does the work of a job; `load` says which models to load, and when."""

    def __init__(
        self, graph: Graph, scope: Scope, roster: Roster, caller: Caller, sink: Sink, listener: Listener
    ) -> None:
        self.graph, self.scope, self.roster = graph, scope, roster
        self.caller, self.sink, self.listener = caller, sink, listener
        self.expansion = Expansion(graph, scope, self._ready, graph.file.in_flight)
        self.failure: BaseException | None = None
        self.failed = 0
        self.rows = 0
        self._events: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()
        self._queues: dict[str | None, list[tuple[Index, int, Job]]] = defaultdict(list)
        self._busy: dict[str | None, int] = defaultdict(int)
        self._calling = 0
        self._active: dict[str, int] = defaultdict(int)
        self._over: dict[str, int] = defaultdict(int)
        slots = BUILTIN_SLOTS + sum(seat.slots for seat in roster.seats.values())
        self._pool = ThreadPoolExecutor(2 * slots + 2, thread_name_prefix="workflow")
        self._usable: set[str] = set()
        self._ended = False

    def run(self) -> None:
        """Runs to the end, or to the first failure that stops everything (`failure`).

        Whatever interrupts it (Ctrl-C, SIGTERM) cancels the calls under way and passes on.
        """
        try:
            self.expansion.start()
            while not self._ended and self.failure is None:
                self._next()
        finally:
            self._stop()
        if self.failure is not None:
            raise self.failure

    def _next(self) -> None:
        try:
            self._take(*self._events.get(timeout=GLANCE))
        except Empty:
            pass

    def model_over(self, seat: Seat) -> None:
        """Told by a loading thread."""
        self._events.put(("loaded", seat, None))

    def _take(self, kind: str, first: Any, second: Any) -> None:
        if kind == "loaded":
            self._loaded(first)
        elif kind == "prepared":
            self._prepared(first, second)
        elif kind == "answered":
            self._busy[first] -= 1
        else:
            self._calling -= 1
            for job, outcome in zip(first, second, strict=True):
                self._active[job.node.id] -= 1
                self._finish(job.node, job.index, outcome)
        self.expansion.work()
        for model in list(self._queues):
            self._dispatch(model)

    # -- a place is ready -------------------------------------------------------------------------------

    def _ready(self, node: Node, index: Index) -> None:
        at = dict(zip(node.axes, index, strict=True))

        def lookup(reference: Reference) -> Any:
            return self.scope.lookup(reference, node.scope, at)

        def read(part: Any) -> Any:
            return evaluate(part, lookup)

        if node.kind != "call":
            self._show(node, index, read)
            return
        blocked = self.scope.blocked(node, at)
        if blocked is not None:
            step, outcome = blocked
            why = f"{step} {'was skipped' if outcome.status == 'skipped' and not outcome.error else 'gave nothing'}"
            quiet = "" if why.endswith("skipped") else why
            missing = outcome.status == "missing"
            self._finish(node, index, Outcome("missing" if missing else "skipped", error=quiet))
            return
        try:
            if node.when is not None and not holds(read(node.when)):
                self._finish(node, index, Outcome("skipped"))
                return
            job = Job(node, index, read(node.arguments))
        except (ReferenceFailure, Incomparable, OSError, UnicodeDecodeError) as error:
            where = self.graph.source.error("see there", node.place).message
            self._finish(node, index, Outcome("failed", error=str(error), hint=where))
            return
        self._active[node.id] += 1
        self._prepare(job)

    def _prepare(self, job: Job) -> None:
        self._pool.submit(self._in_pool, lambda: ("prepared", job, self.caller.prepare(job)))

    def _show(self, node: Node, index: Index, read: Callable[[Any], Any]) -> None:
        if node.kind == "row":
            self.sink.row(node, index, read, self.scope)
            self.rows += 1
            self._tell_rows()
        else:
            self.sink.summary(node, read, self.scope)
        self.expansion.agenda.append(lambda: self.expansion.finish(node, index, Outcome("done")))
        if node.kind == "summary":
            self._ended = True

    def _tell_rows(self) -> None:
        totals = [self.expansion.total(node) for node in self.graph.nodes.values() if node.kind == "row"]
        total = sum(number for number in totals if number is not None) if None not in totals else None
        over = total is not None and self.rows >= total
        name = self.graph.file.name
        message = f"{self.rows} of {total}" if over else ""
        self.listener(Event("workflow", name, message, self.rows, total, "items", over))

    def _prepared(self, job: Job, outcome: Outcome | None) -> None:
        if outcome is not None:
            self._active[job.node.id] -= 1
            self._finish(job.node, job.index, outcome)
            return
        model = job.node.model
        if job.unsure and model is not None and self.roster.seats[model].model is not None:
            self._prepare(job)
            return
        heapq.heappush(self._queues[model], (job.index, job.node.number, job))
        if model is not None:
            self.roster.load(self._models_after(job.node), self.model_over, self.listener)

    def _models_after(self, node: Node) -> list[str]:
        """The model of a step that must run, and those of everything that follows from it."""
        changed, models = {node.id}, [node.model]
        for other in self.graph.nodes.values():
            if any(use.step in changed for use in other.uses):
                changed.add(other.id)
                models.append(other.model)
        return [model for model in dict.fromkeys(models) if model is not None]

    # -- calls ------------------------------------------------------------------------------------------

    def _dispatch(self, model: str | None) -> None:
        queue = self._queues[model]
        seat = self.roster.seats[model] if model is not None else None
        if seat is not None and seat.name not in self._usable:
            return
        slots = seat.slots if seat is not None else BUILTIN_SLOTS
        held: list[tuple[Index, int, Job]] = []
        while queue and self._busy[model] < slots and self.failure is None:
            entry = heapq.heappop(queue)
            jobs = self._batch(entry[2], queue)
            if jobs is None:
                held.append(entry)
                continue
            self._busy[model] += 1
            self._calling += 1
            self._tell(entry[2].node)
            client = seat.model if seat is not None else None
            self._pool.submit(self._in_pool, partial(self._call, jobs, client))
        for entry in held:
            heapq.heappush(queue, entry)

    def _call(self, jobs: list[Job], model: LoadedModel | None) -> tuple[str, Any, Any]:
        name = jobs[0].node.model
        return (
            "called",
            jobs,
            self.caller.call(jobs, model, lambda: self._events.put(("answered", name, None))),
        )

    def _batch(self, job: Job, queue: list[tuple[Index, int, Job]]) -> list[Job] | None:
        """The job with others of its step, as many as it takes at a time; None while more are on their way."""
        wanted = job.node.spec.batch if job.node.spec is not None else None
        if not wanted:
            return [job]
        others = sorted(entry for entry in queue if entry[2].node is job.node)[: wanted - 1]
        if len(others) + 1 < wanted and self._more_to_come(job.node, len(others) + 1):
            return None
        for entry in others:
            queue.remove(entry)
        heapq.heapify(queue)
        return [job, *(entry[2] for entry in others)]

    def _more_to_come(self, node: Node, here: int) -> bool:
        before, todo = set(), [node.id]
        while todo:
            for use in self.graph.nodes[todo.pop()].uses:
                if use.step not in before:
                    before.add(use.step)
                    todo.append(use.step)
        return self._active[node.id] > here or any(self._active[step] for step in before)

    def _in_pool(self, work: Callable[[], tuple[str, Any, Any]]) -> None:
        try:
            self._events.put(work())
        except BaseException as error:  # a fault of ours must end the run, not hang it
            self._events.put(("loaded", error, None))

    def _loaded(self, seat: Seat | BaseException) -> None:
        if isinstance(seat, BaseException):
            self.failure = seat
            return
        if seat.error is not None:
            self.failure = seat.error
            return
        assert seat.model is not None
        self._usable.add(seat.name)
        waiting = self._queues.pop(seat.name, [])
        for entry in waiting:
            if entry[2].unsure:
                self._prepare(entry[2])
            else:
                heapq.heappush(self._queues[seat.name], entry)
        for node in self.graph.nodes.values():
            if node.model != seat.name or node.spec is None or not seat.model.methods:
                continue
            known, call = seat.model.methods, node.spec.call
            if call not in known and f"{call}_stream" not in known:
                self.failure = self._no_method(node, seat)
            elif node.spec.stream and "stream" not in (known.get(call), known.get(f"{call}_stream")):
                self.failure = self.graph.source.error(
                    f"{call!r} of {seat.name!r} gives everything at once",
                    (*node.place, "stream"),
                    hint="leave out 'stream'",
                    key=True,
                )

    def _no_method(self, node: Node, seat: Seat) -> ConfigError:
        from orchestrator.workflow.yaml_source import nearest

        assert node.spec is not None
        assert seat.model is not None
        return self.graph.source.error(
            f"{seat.name!r} ({seat.spec.family}) has no method {node.spec.call!r}",
            (*node.place, "call"),
            hint=nearest(node.spec.call, seat.model.methods),
        )

    # -- the end of a call ------------------------------------------------------------------------------

    def _finish(self, node: Node, index: Index, outcome: Outcome) -> None:
        self._over[node.id] += 1
        self.sink.call(node, index, outcome)
        if outcome.status == "failed":
            self.failed += 1
            if self._stops(node):
                self.expansion.stopped = True
                self.failure = self.failure or self._reason(node, index, outcome)
        self._tell(node)
        self.expansion.agenda.append(lambda: self.expansion.finish(node, index, outcome))

    def _reason(self, node: Node, index: Index, outcome: Outcome) -> BaseException:
        """The error that a run ends with."""
        cause = outcome.exception
        error: OrchestratorError
        if isinstance(cause, ConfigError):
            words = f"step {_name(node, index)}: {cause.message}"
            error = self.graph.source.error(words, node.place, hint=cause.hint)
        elif isinstance(cause, OrchestratorError) and cause.exit_code != 1:
            return cause
        else:
            words = f"step {_name(node, index)} failed: {outcome.error}"
            error = WorkflowError(words, hint=outcome.hint or None)
        error.__cause__ = cause
        return error

    def _stops(self, node: Node) -> bool:
        rule = (node.spec.on_error if node.spec else None) or self.graph.file.on_error
        return (rule.then if isinstance(rule, Retry) else rule) == "stop"

    def _tell(self, node: Node) -> None:
        total, over = self.expansion.total(node), self._over[node.id]
        finished = total is not None and over >= total
        unit = "items" if node.axes else ""
        message = (f"{over} of {total}" if node.axes else "done") if finished else ""
        self.listener(Event("workflow", node.id, message, over, total, unit, finished))

    def _stop(self) -> None:
        """Cancels what is under way and waits a little for it to be over."""
        self.caller.stop()
        deadline = time.monotonic() + GRACE
        while self._calling and time.monotonic() < deadline:
            try:
                kind, first, second = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            if kind == "called":
                self._calling -= 1
                for job, outcome in zip(first, second, strict=True):
                    if outcome.status == "done":
                        self.sink.call(job.node, job.index, outcome)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _name(node: Node, index: Index) -> str:
    return f"{node.id}[{', '.join(map(str, index))}]" if index else node.id
