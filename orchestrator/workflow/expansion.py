"""Which calls there are, and when each can start: loops unfold as their items become known.

The engine's agenda. Nothing here runs a call: `Expansion` says which place (a step and an index) is ready, and is
told when one is over. Items of a loop are let in a few at a time (credits), at every depth of nested loops, so that
memory does not grow with the number of items.

Items that are let in together must never wait for one another, or the credits would run out with nobody able to go on.
That is what phases are for: a step that waits for other items of a loop (a join) is in a later phase of it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from orchestrator.workflow.graph import Axis, Graph, Node, Use
from orchestrator.workflow.references import ReferenceFailure
from orchestrator.workflow.scope import Index, Need, Outcome, Scope

__all__ = ["Expansion", "Group"]

Then = Callable[[], None]
Phases = tuple[int, ...]


@dataclass
class Group:
    """The steps of one phase of a loop, under one item of the loops around it: their items are let in together."""

    axes: tuple[str, ...]
    """The loops around it, and itself."""
    prefix: Index
    nodes: list[Node]
    total: int | None = None
    admitted: int = 0
    unfinished: dict[int, int] = field(default_factory=dict)


class Expansion:
    """Unfolds a graph. `ready` is called for every place once all that it refers to is over."""

    def __init__(
        self, graph: Graph, scope: Scope, ready: Callable[[Node, Index], None], in_flight: int
    ) -> None:
        self.graph, self.scope, self.ready = graph, scope, ready
        self.in_flight = max([in_flight, *(2 * (n.spec.batch or 0) for n in graph.nodes.values() if n.spec)])
        self.stopped = False
        self.agenda: deque[Then] = deque()
        self._phases = _phases(graph)
        self._members: dict[tuple[tuple[str, ...], Phases], list[Node]] = defaultdict(list)
        for node in graph.nodes.values():
            for depth in range(1, len(node.axes) + 1):
                self._members[node.axes[:depth], self._phases[node.id][:depth]].append(node)
        self._groups: dict[tuple[tuple[str, ...], Phases, Index], Group] = {}
        self._depth = {node.id: _released_with(graph, node) for node in graph.nodes.values()}
        self._users = {node.id: self._groups_of_users(node) for node in graph.nodes.values()}
        self._unknown = dict.fromkeys(graph.nodes, 1)
        self._expected = {node.id: 0 if node.axes else 1 for node in graph.nodes.values()}
        self._complete: set[Need] = set()
        self._children: dict[Need, int] = defaultdict(int)
        self._watchers: dict[Need, list[tuple[Iterator[Need], Then]]] = defaultdict(list)
        self._asking: dict[tuple[str, Index], list[Then]] = {}
        self._values: dict[tuple[str, Index], list[Index]] = defaultdict(list)
        self._domains: dict[tuple[str, int], list[tuple[str, Index]]] = defaultdict(list)
        self._users_left: dict[tuple[str, Index], int] = {}
        self._phases_left: dict[tuple[str, int], int] = {}

    def start(self) -> None:
        """Creates what runs once and lets in the first items."""
        for node in self.graph.nodes.values():
            self._grow(node, ())
        self.work()

    def finish(self, node: Node, index: Index, outcome: Outcome) -> None:
        """Takes the outcome of a place."""
        self.scope.outcomes[node.id][index] = outcome
        if outcome.status == "missing":
            self.scope.pretended.add(node.id)
        depth = self._depth[node.id]
        if depth:
            self._values[node.id, index[:depth]].append(index)
        self._completed(node, index)

    def work(self) -> None:
        """Does what has become possible."""
        while self.agenda and not self.stopped:
            self.agenda.popleft()()

    def total(self, node: Node) -> int | None:
        """How many times a step will run, as far as that is known."""
        return None if node.axes and self._unknown[node.id] else self._expected[node.id]

    # -- waiting ----------------------------------------------------------------------------------------

    def _wait(self, pending: Iterator[Need], then: Then) -> None:
        for need in pending:
            if not self._is_over(need):
                self._watchers[need].append((pending, then))
                return
        self.agenda.append(then)

    def _is_over(self, need: Need) -> bool:
        if need.expanded and need in self._complete:
            return True
        return any(
            Need(need.step, need.prefix[:depth]) in self._complete for depth in range(len(need.prefix) + 1)
        )

    def _mark(self, need: Need) -> None:
        self._complete.add(need)
        for pending, then in self._watchers.pop(need, []):
            self._wait(pending, then)

    def _completed(self, node: Node, prefix: Index) -> None:
        """A subtree is over; perhaps its parent is now, too."""
        self._mark(Need(node.id, prefix))
        if not prefix:
            return
        self._item_over(node, prefix)
        parent = Need(node.id, prefix[:-1])
        self._children[parent] -= 1
        self._check(node, parent)

    def _check(self, node: Node, parent: Need) -> None:
        expanded = Need(node.id, parent.prefix, expanded=True)
        if self._children[parent] == 0 and expanded in self._complete:
            del self._children[parent]
            self._completed(node, parent.prefix)

    # -- unfolding --------------------------------------------------------------------------------------

    def _create(self, node: Node, index: Index) -> None:
        at = dict(zip(node.axes, index, strict=True))
        self._wait(self.scope.needs(node.uses, at), lambda: self.ready(node, index))

    def _grow(self, node: Node, prefix: Index) -> None:
        """A prefix has come into being: create the place, or unfold the next loop under it."""
        depth = len(prefix)
        if depth == len(node.axes):
            self._create(node, prefix)
            return
        axes, phases = node.axes[: depth + 1], self._phases[node.id][: depth + 1]
        key = axes, phases, prefix
        if key not in self._groups:
            group = self._groups[key] = Group(axes, prefix, self._members[axes, phases])
            self._domain(axes[-1], dict(zip(axes, prefix, strict=False)), lambda: self._open(group))

    def _domain(self, name: str, at: dict[str, int], then: Then) -> None:
        axis = self.graph.axes[name]
        key = self.scope.domain_key(axis, at)
        if key in self.scope.domains:
            self.agenda.append(then)
            return
        waiting = self._asking.setdefault(key, [])
        waiting.append(then)
        if len(waiting) > 1:
            return
        inner = {part: at[part] for part in axis.depends}

        def found() -> None:
            try:
                self.scope.domains[key] = self.scope.axis_items(axis, inner)
                if axis.depends and self._of_one_root(axis):
                    self._domains[axis.depends[0], key[1][0]].append(key)
            except ReferenceFailure as error:
                raise self.graph.source.error(str(error), axis.place) from None
            self.agenda.extend(self._asking.pop(key))

        self._wait(
            self.scope.needs(tuple(self.graph.use(axis.reference, axis.depends, axis.scope)), inner), found
        )

    # -- credits ----------------------------------------------------------------------------------------

    def _open(self, group: Group) -> None:
        at = dict(zip(group.axes, group.prefix, strict=False))
        group.total = len(self.scope.items(group.axes[-1], at))
        for node in group.nodes:
            self._unknown[node.id] -= 1
            counts = self._expected if len(node.axes) == len(group.axes) else self._unknown
            counts[node.id] += group.total
        self._admit(group)

    def _admit(self, group: Group) -> None:
        total = group.total or 0
        while group.admitted < total and len(group.unfinished) < self.in_flight:
            index = (*group.prefix, group.admitted)
            group.unfinished[group.admitted] = len(group.nodes)
            group.admitted += 1
            for node in group.nodes:
                self._children[Need(node.id, group.prefix)] += 1
                self._grow(node, index)
        if group.admitted == total:
            for node in group.nodes:
                need = Need(node.id, group.prefix, expanded=True)
                if need not in self._complete:
                    self._mark(need)
                    self._check(node, Need(node.id, group.prefix))

    def _item_over(self, node: Node, index: Index) -> None:
        depth = len(index)
        key = node.axes[:depth], self._phases[node.id][:depth], index[:-1]
        group = self._groups[key]
        group.unfinished[index[-1]] -= 1
        if group.unfinished[index[-1]]:
            return
        del group.unfinished[index[-1]]
        if not group.unfinished and group.admitted == group.total:
            del self._groups[key]
        self.agenda.append(lambda: self._admit(group))
        self.agenda.append(lambda: self._release(key[0], key[1], index))

    def _release(self, axes: tuple[str, ...], phases: Phases, index: Index) -> None:
        """Lets go what nobody but these steps wanted of this item; of a loop inside it only the number stays."""
        for name, users in self._users.items():
            if (axes, phases) in users:
                left = self._users_left.pop((name, index), len(users)) - 1
                if left:
                    self._users_left[name, index] = left
                else:
                    self.scope.release(self.graph.nodes[name], self._values.pop((name, index), []))
        if len(axes) == 1:
            root = axes[0], index[0]
            left = self._phases_left.pop(root, sum(other == axes for other, _ in self._members)) - 1
            if left:
                self._phases_left[root] = left
            else:
                for key in self._domains.pop(root, []):
                    self.scope.domains[key] = range(len(self.scope.domains[key]))

    def _groups_of_users(self, node: Node) -> set[tuple[tuple[str, ...], Phases]]:
        """The groups whose items, once over, want nothing more of a step's value for the same item."""
        depth = self._depth[node.id]
        users = [user for user in self.graph.nodes.values() if any(use.step == node.id for use in user.uses)]
        axes = node.axes[:depth]
        return {
            (axes, self._phases[user.id][:depth])
            for user in (node, *users)
            if depth and user.axes[:depth] == axes
        }

    def _of_one_root(self, axis: Axis) -> bool:
        """Whether a loop is only ever unfolded under the outermost loop that its items depend on."""
        root = axis.depends[0]
        return all(node.axes[0] == root for node in self.graph.nodes.values() if axis.id in node.axes)


def _phases(graph: Graph) -> dict[str, Phases]:
    """For each step and depth: how many times something on its way waited for other items of a loop at that depth."""
    deepest = max((len(node.axes) for node in graph.nodes.values()), default=0)
    found: dict[str, Phases] = {}
    for node in graph.nodes.values():
        found[node.id] = tuple(
            max(
                (found[use.step][depth - 1] + _leaves(graph, node, use, depth) for use in node.uses),
                default=0,
            )
            for depth in range(1, deepest + 1)
        )
    return found


def _leaves(graph: Graph, node: Node, use: Use, depth: int) -> bool:
    """Whether a step uses more of another one than the value of its own item of the loop at this depth."""
    theirs = graph.nodes[use.step].axes
    return len(theirs) >= depth and (theirs[:depth] != node.axes[:depth] or theirs[depth - 1] in use.missing)


def _released_with(graph: Graph, node: Node) -> int:
    """The depth of the innermost item with which a step's values can go; 0: they are wanted beyond every item."""
    users = [
        (user, use) for user in graph.nodes.values() for use in user.uses if use.step == node.id and use.value
    ]
    depths = range(len(node.axes), 0, -1)
    return next((d for d in depths if not any(_leaves(graph, user, use, d) for user, use in users)), 0)
