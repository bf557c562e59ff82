"""References: `${name}`, `${name.key}`, `${name.0.key}`. Nothing is computed: this is not a language.

A text that *is* one reference keeps the value's type; references *inside* a text are formatted into it (text as
it is, numbers and booleans as Python and JSON write them, lists and mappings as JSON). `$${` is a plain `${`.

A name is an input, a step, a variable of `for_each`, or `index` (the place of the current item, from 0).
What follows a dot is a mapping's key, a list's or array's index (`0`, `-1`), or a property of a file
(`path`, `name`, `stem`, `suffix`, `text`, `bytes`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.workflow.values import FILE_PROPERTIES, File, plain

__all__ = ["NAME", "Reference", "ReferenceFailure", "Template", "compile_value", "evaluate", "references_in"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_MARK = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


class ReferenceFailure(Exception):
    """A reference is written wrongly, or its path does not exist in the value it meets.

    `place` says where in the value, for one that is written wrongly.
    """

    place: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """`${name.path…}`."""

    name: str
    path: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Reads what stands between the braces."""
        name, *path = text.strip().split(".")
        if not NAME.fullmatch(name) or not all(path) or any(c.isspace() for part in path for c in part):
            raise ReferenceFailure(f"'${{{text}}}' is not a reference: write ${{name}} or ${{name.key.0}}")
        return cls(name, tuple(path))

    def follow(self, value: Any) -> Any:
        """Walks the path into a value.

        Raises:
            ReferenceFailure: a key, index or property is not there; says how far it came and what there is.
        """
        for depth, part in enumerate(self.path):
            try:
                value = _enter(value, part)
            except UnicodeDecodeError:
                raise ReferenceFailure(f"{self}: {value} is not UTF-8 text") from None
            except (KeyError, IndexError, TypeError, ValueError) as error:
                reached = ".".join((self.name, *self.path[:depth]))
                raise ReferenceFailure(
                    f"{self} has no {part!r}: ${{{reached}}} is {_describe(value)}"
                ) from error
        return value

    def __str__(self) -> str:
        return "${" + ".".join((self.name, *self.path)) + "}"


@dataclass(frozen=True, slots=True)
class Template:
    """A text with references in it, or (`whole`) a reference that is the whole text."""

    parts: tuple[str | Reference, ...]

    @property
    def whole(self) -> Reference | None:
        """The reference, where there is nothing else."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return only if isinstance(only, Reference) else None

    def render(self, lookup: Callable[[Reference], Any]) -> Any:
        """The value, or the text with every reference formatted into it."""
        if self.whole is not None:
            return lookup(self.whole)
        return "".join(part if isinstance(part, str) else _format(lookup(part)) for part in self.parts)


def compile_value(value: Any, place: tuple[str | int, ...] = ()) -> Any:
    """The same value with a `Template` in place of every text that holds references.

    Raises:
        ReferenceFailure: a reference is not well formed; its place begins with `place`.
    """
    if isinstance(value, str):
        try:
            return _compile_text(value)
        except ReferenceFailure as error:
            error.place = place
            raise
    if isinstance(value, Mapping):
        return {key: compile_value(item, (*place, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [compile_value(item, (*place, index)) for index, item in enumerate(value)]
    return value


def evaluate(value: Any, lookup: Callable[[Reference], Any]) -> Any:
    """Puts values in place of the templates of a compiled value."""
    if isinstance(value, Template):
        return value.render(lookup)
    if isinstance(value, dict):
        return {key: evaluate(item, lookup) for key, item in value.items()}
    if isinstance(value, list):
        return [evaluate(item, lookup) for item in value]
    return value


def references_in(
    value: Any, place: tuple[str | int, ...] = ()
) -> Iterator[tuple[Reference, tuple[str | int, ...]]]:
    """Every reference of a compiled value, with its place in it."""
    if isinstance(value, Template):
        yield from ((part, place) for part in value.parts if isinstance(part, Reference))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from references_in(item, (*place, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from references_in(item, (*place, index))


def _compile_text(text: str) -> str | Template:
    parts: list[str | Reference] = []
    end = 0
    for match in _MARK.finditer(text):
        literal = text[end : match.start()]
        if match[0] == "$${":
            parts.append(literal + "${")
        elif match[1] is None:
            raise ReferenceFailure("'${' without its '}': write '$${' for a plain '${'")
        else:
            parts += [literal, Reference.parse(match[1])]
        end = match.end()
    parts = [part for part in (*parts, text[end:]) if part != ""]
    if not any(isinstance(part, Reference) for part in parts):
        return "".join(str(part) for part in parts)
    return Template(tuple(parts))


def _enter(value: Any, part: str) -> Any:
    if isinstance(value, File):
        if part not in FILE_PROPERTIES:
            raise KeyError(part)
        return getattr(value, part)
    if isinstance(value, Mapping):
        if part in value:
            return value[part]
        return (
            next(item for key, item in value.items() if str(key) == part)
            if _has(value, part)
            else value[part]
        )
    if isinstance(value, (str, bytes)):
        raise TypeError(part)
    item = value[int(part)]
    return item.item() if getattr(item, "shape", None) == () else item


def _has(value: Mapping[Any, Any], part: str) -> bool:
    return any(str(key) == part for key in value)


def _describe(value: Any) -> str:
    if isinstance(value, File):
        return f"a file with {', '.join(FILE_PROPERTIES)}"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, list(value)[:8])) or 'nothing'}"
    if isinstance(value, (str, bytes)):
        return f"text of {len(value)} characters" if isinstance(value, str) else f"{len(value)} bytes"
    if hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)}"
    if hasattr(value, "__len__"):
        return f"a list of {len(value)}"
    return f"{value!r}"


def _format(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, File):
        return str(value)
    tidy = plain(value)
    return tidy if isinstance(tidy, str) else json.dumps(tidy, ensure_ascii=False)
