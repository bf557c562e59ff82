"""Rows of a run for other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_models import FakeModels

from orchestrator.errors import ConfigError
from orchestrator.workflow import Run, Workflow
from orchestrator.workflow.tables import write_parquet


@pytest.fixture
def done(here: Path) -> Run:
    models = FakeModels(python={"f": lambda x: {"v": np.full((2, 2), x, np.float32), "t": "a\u2028b"}})
    return Workflow.parse(
        """
version: 1
name: <w>
inputs: {n: {type: list, default: [1, 2]}}
models: {m: {family: python}}
steps: [{id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}]
""".replace("<w>", "w")
    ).run(models)


def test_rows_come_with_their_arrays(done: Run) -> None:
    first, second = done.results()
    assert first["item"] == {"item": 1}
    assert second["a"]["t"] == "a\u2028b"
    np.testing.assert_array_equal(second["a"]["v"], np.full((2, 2), 2, np.float32))
    assert "2 rows" in done._repr_html_()


def test_arrow_gets_plain_lists(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    table = SimpleNamespace(from_pylist=lambda rows: given.extend(rows) or "table")
    parquet = SimpleNamespace(write_table=lambda table, path: path.write_text(table))
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(Table=table, parquet=parquet))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)  # type: ignore[arg-type]
    assert done.to_arrow() == "table"
    assert given[0]["a"]["v"] == [[1.0, 1.0], [1.0, 1.0]]
    assert write_parquet(done.folder).read_text() == "table"


@pytest.mark.parametrize("name", ["pandas", "pyarrow"])
def test_what_is_not_installed_is_named(done: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=name):
        done.to_pandas() if name == "pandas" else done.to_arrow()
