"""One job: the call of a model or of a built-in function, with batches, streams, retries and the cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import Cancelled, ConfigError, OrchestratorError
from orchestrator.events import Event, Listener
from orchestrator.workflow.functions import FUNCTIONS
from orchestrator.workflow.graph import Node
from orchestrator.workflow.models import LoadedModel, Roster
from orchestrator.workflow.schema import OnError, Retry, Step
from orchestrator.workflow.scope import Index, Outcome
from orchestrator.workflow.secret_inputs import NO_SECRETS, Secrets
from orchestrator.workflow.values import as_argument, received

__all__ = ["Caller", "Job", "Memory"]

SHOWN = 400  # characters of a streamed text that are shown when it is complete
BATCH_HINT = "with 'batch' the call gets a list for each argument that differs from item to item"
TAIL = 58  # characters of it that are shown while it comes


@dataclass(eq=False)
class Job:
    """A step for one item, with its arguments.

    `unsure`: it must be looked up again once its model is loaded. `secret`: it is given a secret.
    """

    node: Node
    index: Index
    arguments: dict[str, Any]
    unsure: bool = False
    secret: bool = False

    def __lt__(self, other: Job) -> bool:
        return (self.index, self.node.number) < (other.index, other.node.number)

    @property
    def step(self) -> Step:
        """The step's own words."""
        assert self.node.spec is not None
        return self.node.spec

    @property
    def name(self) -> str:
        """As people call it: `sentence[2]`."""
        return f"{self.node.id}[{', '.join(map(str, self.index))}]" if self.index else self.node.id


class Memory:
    """What is remembered of earlier runs. This one remembers nothing."""

    def begin(self, roster: Roster) -> None:
        """Told which models there are, before anything is asked."""

    def recall(self, job: Job) -> Outcome | None:
        """The outcome of the same call, made before."""

    def keep(self, job: Job, outcome: Outcome) -> None:
        """Keeps an outcome."""

    def forget(self, job: Job) -> None:
        """Told that a call failed."""


class Caller:
    """Does jobs, on the threads of a pool. `stop` cancels those under way.

    Whatever holds a secret is not remembered: a key could be found again by trying values, and so could what is kept
    under it be read. `given` are the steps that refer to one.
    """

    def __init__(
        self,
        memory: Memory,
        listener: Listener,
        on_error: OnError,
        *,
        pretend: bool = False,
        secrets: Secrets = NO_SECRETS,
        given: Collection[str] = (),
    ) -> None:
        self.memory, self.listener, self.on_error, self.pretend = memory, listener, on_error, pretend
        self.secrets, self.given = secrets, given
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._futures: set[Future[Any]] = set()

    def stop(self) -> None:
        """Cancels every call under way; no further one is made."""
        self._stopped.set()
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def prepare(self, job: Job) -> Outcome | None:
        """The outcome, where no call is needed for it."""
        job.secret = job.node.id in self.given or self.secrets.within(job.arguments)
        found = None if job.secret else self.memory.recall(job)
        if found is None and self.pretend and job.node.model is not None:
            return Outcome("missing")
        return found

    def call(
        self, jobs: Sequence[Job], model: LoadedModel | None, answered: Callable[[], None] = lambda: None
    ) -> list[Outcome]:
        """Makes one call for these jobs (several: a batch) and gives the outcome of each.

        `answered` is told when the model is free again; keeping what it gave may take longer than making it.
        """
        started, first = time.time(), jobs[0]
        clock = time.monotonic()
        attempts = 0
        while True:
            attempts += 1
            try:
                values = self._values(jobs, model)
            except BaseException as error:
                if attempts <= self._retries(first.step) and not self._gives_up(error):
                    continue
                outcomes = [_failed(error, BATCH_HINT if first.step.batch else "") for _ in jobs]
            else:
                outcomes = [Outcome("done", value) for value in values]
            break
        share = (time.monotonic() - clock) / len(jobs)
        answered()
        for place, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
            outcome.started, outcome.seconds, outcome.attempts = started + place * share, share, attempts
            if outcome.status == "done" and not (job.secret or self.secrets.within(outcome.value)):
                self.memory.keep(job, outcome)
            else:
                self.memory.forget(job)
        return outcomes

    def _values(self, jobs: Sequence[Job], model: LoadedModel | None) -> list[Any]:
        first = jobs[0]
        if first.step.batch:
            return _split(self._one(first, _together(jobs), model), len(jobs), first)
        return [self._one(first, first.arguments, model)]

    def _one(self, job: Job, arguments: dict[str, Any], model: LoadedModel | None) -> Any:
        if self._stopped.is_set():
            raise Cancelled("the run was stopped")
        if model is None:
            return FUNCTIONS[job.step.call](**arguments)
        plain = {key: as_argument(value) for key, value in arguments.items()}
        if job.step.stream:
            return self._stream(job, plain, model)
        future = model.submit(job.step.call, timeout=job.step.timeout, **plain)
        with self._lock:
            self._futures.add(future)
        if self._stopped.is_set():
            future.cancel()
        try:
            return received(future.result())
        except CancelledError:
            raise Cancelled("the run was stopped") from None
        finally:
            with self._lock:
                self._futures.discard(future)

    def _stream(self, job: Job, arguments: dict[str, Any], model: LoadedModel) -> Any:
        pieces: list[Any] = []
        text = ""
        stream = model.stream(job.step.call, timeout=job.step.timeout, **arguments)
        try:
            for piece in stream:
                pieces.append(received(piece))
                if isinstance(piece, str) and not job.secret:  # a secret in pieces cannot be crossed out
                    text = (text + piece)[-SHOWN:]
                    self.listener(Event("workflow", job.name, _tail(text)))
                if self._stopped.is_set():
                    raise Cancelled("the run was stopped")
        finally:
            close: Callable[[], None] = getattr(stream, "close", lambda: None)
            close()
            self.listener(Event("workflow", job.name, " ".join(text.split()), finished=True))
        return "".join(pieces) if pieces and all(isinstance(piece, str) for piece in pieces) else pieces

    def _retries(self, step: Step) -> int:
        rule = step.on_error or self.on_error
        return rule.retry if isinstance(rule, Retry) else 0

    def _gives_up(self, error: BaseException) -> bool:
        return (
            self._stopped.is_set()
            or isinstance(error, (Cancelled, ConfigError))
            or not isinstance(error, Exception)
        )


def _tail(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TAIL else "…" + line[1 - TAIL :]


def _together(jobs: Sequence[Job]) -> dict[str, Any]:
    """The arguments of a batch: those that differ by item become lists."""
    first = jobs[0]
    return {
        name: [job.arguments[name] for job in jobs] if name in first.node.varying else value
        for name, value in first.arguments.items()
    }


def _split(value: Any, count: int, job: Job) -> list[Any]:
    """One value for each item of a batch."""
    if not hasattr(value, "__len__") or isinstance(value, (str, bytes, dict)) or len(value) != count:
        got = f"{len(value)} values" if hasattr(value, "__len__") else type(value).__name__
        raise ConfigError(f"{job.step.call} got a batch of {count} items and gave {got}")
    return list(value)


def _failed(error: BaseException, otherwise: str) -> Outcome:
    message = error.message if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
    hint = (error.hint if isinstance(error, OrchestratorError) else None) or otherwise
    return Outcome("failed", error=message, hint=hint, exception=error)
