"""The memory of a run: the outcome of every step and index, the items of every loop, and what a reference means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from orchestrator.workflow.graph import Axis, Binding, Graph, Node, Use
from orchestrator.workflow.references import Reference, ReferenceFailure

__all__ = ["Index", "Need", "Outcome", "Scope"]

Index = tuple[int, ...]
Status = Literal["done", "failed", "skipped", "missing"]


@dataclass(slots=True)
class Outcome:
    """How one call ended. `skipped`: by `when`, or because something before it failed or was skipped."""

    status: Status
    value: Any = None
    error: str = ""
    hint: str = ""
    cached: bool = False
    started: float = 0.0
    seconds: float = 0.0
    attempts: int = 1
    exception: BaseException | None = None


class Need(NamedTuple):
    """Something to wait for: the whole subtree of a step under a prefix, or (`expanded`) that its items are known."""

    step: str
    prefix: Index
    expanded: bool = False


_OVER = Outcome("done")


class Scope:
    """What has been computed so far."""

    def __init__(self, graph: Graph, inputs: Mapping[str, Any]) -> None:
        self.graph, self.inputs = graph, inputs
        self.outcomes: dict[str, dict[Index, Outcome]] = {name: {} for name in graph.nodes}
        self.domains: dict[tuple[str, Index], Any] = {}
        self.pretended: set[str] = set()
        """Steps with an outcome that is only pretended: what joins them cannot be known either."""

    def domain_key(self, axis: Axis, at: Mapping[str, int]) -> tuple[str, Index]:
        """Under which name the items of a loop are kept."""
        return axis.id, tuple(at[name] for name in axis.depends)

    def items(self, axis: str, at: Mapping[str, int]) -> Any:
        """The items of a loop."""
        return self.domains[self.domain_key(self.graph.axes[axis], at)]

    def lookup(self, reference: Reference, scope: Mapping[str, Binding], at: Mapping[str, int]) -> Any:
        """What a reference means for a place with these variables and indexes.

        Raises:
            ReferenceFailure: the path is not in the value.
        """
        return reference.follow(self._named(reference.name, scope, at))

    def _named(self, name: str, scope: Mapping[str, Binding], at: Mapping[str, int]) -> Any:
        binding = scope.get(name)
        if binding is not None:
            if binding.step is not None:
                return binding.step.follow(self._step(binding.step.name, at))
            axis = binding.axis or ""
            return self.items(axis, at)[at[axis]]
        if name in self.inputs:
            return self.inputs[name]
        if name == "index":
            return list(at.values())[-1]
        return self._step(name, at)

    def _step(self, name: str, at: Mapping[str, int]) -> Any:
        return self._collect(self.graph.nodes[name], at, ())

    def _collect(self, node: Node, at: Mapping[str, int], prefix: Index) -> Any:
        if len(prefix) == len(node.axes):
            return self.outcomes[node.id][prefix].value
        axis = node.axes[len(prefix)]
        if axis in at:
            return self._collect(node, at, (*prefix, at[axis]))
        here = dict(zip(node.axes, prefix, strict=False))
        count = len(self.items(axis, {**at, **here}))
        return [self._collect(node, at, (*prefix, i)) for i in range(count)]

    def blocked(self, node: Node, at: Mapping[str, int]) -> tuple[str, Outcome] | None:
        """The first step that this one needs for its own item and that gave nothing."""
        for use in node.uses:
            if use.missing and use.step in self.pretended:
                return use.step, Outcome("missing")
            if not use.missing:
                index = tuple(at[axis] for axis in self.graph.nodes[use.step].axes)
                outcome = self.outcomes[use.step][index]
                if outcome.status != "done":
                    return use.step, outcome
        return None

    def axis_items(self, axis: Axis, at: Mapping[str, int]) -> Any:
        """Evaluates a loop's reference; a source that failed has no items.

        Raises:
            ReferenceFailure: it is not a list.
        """
        uses = self.graph.use(axis.reference, axis.depends, axis.scope)
        for use in uses:
            index = tuple(at[name] for name in self.graph.nodes[use.step].axes if name in at)
            own = self.outcomes[use.step].get(index)
            if not use.missing and own is not None and own.status != "done":
                return []
        value = self.lookup(axis.reference, axis.scope, at)
        if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0:
            return value
        raise ReferenceFailure(f"for_each: {axis.reference} is not a list but {type(value).__name__}")

    def release(self, node: Node, indexes: list[Index]) -> None:
        """Forgets values that nothing can ask for any more; what became of each call stays known."""
        outcomes = self.outcomes[node.id]
        for index in indexes:
            outcome = outcomes[index]
            outcome.value = outcome.exception = None
            if outcome.status == "done":
                outcomes[index] = _OVER  # there may be a million of them

    def needs(self, uses: tuple[Use, ...], at: Mapping[str, int]) -> Iterator[Need]:
        """What must be over before a place with these indexes can look at `uses`, one thing after the other.

        A generator, because how many things there are shows only on the way: go on once the last one is over.
        """
        for use in uses:
            yield from self._walk(self.graph.nodes[use.step], at, ())

    def _walk(self, node: Node, at: Mapping[str, int], prefix: Index) -> Iterator[Need]:
        rest = node.axes[len(prefix) :]
        if not any(axis in at for axis in rest):
            yield Need(node.id, prefix)
        elif rest[0] in at:
            yield from self._walk(node, at, (*prefix, at[rest[0]]))
        else:
            yield Need(node.id, prefix, expanded=True)
            here = dict(zip(node.axes, prefix, strict=False))
            for i in range(len(self.items(rest[0], {**at, **here}))):
                yield from self._walk(node, at, (*prefix, i))
