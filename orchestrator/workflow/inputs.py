"""What a workflow is given: files, folders, globs, packages, JSONL, CSV, Parquet and plain values."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from glob import escape, glob, has_magic
from pathlib import Path
from typing import Any

import yaml
from msgspec import UNSET

from orchestrator.errors import ConfigError
from orchestrator.workflow.schema import Input, WorkflowFile
from orchestrator.workflow.secret_inputs import Secrets, secrets_of
from orchestrator.workflow.values import File
from orchestrator.workflow.yaml_source import YamlSource, nearest

__all__ = ["FetchPackage", "from_everywhere", "parse_overrides", "read_inputs"]

FetchPackage = Callable[[str], Path]
"""Gives the folder in which a package from the index lies unpacked."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PATH_TYPES = ("images", "files", "file", "folder", "jsonl", "csv", "parquet")
_SCALARS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
}


def parse_overrides(pairs: Sequence[str]) -> dict[str, list[str]]:
    """`name=VALUE` texts of the command line by name; a name may come more than once.

    A name alone stands for the variable of that name: what stands on a command line can be seen by everybody.

    Raises:
        ConfigError: one has no `=`, and there is no such variable.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals and name in os.environ:
            value = os.environ[name]
        elif not equals or not name:
            raise ConfigError(f"--input {pair!r}: expected NAME=VALUE, or the name of a variable that is set")
        found.setdefault(name, []).append(value)
    return found


def from_everywhere(file: WorkflowFile, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The same overrides with absolute paths: they are recorded, and read again in another current folder."""
    return {
        name: _absolute(value) if name in file.inputs and file.inputs[name].type in PATH_TYPES else value
        for name, value in overrides.items()
    }


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    if not isinstance(value, (str, Path)) or str(value).startswith("pypi:"):
        return value
    path = Path.cwd() / Path(value).expanduser()
    if has_magic(str(value)) and not path.exists():
        path = Path(escape(str(Path.cwd()))) / Path(value).expanduser()
    return str(path)


def read_inputs(
    file: WorkflowFile,
    source: YamlSource,
    overrides: Mapping[str, Any],
    fetch: FetchPackage,
    *,
    base: Path,
) -> dict[str, Any]:
    """The value of every input.

    Args:
        overrides: values that take the place of defaults; lists of text (from the command line) are converted.
        fetch: fetches a package of a `pypi:` path.
        base: the folder that relative paths of defaults start from (overrides: the current folder).

    Raises:
        ConfigError: an input is unknown, missing, of the wrong type, or names no file.
    """
    for name in overrides:
        if name not in file.inputs:
            raise ConfigError(
                f"the workflow {file.name!r} has no input {name!r}", hint=nearest(name, file.inputs)
            )
    secrets = secrets_of(file, overrides)
    values = {}
    for name, spec in file.inputs.items():
        if name in overrides:
            reader = _Reader(spec, fetch, Path.cwd(), partial(_refuse_override, name, secrets))
            values[name] = reader.read(reader.from_text(overrides[name]))
        elif spec.default is UNSET:
            raise source.error(
                f"the input {name!r} has no value", ("inputs", name), hint=f"give it: --input {name}=VALUE"
            )
        else:
            complain = partial(source.error, place=("inputs", name, "default"))
            reader = _Reader(spec, fetch, base, complain)
            values[name] = reader.read(spec.default)
    return values


def _refuse_override(name: str, secrets: Secrets, text: str) -> ConfigError:
    return ConfigError(f"--input {name}: {secrets.text(text)}")


class _Reader:
    """Reads one input."""

    def __init__(
        self, spec: Input, fetch: FetchPackage, base: Path, complain: Callable[[str], ConfigError]
    ) -> None:
        self.spec, self.fetch, self.base, self.complain = spec, fetch, base, complain

    def from_text(self, given: Any) -> Any:
        """An override as a value: texts of the command line are read by the input's type."""
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            return given
        kind = self.spec.type
        if kind in PATH_TYPES:
            return given
        if kind == "list" and len(given) > 1:
            return given
        if len(given) > 1:
            raise self.complain(f"given {len(given)} times, but it is one {kind}")
        if kind == "text":
            return given[0]
        if not given[0].strip():
            raise self.complain(f"it is empty; expected {kind}")
        try:
            value = yaml.safe_load(given[0])
        except yaml.YAMLError:
            raise self.complain(f"{given[0]!r} is neither JSON nor YAML; expected {kind}") from None
        return [value] if kind == "list" and not isinstance(value, list) else value

    def read(self, value: Any) -> Any:
        """The input's value, checked."""
        kind = self.spec.type
        if kind in PATH_TYPES:
            found = self._paths(value)
        else:
            wanted = _SCALARS.get(kind, (object,))
            if not isinstance(value, wanted) or (isinstance(value, bool) and kind in ("integer", "number")):
                raise self.complain(f"expected {kind}, got {value!r}")
            found = value
        if self.spec.limit is not None and isinstance(found, list):
            found = found[: self.spec.limit]
        return found

    def _paths(self, value: Any) -> Any:
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, (str, Path)) for text in texts):
            raise self.complain(f"expected a path or a list of paths, got {value!r}")
        kind = self.spec.type
        files = [file for text in texts for file in self._find(str(text))]
        if kind in ("file", "folder"):
            if len(files) != 1:
                raise self.complain(f"expected one {kind}, found {len(files)}")
            if Path(files[0].path).is_dir() != (kind == "folder"):
                raise self.complain(f"{files[0]} is not a {kind}")
            return files[0]
        if kind in ("images", "files"):
            return files
        return [row for file in files for row in self._rows(Path(file.path))]

    def _find(self, text: str) -> Iterator[File]:
        """The files that a path, folder, glob or `pypi:NAME#inside` means, in order of their names."""
        root, inside, prefix = self._root(text)
        paths = [root / inside]
        if has_magic(inside or text) and not paths[0].exists():  # `photo[1].png` may be a file's name
            paths = _matches(root, inside) if prefix else _matches(self.base, text)
        if not paths:
            raise self.complain(f"nothing matches {text}")
        for path in paths:
            if not path.exists():
                raise self.complain(f"there is no {text}")
            yield from (File(p, _origin(p, root, prefix)) for p in self._expand(path, text))

    def _root(self, text: str) -> tuple[Path, str, str]:
        if not text.startswith("pypi:"):
            return self.base / Path(text).expanduser(), "", ""
        requirement, _, inside = text.removeprefix("pypi:").partition("#")
        if not requirement or inside.startswith("/") or ".." in Path(inside).parts:
            raise self.complain(f"{text!r}: expected pypi:NAME[==VERSION]#path/inside")
        return self.fetch(requirement), inside, f"pypi:{requirement}#"

    def _expand(self, path: Path, text: str) -> list[Path]:
        if not path.is_dir() or self.spec.type in ("file", "folder"):
            return [path]
        wanted = {"images": IMAGE_SUFFIXES, "jsonl": (".jsonl",), "csv": (".csv",), "parquet": (".parquet",)}
        suffixes = wanted.get(self.spec.type)
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        files = [p for p in files if suffixes is None or p.suffix.lower() in suffixes]
        if not files:
            raise self.complain(f"no {self.spec.type} in the folder {text}")
        return files

    def _rows(self, path: Path) -> list[Any]:
        try:
            match self.spec.type:
                case "jsonl":
                    return self._jsonl(path)
                case "csv":
                    return self._csv(path)
                case _:
                    return self._parquet(path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise self.complain(f"cannot read {path}: {error}") from None

    def _csv(self, path: Path) -> list[Any]:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = []
            for row in reader:
                if None in row:
                    raise self.complain(
                        f"{path}:{reader.line_num}: more cells than the {len(row) - 1} of the first line"
                    )
                rows.append(row)
        return rows

    def _jsonl(self, path: Path) -> list[Any]:
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise self.complain(f"{path}:{number}:{error.colno}: {error.msg}") from None
        return rows

    def _parquet(self, path: Path) -> list[Any]:
        try:
            from pyarrow import parquet  # type: ignore[import-not-found]
        except ImportError:
            raise self.complain(
                "reading Parquet needs the package 'pyarrow': install it beside this one"
            ) from None
        rows: list[Any] = parquet.read_table(path).to_pylist()
        return rows


def _matches(base: Path, pattern: str) -> list[Path]:
    """The files that a glob means, in order; `base` may itself have a `[` in its name."""
    whole = str(Path(escape(str(base))) / Path(pattern).expanduser())
    return sorted(Path(path) for path in glob(whole, recursive=True, include_hidden=False))


def _origin(path: Path, root: Path, prefix: str) -> str:
    return prefix + path.relative_to(root).as_posix() if prefix else str(path)
