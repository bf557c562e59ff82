"""Secret inputs: which they are, which steps are given them, and how their values are kept out of what a run leaves.

A value is crossed out wherever it is written or said: `<token>` stands in its place. What a step makes of it (a hash, an
encoding) is the step's result, and nothing that is known here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from orchestrator.events import Event, Listener
from orchestrator.worker.masking import is_secret
from orchestrator.workflow.references import compile_value, references_in
from orchestrator.workflow.schema import Input, WorkflowFile

if TYPE_CHECKING:
    from orchestrator.workflow.graph import Graph, Node

__all__ = [
    "NO_SECRETS",
    "SECRET_TYPES",
    "Secrets",
    "given_again",
    "is_secret_input",
    "secrets_of",
    "steps_given",
]

SECRET_TYPES = ("text", "list", "any")
_SHORTEST = 6  # a shorter value is part of too many words: it is crossed out as a word of its own only


def is_secret_input(name: str, spec: Input) -> bool:
    """Whether what is given for an input is a secret: as it says itself, else by its name, as variables in logs."""
    if spec.secret is not None:
        return spec.secret
    return spec.type in SECRET_TYPES and is_secret(name.replace("-", "_"))


class Secrets:
    """The secret values of a run by the names of their inputs, and the crossing out of them.

    Attributes:
        withheld: the inputs whose values are not recorded.
    """

    def __init__(self, values: Mapping[str, Iterable[str]], withheld: Iterable[str] = ()) -> None:
        self.withheld = tuple(dict.fromkeys((*values, *withheld)))
        self._marks = {
            form: f"<{name}>" for name, texts in values.items() for text in texts for form in _forms(text)
        }
        ordered = sorted(self._marks, key=lambda form: -len(form))
        self._pattern = re.compile("|".join(map(_expression, ordered))) if ordered else None

    def text(self, text: str) -> str:
        """The text with every secret crossed out."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._marks[match[0]], text)

    def value(self, value: Any) -> Any:
        """A value of texts, bytes, numbers, lists and mappings with every secret in it crossed out."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self.text(bytes(value).decode("utf-8", "surrogateescape")).encode(
                "utf-8", "surrogateescape"
            )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            known = str(value)
            return self._marks[known] if len(known) >= _SHORTEST and known in self._marks else value
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(item) for item in value]
        return value

    def within(self, value: Any) -> bool:
        """Whether there is a secret in a value."""
        if self._pattern is None:
            return False
        if isinstance(value, Mapping):
            return any(self.within(part) for pair in value.items() for part in pair)
        if isinstance(value, (list, tuple, set, frozenset)):
            return any(self.within(item) for item in value)
        crossed = self.value(value)
        return crossed is not value and bool(crossed != value)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """A command line without the values of `--input`s that are withheld."""
        names = "|".join(map(re.escape, self.withheld))
        if not names:
            return list(arguments)
        pattern = re.compile(rf"((?:--input=|-i)?({names})=).*", re.DOTALL)
        found = [(pattern.fullmatch(argument), argument) for argument in arguments]
        return [f"{match[1]}<{match[2]}>" if match else self.text(argument) for match, argument in found]

    def listener(self, listener: Listener) -> Listener:
        """Tells `listener` the same, secrets crossed out."""
        if self._pattern is None:
            return listener

        def tell(event: Event) -> None:
            listener(dataclasses.replace(event, message=self.text(event.message)))

        return tell

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """While inside, secrets are crossed out of what is logged, and of what is raised."""

        def crossed_out(record: logging.LogRecord) -> bool:
            record.msg, record.args = self.text(record.getMessage()), None
            self.cross_out_of(record.exc_info[1] if record.exc_info else None)
            return True

        loggers = logging.getLogger(), logging.getLogger("orchestrator")
        handlers = [*(handler for logger in loggers for handler in logger.handlers), logging.lastResort]
        with ExitStack() as stack:
            for handler in handlers if self._pattern is not None else ():
                if handler is not None:
                    handler.addFilter(crossed_out)
                    stack.callback(handler.removeFilter, crossed_out)
            try:
                yield
            except BaseException as error:
                self.cross_out_of(error)
                raise

    def cross_out_of(self, error: BaseException | None) -> None:
        """Crosses secrets out of an exception, its notes and its causes, in place."""
        seen: set[int] = set()
        while self._pattern is not None and error is not None and id(error) not in seen:
            seen.add(id(error))
            if self.within(error.args):
                error.args = tuple(self.value(error.args))
            vars(error).update(
                {name: self.value(told) for name, told in vars(error).items() if self.within(told)}
            )
            self.cross_out_of(error.__cause__)
            error = error.__context__


NO_SECRETS = Secrets({})


def secrets_of(file: WorkflowFile, given: Mapping[str, Any]) -> Secrets:
    """The secrets among what is given for inputs. A default stands in the file for everybody to read and is none.

    Another input in whose value a secret occurs is withheld too: crossed out it would be another value.
    """
    values = {
        name: list(_texts(value, parse=file.inputs[name].type != "text"))
        for name, value in given.items()
        if name in file.inputs and is_secret_input(name, file.inputs[name])
    }
    known = Secrets(values)
    return Secrets(values, [name for name, value in given.items() if known.within(value)])


def given_again(names: Iterable[str]) -> str:
    """The options that give inputs again, as they are written on the command line."""
    return " ".join(f"--input {name}=VALUE" for name in names)


def steps_given(graph: Graph, names: Iterable[str]) -> frozenset[str]:
    """The steps that refer to one of these inputs: in their arguments, in their loops or in their model's options."""
    wanted = set(names)
    models = {
        name
        for name, model in graph.file.models.items()
        if any(reference.name in wanted for reference, _ in references_in(compile_value(model.options)))
    }
    return frozenset(
        node.id
        for node in graph.nodes.values()
        if node.spec is not None and (node.model in models or _inputs(graph, node) & wanted)
    )


def _inputs(graph: Graph, node: Node) -> set[str]:
    """The names that a step's arguments lead to, through the variables of its loops."""
    found: set[str] = set()
    for reference, _ in references_in(node.arguments):
        name, scope = reference.name, node.scope
        while (binding := scope.get(name)) is not None and binding.axis is not None:
            axis = graph.axes[binding.axis]
            name, scope = axis.reference.name, axis.scope
        found.add(name)
    return found


def _texts(value: Any, *, parse: bool) -> Iterator[str]:
    """What must not be seen of a value: every text and number in it, also of a text that is read as YAML (`parse`)."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, parse=parse)
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield str(value)
        if parse and isinstance(value, str):
            try:
                inside = yaml.safe_load(value)
            except yaml.YAMLError:
                return
            if inside != value:
                yield from _texts(inside, parse=False)


def _forms(text: str) -> Iterator[str]:
    """A secret as it is, and as Python, JSON and URLs spell it."""
    for plain in {text, text.strip()}:
        if plain:
            yield from (plain, repr(plain)[1:-1], quote(plain, safe=""))
            yield from (json.dumps(plain, ensure_ascii=only)[1:-1] for only in (False, True))


def _expression(form: str) -> str:
    return re.escape(form) if len(form) >= _SHORTEST else rf"(?<!\w){re.escape(form)}(?!\w)"
