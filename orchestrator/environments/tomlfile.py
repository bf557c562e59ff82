"""Strict reading of TOML tables: wrong types and unknown keys are refused with file, line and nearest name."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from orchestrator.errors import ConfigError

__all__ = ["TomlFile"]

Table = TypeVar("Table", bound=msgspec.Struct)
UNKNOWN = re.compile(r"^Object contains unknown field `(?P<key>[^`]*)`")
PLACE = re.compile(r"(?P<words>.*?) - at `(?:key in )?\$(?P<path>[^`]*)`$", re.DOTALL)
STEP = re.compile(r"\.([^.\[]+)|\[[^\]]*\]")
HEADER = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")


class TomlFile:
    """A parsed file that can convert its tables and knows the lines of their keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
            self.document: dict[str, Any] = tomllib.loads(self.text)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", path=str(path)) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"not UTF-8: {error.reason}", path=str(path)) from None
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"line (\d+)", str(error))
            raise ConfigError(
                f"not valid TOML: {error}", path=str(path), line=int(line[1]) if line else None
            ) from None

    def table(self, kind: type[Table], *path: str) -> Table:
        """The table at `path` as `kind`; an absent table is an empty one.

        Raises:
            ConfigError: a key is unknown, missing or of the wrong type.
        """
        value: Any = self.document
        for key in path:
            value = value.get(key, {}) if isinstance(value, dict) else value
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise self._refusal(kind, path, str(error)) from None

    def error(self, message: str, *path: str, hint: str | None = None) -> ConfigError:
        """A `ConfigError` that points at the key at `path`."""
        return ConfigError(message, hint=hint, path=str(self.path), line=self.line(path))

    def line(self, path: tuple[str, ...]) -> int | None:
        """The line (from 1) of the key at `path`, or of the nearest table above it; None if neither is found."""
        table: tuple[str, ...] = ()
        best: tuple[int, int] | None = None
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := HEADER.match(line):
                table = _keys(header[1])
                here = table
            elif "=" in line:
                here = table + _keys(line.split("=", 1)[0])
            else:
                continue
            if path[: len(here)] == here and (best is None or len(here) > best[0]):
                best = (len(here), number)
        return best[1] if best else None

    def _refusal(self, kind: type[msgspec.Struct], path: tuple[str, ...], text: str) -> ConfigError:
        place = PLACE.match(text)
        words, tail = (place["words"], place["path"]) if place else (text, "")
        full = path + tuple(step for step in STEP.findall(tail) if step)
        if unknown := UNKNOWN.match(words):
            key = unknown["key"]
            known = [field.encode_name for field in msgspec.structs.fields(kind)]
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            where = f"[{'.'.join(full)}]" if full else "the file"
            return self.error(f"unknown key {key!r} in {where}", *full, key, hint=hint)
        return self.error(f"{'.'.join(full)}: {words[:1].lower()}{words[1:]}", *full)


def _keys(text: str) -> tuple[str, ...]:
    """The parts of a dotted key; quoted parts may hold dots."""
    return tuple(
        bare or quoted
        for quoted, bare in re.findall(r"""["']([^"']*)["']|([A-Za-z0-9_-]+)""", text)
        if bare or quoted
    )
