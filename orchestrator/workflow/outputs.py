"""The rows of the results and the summary, as nodes of the graph: they wait for what they show, failed or not."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from orchestrator.workflow.graph import Binding, Graph, Node, Use, check_reference, compile_part
from orchestrator.workflow.references import Reference, Template, references_in
from orchestrator.workflow.yaml_source import Place

__all__ = ["RESERVED_COLUMNS", "SUMMARY", "add_outputs"]

SUMMARY = "<summary>"
RESERVED_COLUMNS = ("index", "item", "over", "errors")


def add_outputs(graph: Graph) -> None:
    """Adds a row node for every innermost loop and the summary node.

    Raises:
        ConfigError: an output or a part of the report refers to what is not there.
    """
    _check_names(graph)
    calls = list(graph.nodes.values())
    columns = _columns(graph, calls)
    left = dict(columns)
    groups = _groups(calls)
    card = graph.file.report.item
    show = _compile(graph, _without_empty(card), ("report", "item")) if card else {}
    for axes in groups:
        scope = _scope(calls, axes)
        fits = partial(_fits, graph, axes=axes, scope=scope)
        mine = {name: value for name, (value, place) in columns.items() if fits(value, place)}
        left = {name: part for name, part in left.items() if name not in mine}
        shown = show if len(groups) == 1 or fits(show, ("report", "item")) else {}
        _rows(graph, axes, scope, {"outputs": mine, "card": shown}, one_of_several=len(groups) > 1)
    if not groups:  # nothing runs more than once: one row
        outputs = {name: value for name, (value, _) in columns.items()}
        _rows(graph, (), {}, {"outputs": outputs, "card": show}, one_of_several=False)
    _summary(graph, left)


def _rows(
    graph: Graph,
    axes: tuple[str, ...],
    scope: dict[str, Binding],
    parts: dict[str, Any],
    *,
    one_of_several: bool,
) -> None:
    name = f"<rows over {' and '.join(axes)}>" if axes else "<row>"
    _add(graph, name, axes, scope, parts, "row")
    depends = {column: _depends(graph, part, axes, scope) for column, part in parts["outputs"].items()}
    graph.nodes[name].arguments.update(depends=depends, over=list(axes) if one_of_several else None)


def _summary(graph: Graph, left: dict[str, tuple[Any, Place]]) -> None:
    report = graph.file.report
    parts = {
        "outputs": {name: value for name, (value, _) in left.items()},
        "intro": _compile(graph, report.intro, ("report", "intro")),
        "figures": _compile(graph, msgspec.to_builtins(report.figures), ("report", "figures")),
        "tables": _compile(graph, msgspec.to_builtins(report.tables), ("report", "tables")),
    }
    _add(graph, SUMMARY, (), {}, parts, "summary")


def _check_names(graph: Graph) -> None:
    for name in graph.file.outputs:
        if name in RESERVED_COLUMNS:
            raise graph.source.error(f"{name!r} is a column that every row has", ("outputs", name), key=True)


def _columns(graph: Graph, calls: list[Node]) -> dict[str, tuple[Any, Place]]:
    """Outputs as compiled values, with their places; by default every step."""
    if not graph.file.outputs:
        ordered = sorted(calls, key=lambda node: node.number)
        return {node.id: (Template((Reference(node.id),)), node.place) for node in ordered}
    places: dict[str, Place] = {name: ("outputs", name) for name in graph.file.outputs}
    return {
        name: (_compile(graph, value, places[name]), places[name])
        for name, value in graph.file.outputs.items()
    }


def _groups(calls: list[Node]) -> list[tuple[str, ...]]:
    """The loops that are not part of a longer one."""
    found = list(
        dict.fromkeys(node.axes for node in sorted(calls, key=lambda node: node.number) if node.axes)
    )
    unique = {frozenset(axes): axes for axes in reversed(found)}
    return [
        axes
        for axes in found
        if unique[frozenset(axes)] == axes and not any(set(axes) < set(o) for o in found)
    ]


def _scope(calls: list[Node], axes: tuple[str, ...]) -> dict[str, Binding]:
    """The variables that steps within these loops agree on; an item of a loop goes before a step's value."""
    scope: dict[str, Binding] = {}
    dropped: set[str] = set()
    for node in sorted(calls, key=lambda node: (set(node.axes) != set(axes), node.number)):
        if not set(node.axes) <= set(axes):
            continue
        for name, binding in node.scope.items():
            known = scope.setdefault(name, binding)
            if known == binding:
                continue
            if known.axis and binding.axis:
                dropped.add(name)
            elif binding.axis:
                scope[name] = binding
    return {name: binding for name, binding in scope.items() if name not in dropped}


def _fits(graph: Graph, value: Any, place: Place, axes: tuple[str, ...], scope: dict[str, Binding]) -> bool:
    """Whether a value belongs to each item of these loops: it has some of their axes and no others."""
    theirs: set[str] = set()
    for reference, tail in references_in(value):
        if reference.name not in scope and _is_variable(graph, reference.name):
            return False
        for use in check_reference(graph, reference, (*place, *tail), axes, scope):
            if use.missing:
                return False
            theirs |= set(graph.nodes[use.step].axes)
        if reference.name in scope or reference.name == "index":
            theirs |= set(axes[:1])
    return bool(theirs)


def _depends(graph: Graph, value: Any, axes: tuple[str, ...], scope: dict[str, Binding]) -> tuple[str, ...]:
    """The loops that a row's value changes with; an array is written once for them."""
    found: set[str] = set()
    for reference, _ in references_in(value):
        binding = scope.get(reference.name)
        if binding is not None and binding.axis is not None:
            found |= {binding.axis, *graph.axes[binding.axis].depends}
        name = binding.step.name if binding is not None and binding.step is not None else reference.name
        if name in graph.nodes:
            found |= set(graph.nodes[name].axes)
        if name == "index":
            found |= set(axes)
    return tuple(axis for axis in axes if axis in found)


def _is_variable(graph: Graph, name: str) -> bool:
    return any(name in node.scope for node in graph.nodes.values())


def _add(
    graph: Graph,
    name: str,
    axes: tuple[str, ...],
    scope: dict[str, Binding],
    parts: dict[str, Any],
    kind: str,
) -> None:
    before = graph.nodes.values() if kind == "summary" else ()
    loops = [graph.axes[axis] for axis in axes]
    uses: list[Use] = [use for loop in loops for use in graph.use(loop.reference, loop.depends, loop.scope)]
    for key, part in parts.items():
        place: Place = {"card": ("report", "item"), "outputs": ("outputs",)}.get(key, ("report", key))
        for reference, tail in references_in(part):
            uses += check_reference(graph, reference, (*place, *tail), axes, scope)
    uses += [Use(node.id, node.axes, value=False) for node in before]
    found = tuple(dict.fromkeys(uses))
    graph.nodes[name] = Node(name, len(graph.nodes), ("steps",), None, axes, scope, parts, None, found, kind)


def _compile(graph: Graph, value: Any, place: Place) -> Any:
    return compile_part(graph.source, value, place)


def _without_empty(card: msgspec.Struct) -> dict[str, Any]:
    return {key: value for key, value in msgspec.to_builtins(card).items() if value not in ("", None)}
