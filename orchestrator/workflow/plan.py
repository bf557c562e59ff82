"""What a run would do: `--dry-run`. Everything is walked through, nothing is built, fetched or called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.events import ignore
from orchestrator.workflow.calls import Caller, Memory
from orchestrator.workflow.engine import Engine, Sink
from orchestrator.workflow.graph import Graph, Node
from orchestrator.workflow.models import Roster
from orchestrator.workflow.scope import Index, Outcome, Scope
from orchestrator.workflow.secret_inputs import Secrets, steps_given

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class ModelPlan:
    """A model: the id of its environment, None where it must be built first; whether it must be loaded at all."""

    name: str
    family: str
    environment: str | None
    checkpoint: str | None
    load: bool
    problem: str = ""


@dataclass(frozen=True)
class StepPlan:
    """A step: how many calls are known to be there, of which so many are cached; `open` if there may be more."""

    id: str
    model: str | None
    cached: int
    run: int
    skipped: int
    open: bool


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    models: list[ModelPlan] = field(default_factory=list)
    steps: list[StepPlan] = field(default_factory=list)


class _Counting(Sink):
    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def call(self, node: Node, index: Index, outcome: Outcome) -> None:  # noqa: ARG002
        self.counts.setdefault(node.id, Counter())["cached" if outcome.cached else outcome.status] += 1


def make_plan(
    graph: Graph, roster: Roster, inputs: Mapping[str, Any], memory: Memory, secrets: Secrets
) -> Plan:
    """Walks through a workflow with what is cached.

    Raises:
        OrchestratorError: what would stop the run before any call.
    """
    memory.begin(roster)
    scope, sink = Scope(graph, inputs), _Counting()
    given = steps_given(graph, secrets.withheld)
    caller = Caller(memory, ignore, graph.file.on_error, pretend=True, secrets=secrets, given=given)
    Engine(graph, scope, roster, caller, sink, ignore).run()
    steps = []
    for step in graph.file.steps:
        counts = sink.counts.get(step.id, Counter[str]())
        run = counts["missing"] + (counts["done"] if step.model is None else 0)
        node = graph.nodes[step.id]
        steps.append(
            StepPlan(
                step.id,
                step.model,
                counts["cached"],
                run,
                counts["skipped"],
                _open(graph, node, sink.counts.get),
            )
        )
    needed = {step.model for step in steps if step.run or step.open}
    found = [_model(name, roster, load=name in needed) for name in roster.seats]
    return Plan(found, steps)


def _open(graph: Graph, node: Node, counts: Callable[[str], Counter[str] | None]) -> bool:
    """Whether one of its loops goes over something that is not computed yet."""
    for axis in node.axes:
        loop = graph.axes[axis]
        for use in graph.use(loop.reference, loop.depends, loop.scope):
            if (counts(use.step) or Counter())["missing"]:
                return True
    return False


def _model(name: str, roster: Roster, *, load: bool) -> ModelPlan:
    seat = roster.seats[name]
    try:
        family = roster.family(seat)
        environment = roster.environment(seat)
        checkpoint = seat.checkpoint or family.defaults.get("checkpoint")
    except OrchestratorError as error:
        return ModelPlan(name, seat.family, None, seat.checkpoint, load, error.message)
    found = None if environment is None else str(environment.id)
    return ModelPlan(name, family.label, found, None if checkpoint is None else str(checkpoint), load)
