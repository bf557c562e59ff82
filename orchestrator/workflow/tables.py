"""The rows of a run as Python values, pandas or Arrow tables, or a Parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import ConfigError

__all__ = ["check_parquet", "load_arrays", "read_rows", "to_arrow", "to_pandas", "write_parquet"]


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of results.jsonl, in order, with the arrays in place of what stands for them.

    Raises:
        ConfigError: the folder holds no results.
    """
    opened: dict[str, Any] = {}
    try:
        text = (folder / "results.jsonl").read_text(encoding="utf-8")
        for line in text.split("\n"):
            if line:
                yield load_arrays(folder, json.loads(line), opened)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no results in {folder}: {error}") from None
    finally:
        for file in opened.values():
            file.close()


def load_arrays(folder: Path, value: Any, opened: dict[str, Any]) -> Any:
    """Puts arrays in their places; `opened` keeps the files for the next call, the caller closes them."""
    if isinstance(value, dict):
        if "$array" in value:
            name = value["$array"]
            if name not in opened:
                opened[name] = np.load(folder / name, allow_pickle=False)
            return opened[name][value["key"]]
        return {key: load_arrays(folder, item, opened) for key, item in value.items()}
    return [load_arrays(folder, item, opened) for item in value] if isinstance(value, list) else value


def to_pandas(folder: Path) -> Any:
    """A pandas.DataFrame; an array is one cell."""
    pandas = _library("pandas")
    return pandas.DataFrame(list(read_rows(folder)))


def to_arrow(folder: Path) -> Any:
    """A pyarrow.Table; arrays are nested lists."""
    pyarrow = _library("pyarrow")
    return pyarrow.Table.from_pylist([_lists(row) for row in read_rows(folder)])


def check_parquet() -> None:
    """Asks before a run for what `write_parquet` needs after it.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    _library("pyarrow.parquet")


def write_parquet(folder: Path) -> Path:
    """Writes results.parquet beside results.jsonl."""
    table = to_arrow(folder)
    path = folder / "results.parquet"
    _library("pyarrow.parquet").write_table(table, path)
    return path


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ConfigError(f"this needs the package {package!r}", hint=f"pip install {package}") from None


def _lists(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()} or None  # Parquet has no empty struct
    return [_lists(item) for item in value] if isinstance(value, list) else value
