"""The matrix file: `version: 1`, a family, axes, calls, a reference and tolerances; and the cells that it means."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from orchestrator.environments.versions import newest_of_each_minor
from orchestrator.errors import ConfigError
from orchestrator.events import Listener, ignore
from orchestrator.matrix.compare import Tolerance
from orchestrator.settings import Settings
from orchestrator.workflow.yaml_source import YamlSource, nearest

__all__ = ["LOADING", "Cell", "MatrixFile", "axis_values", "expand", "matrix_schema", "read_matrix"]

LOADING = ("family", "checkpoint", "dtype", "python", "device_map")
"""Axes that are arguments of the load; every other axis is a distribution whose version varies."""


class MatrixFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A matrix as it stands in its file."""

    version: int
    axes: dict[str, list[str] | str]
    """Axis -> values. Of a distribution they are versions, `latest`, or specifiers such as ">=4.36,<4.40"."""
    call: dict[str, dict[str, Any]] = {}
    """Method -> its arguments."""
    self_test: bool = False
    """Run the family's self-test in every cell: `orchestrator family check` over versions."""
    family: str = ""
    checkpoint: str | None = None
    name: str = ""
    description: str = ""
    """For the page: what is asked and why."""
    with_: list[str] = msgspec.field(default_factory=list, name="with")
    options: dict[str, Any] = {}
    reference: dict[str, str] = {}
    """The cell that the others are held against; by default the first."""
    compare: Tolerance = msgspec.field(default_factory=Tolerance)
    exclude: list[dict[str, str]] = []
    trust_remote_code: bool = False
    allow_ignored_keys: bool = False
    timeout: float = 600.0
    """Seconds that one call may take."""


@dataclass(frozen=True)
class Cell:
    """One point of the matrix: its value on every axis."""

    values: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """`transformers 4.36.2, dtype float16`."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values)

    def get(self, axis: str) -> str | None:
        """Its value on an axis."""
        return dict(self.values).get(axis)

    @property
    def requirements(self) -> list[str]:
        """What replaces the family's own requirements."""
        return [
            axis if value == "latest" else f"{axis}=={value}"
            for axis, value in self.values
            if axis not in LOADING
        ]

    def matches(self, values: Mapping[str, str]) -> bool:
        """Whether it has these values on these axes."""
        mine = dict(self.values)
        return all(mine.get(axis) == value for axis, value in values.items())


def read_matrix(path: Path) -> MatrixFile:
    """Reads and checks a matrix file; nothing is asked of an index yet.

    Raises:
        ConfigError: with file, line and column.
    """
    source = YamlSource.read(path)
    if not isinstance(source.data, dict):
        raise source.error("a matrix is a mapping with version, family, axes and call")
    if "axes" not in source.data and "steps" in source.data:
        raise source.error("a workflow, not a matrix: it has steps and no axes", hint="orchestrator run FILE")
    try:
        file = msgspec.convert(source.data, MatrixFile, strict=True)
    except msgspec.ValidationError as error:
        raise _complaint(source, str(error)) from None
    _check(source, file)
    return _with_paths(file, path.parent)


def _with_paths(file: MatrixFile, folder: Path) -> MatrixFile:
    """What begins with `./` or `../` is a path from the matrix's folder, as in a workflow."""

    def placed(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and value.startswith(("./", "../")) else value

    file.family, file.checkpoint = placed(file.family), placed(file.checkpoint)
    for values in (file.options, file.reference, *file.exclude):
        values.update({key: placed(value) for key, value in values.items()})
    file.axes = {
        axis: [placed(value) for value in values] if axis in ("family", "checkpoint") else values
        for axis, values in file.axes.items()
    }
    return file


def _check(source: YamlSource, file: MatrixFile) -> None:
    if file.version != 1:
        raise source.error(f"version {file.version} is not known", ("version",), hint="version: 1")
    if not file.family and "family" not in file.axes:
        raise source.error("which family?", hint="add `family: NAME`, or an axis `family`")
    if not file.call and not file.self_test:
        raise source.error("there is nothing to do", hint="add `call: {METHOD: {…}}` or `self_test: true`")
    _check_self_test(source, file)
    for axis, values in file.axes.items():
        _check_axis(source, axis, values)
    for where, chosen in (("reference", file.reference), *(("exclude", entry) for entry in file.exclude)):
        for axis in chosen:
            if axis not in file.axes:
                raise source.error(
                    f"{where}: there is no axis {axis!r}", (where,), hint=nearest(axis, file.axes)
                )


def _check_axis(source: YamlSource, axis: str, values: list[str] | str) -> None:
    if not values:
        raise source.error(f"the axis {axis!r} has no values", ("axes", axis))
    if axis in LOADING:
        if isinstance(values, str):
            raise source.error(
                f"the axis {axis!r} must be a list", ("axes", axis), hint=f"{axis}: [{values}]"
            )
        return
    for value in [values] if isinstance(values, str) else values:
        if not _is_version(value) and not _is_specifier(value):
            raise source.error(
                f"{value!r} is not a version of {axis}",
                ("axes", axis),
                hint='versions, latest, or specifiers such as ">=4.36,<4.40"',
            )


def _check_self_test(source: YamlSource, file: MatrixFile) -> None:
    for axis in ("checkpoint", "dtype", "device_map", "python"):
        if file.self_test and not file.call and axis in file.axes:
            raise source.error(
                f"a self-test has no {axis}: it makes its own tiny checkpoint, on the CPU, in the family's Python",
                ("axes", axis),
                hint="axes: family, and versions of distributions",
            )


def expand(
    file: MatrixFile,
    settings: Settings,
    listener: Listener = ignore,
    *,
    only: Mapping[str, str] | None = None,
) -> tuple[list[Cell], Cell]:
    """The cells, and the one that is the reference; version specifiers are resolved against the index.

    `only` keeps the cells with these values, and the reference.

    Raises:
        ConfigError: a specifier allows nothing, or no cell is the reference, or none is what `only` asks for.
    """
    axes = {axis: axis_values(file, axis, settings, listener) for axis in file.axes}
    combinations = (
        Cell(tuple(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())
    )
    cells = [cell for cell in combinations if not any(cell.matches(excluded) for excluded in file.exclude)]
    reference = next((cell for cell in cells if cell.matches(file.reference)), None)
    if reference is None:
        told = ", ".join(f"{axis} {value}" for axis, value in file.reference.items())
        raise ConfigError(
            f"no cell of the matrix is the reference ({told})" if told else "the matrix has no cells",
            hint=_names(cells),
        )
    if only:
        chosen = [cell for cell in cells if cell.matches(only)]
        if not chosen:
            told = ", ".join(f"{axis}={value}" for axis, value in only.items())
            raise ConfigError(f"no cell of the matrix is {told}", hint=_names(cells))
        cells = list(dict.fromkeys((reference, *chosen)))
    return cells, reference


def _names(cells: list[Cell]) -> str:
    return "cells: " + "; ".join(cell.name for cell in cells[:8]) + (" …" if len(cells) > 8 else "")


def axis_values(file: MatrixFile, axis: str, settings: Settings, listener: Listener = ignore) -> list[str]:
    """The values of an axis; in the place of a specifier the newest patch of each minor version that it allows.

    Raises:
        ConfigError: a specifier allows nothing that the index has.
    """
    given = file.axes[axis]
    found: list[str] = []
    for value in [given] if isinstance(given, str) else given:
        if axis in LOADING or not _is_specifier(value):
            found.append(value)
            continue
        releases = newest_of_each_minor(settings, axis, value, listener)
        if not releases:
            raise ConfigError(
                f"no release of {axis!r} is {value}", hint="orchestrator doctor shows the indexes in force"
            )
        found += map(str, releases)
    return list(dict.fromkeys(found))


def _is_specifier(value: str) -> bool:
    try:
        return bool(SpecifierSet(value))
    except InvalidSpecifier:
        return False


def _is_version(value: str) -> bool:
    return value == "latest" or _is_specifier(f"=={value}")


def matrix_schema() -> dict[str, Any]:
    """JSON Schema of a matrix file."""
    (reference,), definitions = msgspec.json.schema_components(
        [MatrixFile], ref_template="#/definitions/{name}"
    )
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "compat-orchestrator matrix",
        **reference,
        "definitions": definitions,
    }


def _complaint(source: YamlSource, text: str) -> ConfigError:
    what, _, way = text.partition(" - at ")
    place = tuple(_steps(way.strip("`")))
    if unknown := re.match(r"Object contains unknown field `(.*)`", what):
        struct = Tolerance if place == ("compare",) else MatrixFile
        known = [field.encode_name for field in msgspec.structs.fields(struct)]
        name = unknown[1]
        return source.error(f"unknown key {name!r}", (*place, name), hint=nearest(name, known), key=True)
    hint = "quote it: YAML reads 4.40 as the number 4.4" if "got `float`" in what else None
    return source.error(f"{'.'.join(map(str, place)) or 'the matrix'}: {what}", place, hint=hint)


def _steps(way: str) -> Iterator[str | int]:
    for name, index in re.findall(r"\.([\w-]+)|\[(\d+)\]", way):
        yield name or int(index)
