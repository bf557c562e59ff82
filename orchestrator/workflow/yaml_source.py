"""YAML with places: every key and value knows its line and column, so that every complaint can say where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import ConfigError

__all__ = ["Place", "YamlSource", "nearest"]

MOST_VALUES = 300_000
Place = tuple[str | int, ...]
"""The way to a value: keys and list indexes from the document's root."""


@dataclass(frozen=True)
class YamlSource:
    """A YAML document, its data and where each part of it stands."""

    name: str
    text: str
    data: Any
    values: Mapping[Place, tuple[int, int]] = field(repr=False)
    keys: Mapping[Place, tuple[int, int]] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> YamlSource:
        """Reads a file.

        Raises:
            ConfigError: it cannot be read, is not YAML, or says a key twice.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot read it: {reason}", path=str(path)) from None
        return cls.parse(text, name=str(path))

    @classmethod
    def parse(cls, text: str, *, name: str = "<text>") -> YamlSource:
        """Reads a text; `name` is what errors call it."""
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            values: dict[Place, tuple[int, int]] = {}
            keys: dict[Place, tuple[int, int]] = {}
            if node is not None:
                _walk(node, (), values, keys, name)
            data = None if node is None else loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = error.problem or error.context or "not valid YAML"
            line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
            raise ConfigError(f"not valid YAML: {problem}", path=name, line=line, column=column) from None
        except yaml.YAMLError as error:
            raise ConfigError(f"not valid YAML: {error}", path=name) from None
        except RecursionError:
            raise ConfigError("nested too deeply, or an anchor that holds itself", path=name) from None
        finally:
            loader.dispose()
        return cls(name, text, data, values, keys)

    def error(
        self, message: str, place: Place = (), *, hint: str | None = None, key: bool = False
    ) -> ConfigError:
        """A complaint about the value at `place` (or about its key); the nearest known parent gives the line."""
        while place and place not in self.values:
            place, key = place[:-1], False
        table = self.keys if key and place in self.keys else self.values
        line, column = table.get(place, (1, 1))
        return ConfigError(message, hint=hint, path=self.name, line=line, column=column)


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown name: the nearest known one, else all of them."""
    names = sorted({str(x) for x in known})
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else "there are none"


def _walk(
    node: yaml.Node,
    place: Place,
    values: dict[Place, tuple[int, int]],
    keys: dict[Place, tuple[int, int]],
    name: str,
) -> None:
    values[place] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if len(values) > MOST_VALUES:
        raise ConfigError(f"more than {MOST_VALUES:,} values: anchors that multiply each other?", path=name)
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _walk(child, (*place, index), values, keys, name)
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            here = (*place, str(key.value))
            mark = (key.start_mark.line + 1, key.start_mark.column + 1)
            if here in keys and key.value != "<<":
                first = keys[here][0]
                raise ConfigError(
                    f"the key {key.value!r} is already given in line {first}",
                    path=name,
                    line=mark[0],
                    column=mark[1],
                )
            keys[here] = mark
            _walk(child, here, values, keys, name)
