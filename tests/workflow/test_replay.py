"""A run made again, and the comparison with what it gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import FakeModels

from orchestrator.errors import ConfigError
from orchestrator.workflow import Workflow
from orchestrator.workflow.record import read_record
from orchestrator.workflow.replay import changed_environments, check_inputs, compare, recorded_workflow

TEXT = """
version: 1
name: w
inputs: {photos: {type: files, default: "*.txt"}, scale: {type: number, default: 1}}
models: {m: {family: python, checkpoint: "pypi:weights#inside"}}
steps:
- {id: vec, model: m, call: vec, for_each: "${photos}", with: {x: "${item.text}", k: "${scale}"}}
- {id: word, model: m, call: word, for_each: "${photos}", with: {x: "${item.text}"}}
- {id: mean, call: mean, with: {values: "${vec}"}}
outputs: {vec: "${vec}", word: "${word}", mean: "${mean}"}
"""


class Versioned(FakeModels):
    def load(self, family: str, **arguments: Any) -> Any:
        from types import SimpleNamespace

        model = super().load(family, **arguments)
        model.checkpoint = SimpleNamespace(
            hub="pypi", id="weights", revision="1.5", spec=arguments["checkpoint"], path=Path("/w"), notes=()
        )
        return model


def models(shift: float = 0.0, word: str = "") -> Versioned:
    def vec(x: str, k: float) -> np.ndarray[Any, Any]:
        return np.array([len(x) * k, shift if len(x) == 2 else 0.0], np.float32)

    return Versioned(python={"vec": vec, "word": lambda x: x + (word if x == "bb" else "")})


@pytest.fixture
def record(here: Path) -> dict[str, Any]:
    (here / "a.txt").write_text("a")
    (here / "b.txt").write_text("bb")
    Workflow.parse(TEXT).run(models(), out="before", inputs={"scale": 2})
    return read_record(here / "before" / "run.json")


def again(record: dict[str, Any], out: str, shift: float = 0.0, word: str = "") -> tuple[Any, Versioned]:
    fake = models(shift, word)
    return recorded_workflow(record).run(fake, inputs=record["workflow"]["inputs"], out=out), fake


def test_the_same_run_is_equal_with_pinned_checkpoints_and_inputs(record: dict[str, Any]) -> None:
    run, fake = again(record, "after")
    assert all(column.equal for column in compare(Path("before"), run))
    assert fake.loads[0][1]["checkpoint"] == "pypi:weights==1.5#inside"
    assert fake.calls("vec")[0]["k"] == 2


def test_differences_are_measured_by_column_and_row(record: dict[str, Any]) -> None:
    run, _ = again(record, "after", shift=0.25, word="!")
    found = {column.column: column for column in compare(Path("before"), run)}
    assert found["vec"].largest == 0.25
    assert found["vec"].differing == ((1,),)
    assert found["word"].differing == ((1,),)
    assert found["word"].largest == 0.0
    assert found["mean"].largest == pytest.approx(0.0625)


def test_a_missing_row_is_a_difference(record: dict[str, Any]) -> None:
    run, _ = again(record, "after")
    lines = Path("after/results.jsonl").read_text().splitlines()
    Path("after/results.jsonl").write_text(lines[0] + "\n")
    assert {c.column: c.differing for c in compare(Path("before"), run)}["word"] == ((1,),)
    Path("after/results.jsonl").unlink()
    with pytest.raises(ConfigError, match="no results in"):
        compare(Path("before"), run)


def test_a_changed_file_is_refused(record: dict[str, Any]) -> None:
    execution = recorded_workflow(record).start(models(), out="after")
    check_inputs(record, execution.inputs)
    Path("b.txt").write_text("cc")
    with pytest.raises(ConfigError, match=r"b\.txt of the input 'photos' has another content"):
        check_inputs(record, execution.inputs)
    Path("c.txt").write_text("c")
    Path("b.txt").write_text("bb")
    fresh = recorded_workflow(record).start(models(), out="later")
    with pytest.raises(ConfigError, match="another number of files"):
        check_inputs(record, fresh.inputs)


def test_environments_that_changed_are_named(record: dict[str, Any]) -> None:
    fake = models()
    roster = recorded_workflow(record).start(fake, out="after").roster
    assert changed_environments(record, roster) == []
    fake.built["python"] = "env-other"
    assert changed_environments(record, roster) == ["m: the environment was env-python and is env-other now"]
    fake.built.clear()
    assert "not in the store any more" in changed_environments(record, roster)[0]


def test_code_that_changed_is_named(record: dict[str, Any], here: Path) -> None:
    fake = models()
    roster = recorded_workflow(record).start(fake, out="after").roster
    fake.worker_file = here / "another.py"
    fake.worker_file.write_text("1")
    assert changed_environments(record, roster) == ["m: the code of python has changed"]


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"version": 2}), json.dumps({"version": 1})])
def test_what_is_no_record_is_refused(here: Path, text: str) -> None:
    (here / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json: not"):
        read_record(here / "run.json")
    with pytest.raises(ConfigError, match="cannot read it"):
        read_record(here / "none.json")
