"""From a workflow file to a graph: which step runs for which items, and what it waits for.

Every loop (`for_each`) is an *axis*. A step has the axes of its loops, in order, and runs once for every index on
them. What a reference to another step means follows from the axes alone:

- the other step's axes are among mine: the value that belongs to my own item;
- it has axes that I do not have: the list of its values along those axes, in order, once all are there (a join).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from msgspec import UNSET

from orchestrator.workflow import functions
from orchestrator.workflow.references import (
    NAME,
    Reference,
    ReferenceFailure,
    Template,
    compile_value,
    references_in,
)
from orchestrator.workflow.schema import LIST_TYPES, Condition, Step, WorkflowFile
from orchestrator.workflow.secret_inputs import SECRET_TYPES, is_secret_input
from orchestrator.workflow.values import FILE_PROPERTIES
from orchestrator.workflow.when import TESTS
from orchestrator.workflow.yaml_source import Place, YamlSource, nearest

__all__ = ["Axis", "Binding", "Graph", "Node", "Use", "compile_graph"]

RESERVED = ("index",)
LOAD_ARGUMENTS = (
    "family", "checkpoint", "with_", "name", "replicas", "dtype", "device_map", "devices", "max_memory", "python",
    "keep_alive", "trust_remote_code", "allow_ignored_keys", "sandbox", "environment",
)  # fmt: skip
FILE_TYPES = ("images", "files", "folder")


@dataclass(frozen=True)
class Axis:
    """One loop: `reference` gives its items, in the scope of the axes that it depends on."""

    id: str
    reference: Reference
    depends: tuple[str, ...]
    scope: Mapping[str, Binding]
    place: Place


@dataclass(frozen=True)
class Binding:
    """What a loop's variable stands for: the item on an axis, or the value of a step at the same index."""

    axis: str | None = None
    step: Reference | None = None


@dataclass(frozen=True)
class Use:
    """A reference to another step. `missing`: its axes that the user of it does not have.

    Without `value` it is only waited for.
    """

    step: str
    missing: tuple[str, ...]
    value: bool = True


@dataclass(frozen=True)
class Node:
    """A step, ready to be run for an index on its axes. Rows of the results are nodes too (`kind` row, summary)."""

    id: str
    number: int
    place: Place
    spec: Step | None
    axes: tuple[str, ...]
    scope: Mapping[str, Binding]
    arguments: Any
    when: Any
    uses: tuple[Use, ...]
    kind: str = "call"
    varying: frozenset[str] = frozenset()
    """Names of the arguments that differ from item to item."""

    @property
    def model(self) -> str | None:
        """The model's name; None for a built-in function or a row."""
        return self.spec.model if self.spec else None


@dataclass
class Graph:
    """All nodes in an order in which every node comes after those that it uses."""

    file: WorkflowFile
    source: YamlSource
    nodes: dict[str, Node] = field(default_factory=dict)
    axes: dict[str, Axis] = field(default_factory=dict)

    def use(self, reference: Reference, axes: tuple[str, ...], scope: Mapping[str, Binding]) -> list[Use]:
        """What a reference waits for, from a place with these axes and variables."""
        binding = scope.get(reference.name)
        if binding is not None:
            if binding.step is not None:
                return [Use(binding.step.name, ())]
            axis = self.axes[binding.axis or ""]
            return self.use(axis.reference, axis.depends, axis.scope)
        if reference.name not in self.nodes:
            return []
        theirs = self.nodes[reference.name].axes
        return [Use(reference.name, tuple(axis for axis in theirs if axis not in axes))]


def compile_graph(file: WorkflowFile, source: YamlSource) -> Graph:
    """Checks names, references, loops and cycles, and orders the steps.

    Raises:
        ConfigError: with file, line, column and the nearest known name.
    """
    steps: dict[str, tuple[int, Step]] = {}
    for number, step in enumerate(file.steps):
        _check_step(file, source, number, step, steps)
        steps[step.id] = (number, step)
    _check_models(file, source)
    graph = Graph(file, source)
    for name in _order(source, steps):
        number, step = steps[name]
        graph.nodes[name] = _Compiler(graph, number, step).node()
    return graph


def _check_step(
    file: WorkflowFile, source: YamlSource, number: int, step: Step, earlier: Mapping[str, Any]
) -> None:
    place: Place = ("steps", number)
    if step.id in earlier:
        raise source.error(f"the step {step.id!r} is already there", (*place, "id"))
    if step.id in file.inputs or step.id in RESERVED:
        what = "an input's name" if step.id in file.inputs else "a reserved name"
        raise source.error(f"{step.id!r} is {what}; a step needs its own", (*place, "id"))
    _check_condition(source, step, place)
    _check_variables(file, source, step, place)
    if step.batch and not step.for_each:
        raise source.error("'batch' needs 'for_each'", (*place, "batch"), key=True)
    if step.batch and step.stream:
        raise source.error("'batch' and 'stream' exclude each other", (*place, "batch"), key=True)
    if step.model is None:
        functions.check(source, place, step.call, step.with_)
    elif step.model not in file.models:
        raise source.error(
            f"unknown model {step.model!r}", (*place, "model"), hint=nearest(step.model, file.models)
        )


def _check_condition(source: YamlSource, step: Step, place: Place) -> None:
    when = step.when
    if isinstance(when, str):
        compiled = compile_part(source, when, (*place, "when"))
        if not isinstance(compiled, Template) or compiled.whole is None:
            raise source.error(
                f"'when' needs one reference such as ${{flag}}, not {when!r}",
                (*place, "when"),
                hint="compare by {value: ${score}, above: 0.5}, with " + ", ".join(TESTS),
            )
    elif isinstance(when, Condition) and all(getattr(when, test) is UNSET for test in TESTS):
        raise source.error(
            "'when' has a value and no test", (*place, "when"), hint="give it " + ", ".join(TESTS)
        )


def _check_variables(file: WorkflowFile, source: YamlSource, step: Step, place: Place) -> None:
    """Before the steps are put in order: a variable with a step's name would look like a cycle."""
    taken = {*file.inputs, *RESERVED, *(other.id for other in file.steps)}
    place = (*place, "for_each")
    whole = isinstance(step.for_each, str)
    for variable in ("item",) if whole else step.for_each or ():
        if variable in taken or not NAME.fullmatch(variable):
            why = (
                "it names something else" if variable in taken else "letters, digits, '-' and '_' make a name"
            )
            where = place if whole else (*place, variable)
            raise source.error(f"{variable!r} cannot name an item: {why}", where, key=True)


def _check_models(file: WorkflowFile, source: YamlSource) -> None:
    for name, spec in file.inputs.items():
        if not NAME.fullmatch(name) or name in RESERVED:
            raise source.error(f"{name!r} cannot be the name of an input", ("inputs", name), key=True)
        if spec.secret and spec.type not in SECRET_TYPES:
            raise source.error(
                f"a secret is of type {', '.join(SECRET_TYPES)}, and the input {name!r} is {spec.type}",
                ("inputs", name, "secret"),
                hint="make it 'type: text'",
                key=True,
            )
    for name, model in file.models.items():
        for option in model.options:
            if option in LOAD_ARGUMENTS:
                known = option in model.__struct_fields__
                hint = "it is a key of the model, beside 'options'" if known else None
                place: Place = ("models", name, "options", option)
                raise source.error(f"{option!r} cannot be an option", place, hint=hint, key=True)
        for key in ("checkpoint", "options"):
            _check_model_references(file, source, getattr(model, key), ("models", name, key))


def _check_model_references(file: WorkflowFile, source: YamlSource, value: Any, place: Place) -> None:
    for reference, tail in references_in(compile_part(source, value, place)):
        if reference.name not in file.inputs:
            raise source.error(
                f"a model can refer to inputs only, and {reference} is none",
                (*place, *tail),
                hint=nearest(reference.name, file.inputs),
            )
        if place[-1] == "checkpoint" and is_secret_input(reference.name, file.inputs[reference.name]):
            raise source.error(
                f"{reference} is a secret, and a checkpoint's name is recorded",
                (*place, *tail),
                hint=f"if it is none: give the input {reference.name!r} 'secret: false'",
            )


def _order(source: YamlSource, steps: Mapping[str, tuple[int, Step]]) -> Iterator[str]:
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name, (number, step) in steps.items():
        parts = {"with": step.with_, "for_each": step.for_each, "when": _condition(step)}
        used = set()
        for key, part in parts.items():
            place: Place = ("steps", number, key)
            used |= {
                ref.name for ref, _ in references_in(compile_part(source, part, place)) if ref.name in steps
            }
        sorter.add(name, *used)
    try:
        yield from sorter.static_order()
    except CycleError as error:
        ring = list(reversed(error.args[1]))
        number = steps[ring[0]][0]
        raise source.error(f"a cycle: {' needs '.join(ring)}", ("steps", number)) from None


def compile_part(source: YamlSource, value: Any, place: Place) -> Any:
    try:
        return compile_value(value, place)
    except ReferenceFailure as error:
        raise source.error(str(error), error.place) from None


def _condition(step: Step) -> Any:
    import msgspec

    when = step.when
    return msgspec.to_builtins(when) if isinstance(when, msgspec.Struct) else when


class _Compiler:
    """Makes the node of one step; the nodes it refers to are there already."""

    def __init__(self, graph: Graph, number: int, step: Step) -> None:
        self.graph, self.number, self.step = graph, number, step
        self.place: Place = ("steps", number)
        self.axes: tuple[str, ...] = ()
        self.scope: dict[str, Binding] = {}

    def node(self) -> Node:
        step, source = self.step, self.graph.source
        uses: list[Use] = []
        for variable, reference, place in self._loops():
            uses += self._loop(variable, reference, place)
        arguments = compile_part(source, step.with_, (*self.place, "with"))
        when = compile_part(source, _condition(step), (*self.place, "when"))
        for key, part in (("with", arguments), ("when", when)):
            for reference, tail in references_in(part):
                uses += check_reference(
                    self.graph, reference, (*self.place, key, *tail), self.axes, self.scope
                )
        found = tuple(dict.fromkeys(uses))
        varying = frozenset(name for name, part in arguments.items() if self._varies(part))
        return Node(
            step.id, self.number, self.place, step, self.axes, self.scope, arguments, when, found,
            varying=varying,
        )  # fmt: skip

    def _varies(self, part: Any) -> bool:
        names = {reference.name for reference, _ in references_in(part)}
        nodes = [self.graph.nodes[name] for name in names & set(self.graph.nodes)]
        return bool(names & {*self.scope, "index"}) or any(set(n.axes) & set(self.axes) for n in nodes)

    def _loops(self) -> Iterator[tuple[str, Reference, Place]]:
        loops, place = self.step.for_each, (*self.place, "for_each")
        table = {"item": loops} if isinstance(loops, str) else loops or {}
        for variable, text in table.items():
            here = place if isinstance(loops, str) else (*place, variable)
            compiled = compile_part(self.graph.source, text, here)
            if not isinstance(compiled, Template) or compiled.whole is None:
                raise self.graph.source.error(
                    f"for_each needs one reference such as ${{photos}}, not {text!r}", here
                )
            yield variable, compiled.whole, here

    def _loop(self, variable: str, reference: Reference, place: Place) -> list[Use]:
        graph = self.graph
        uses = check_reference(graph, reference, place, self.axes, self.scope)
        kind = graph.file.inputs.get(reference.name)
        if kind is not None and not reference.path and kind.type not in (*LIST_TYPES, "any", "folder"):
            raise graph.source.error(f"{reference} is {kind.type}, not a list", place)
        missing = [axis for use in uses for axis in use.missing] if reference.name in graph.nodes else []
        if missing:  # for each value of that step: its loops are mine
            self.axes += tuple(missing)
            self.scope[variable] = Binding(step=reference)
            return [Use(reference.name, ())]
        self._axis(variable, reference, place)
        return uses

    def _axis(self, variable: str, reference: Reference, place: Place) -> None:
        graph = self.graph
        binding = self.scope.get(reference.name)
        if binding is not None:
            name = _inside(binding, reference)
            depends = self._depends(binding)
        else:
            name = ".".join((reference.name, *reference.path))
            theirs = graph.nodes[reference.name].axes if reference.name in graph.nodes else ()
            depends = tuple(axis for axis in self.axes if axis in theirs)
        if name in self.axes:
            raise graph.source.error(f"two loops over {reference} in one step", place)
        scope = {key: value for key, value in self.scope.items() if key == reference.name}
        graph.axes.setdefault(name, Axis(name, reference, depends, scope, place))
        self.axes += (name,)
        self.scope[variable] = Binding(axis=name)

    def _depends(self, binding: Binding) -> tuple[str, ...]:
        graph = self.graph
        if binding.step is not None:
            return tuple(axis for axis in self.axes if axis in graph.nodes[binding.step.name].axes)
        axis = binding.axis or ""
        wanted = {axis, *graph.axes[axis].depends}
        return tuple(name for name in self.axes if name in wanted)


def _inside(binding: Binding, reference: Reference) -> str:
    """The name of the loop over a variable, whatever the variable is called; `*` is an item that is itself a list."""
    if binding.step is not None:
        return ".".join((binding.step.name, *binding.step.path, *reference.path))
    return ".".join((binding.axis or "", *(reference.path or ("*",))))


def check_reference(
    graph: Graph, reference: Reference, place: Place, axes: tuple[str, ...], scope: Mapping[str, Binding]
) -> list[Use]:
    """Refuses a reference to nothing; gives what it waits for."""
    name = reference.name
    known = {*graph.file.inputs, *scope, *(step.id for step in graph.file.steps)} | (
        {"index"} if axes else set()
    )
    if name not in known:
        raise graph.source.error(f"unknown name {name!r} in {reference}", place, hint=nearest(name, known))
    _check_property(graph, reference, place, scope)
    return graph.use(reference, axes, scope)


def _check_property(graph: Graph, reference: Reference, place: Place, scope: Mapping[str, Binding]) -> None:
    """A file's properties are known before anything runs."""
    binding = scope.get(reference.name)
    path = reference.path
    if binding is not None and binding.axis in graph.file.inputs:
        kind = graph.file.inputs[binding.axis or ""].type
        is_file = kind in FILE_TYPES
    else:
        given = graph.file.inputs.get(reference.name)
        is_file = given is not None and given.type == "file"
    if is_file and path and path[0] not in FILE_PROPERTIES:
        raise graph.source.error(
            f"{reference}: a file has no {path[0]!r}", place, hint=nearest(path[0], FILE_PROPERTIES)
        )
