"""A run made again, and the comparison with what it gave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_models import FakeModels

from orchestrator.errors import CheckpointError, ConfigError, ProvisioningError, ResolutionError
from orchestrator.events import ignore
from orchestrator.workflow import Workflow
from orchestrator.workflow.models import Roster
from orchestrator.workflow.record import read_record
from orchestrator.workflow.replay import check_inputs, compare, not_as_recorded, recorded_workflow
from orchestrator.workflow.restoring import fetch_checkpoints, fetch_packages, restore_environments

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
    assert {name: column.rows for name, column in found.items()} == {"vec": 2, "word": 2, "mean": 1}


def test_a_result_outside_of_loops_is_one_row(here: Path) -> None:
    text = """
version: 1
name: once
models: {m: {family: python, checkpoint: "pypi:weights"}}
steps: [{id: a, model: m, call: word, with: {x: c}}]
"""
    for out in ("first", "second"):
        Workflow.parse(text).run(models(), out=out)
    assert [(c.column, c.rows) for c in compare(Path("first"), Path("second"))] == [("a", 1)]


def test_a_folder_without_a_run_is_told(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no run in other: it has no run\.json"):
        read_record(Path("other/run.json"))


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
    record["inputs"]["photos"], record["workflow"]["withheld"] = "<photos>", ["photos"]
    check_inputs(record, fresh.inputs)


class Store:
    """The store of another machine: it has what is in `there`, and builds with `python` what it is asked to restore."""

    def __init__(self, there: Mapping[str, Any], python: str = "3.11.9") -> None:
        self.there, self.python = there, python
        self.restored: list[tuple[str, dict[str, Any]]] = []
        self.refusal: ProvisioningError | None = None

    def get(self, environment_id: str) -> Any:
        return self.there.get(environment_id)

    def restore(self, family: Any, lock: str, **arguments: Any) -> Any:
        self.restored.append((lock, arguments))
        if self.refusal is not None:
            raise self.refusal
        return SimpleNamespace(id="env-built", path=Path("/env-built"), python_version=self.python)


def restored(record: dict[str, Any], store: Store) -> tuple[list[str], Roster]:
    roster = recorded_workflow(record).start(models(), out="after").roster
    return restore_environments(record, Path("before"), roster, store, ignore), roster


@pytest.fixture
def lock(record: dict[str, Any]) -> Path:
    path = Path("before/locks/env-python.lock")
    path.parent.mkdir()
    path.write_text("numpy==1.26.4\n")
    return path


def test_the_recorded_environment_is_used_though_the_family_has_another_now(record: dict[str, Any]) -> None:
    then = SimpleNamespace(id="env-python")
    notes, roster = restored(record, Store({"env-python": then}))
    assert notes == []
    assert roster.seats["m"].arguments()["environment"] is then


def test_an_environment_that_is_gone_is_built_again_from_its_lock(record: dict[str, Any], lock: Path) -> None:
    store = Store({})
    notes, roster = restored(record, store)
    assert store.restored[0][0] == "numpy==1.26.4\n"
    assert store.restored[0][1]["python"] == "3.11.9"
    assert roster.environment(roster.seats["m"]).id == "env-built"
    assert notes[0].startswith(
        f"m: the environment env-python was not in the store; built again from {lock} as"
    )
    assert notes[0].endswith("env-built: the same packages, another interpreter, Python 3.11.9")
    shutil.rmtree("after")
    notes, _ = restored(record, Store({}, python="3.11.2"))
    assert notes[0].endswith("Python 3.11.2 (recorded: 3.11.9)")


def test_a_lock_that_cannot_be_installed_here_is_a_typed_error(record: dict[str, Any], lock: Path) -> None:
    store = Store({})
    store.refusal = ResolutionError("uv's own words", hint="find a wheel", log="all of them")
    with pytest.raises(ResolutionError) as caught:
        restored(record, store)
    assert "'m' ran in the environment env-python" in caught.value.message
    assert f"from {lock}: uv's own words" in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("find a wheel; ")
    assert "orchestrator run FILE" in caught.value.hint
    assert caught.value.log == "all of them"


def test_what_is_not_in_the_store_is_fetched_in_the_recorded_version(record: dict[str, Any]) -> None:
    class Files:
        def __init__(self, *known: str) -> None:
            self.known, self.asked = known, list[str]()

        def resolve(self, spec: str, listener: Any = None) -> None:
            self.asked.append(spec)
            if spec not in self.known:
                raise CheckpointError(f"no {spec}")

        fetch_package = resolve

    photos = [{"file": "pypi:photos==2#a.png", "path": "/p/a.png"}, {"file": "/b.png", "path": "/b.png"}]
    record["inputs"]["photos"] = photos
    here, anywhere = Files("photos==2"), Files("pypi:weights==1.5#inside")
    assert fetch_packages(record, here, anywhere, ignore) == []
    assert here.asked == ["photos==2"]
    roster = recorded_workflow(record).start(models(), out="after").roster
    notes = fetch_checkpoints(roster, here, anywhere, ignore)
    assert notes == ["pypi:weights==1.5#inside was not in the store; fetched"]
    with pytest.raises(CheckpointError, match="photos==2"):
        fetch_packages(record, Files(), Files(), ignore)


def test_without_a_lock_it_is_said_what_takes_the_environments_place(record: dict[str, Any]) -> None:
    assert restored(record, Store({}))[0] == []  # what the family resolves to is the recorded one
    record["models"]["m"]["environment"]["id"] = "env-old"
    shutil.rmtree("after")
    assert (
        "not in the store any more, and there is no before/locks/env-old.lock"
        in restored(record, Store({}))[0][0]
    )
    record["models"]["m"]["environment"]["id"] = "../../env-python"
    shutil.rmtree("after")
    assert restored(record, Store({}))[0] == []


def test_code_that_changed_is_named(record: dict[str, Any], here: Path) -> None:
    fake = models()
    roster = recorded_workflow(record).start(fake, out="after").roster
    assert not_as_recorded(record, roster) == []
    fake.worker_file = here / "another.py"
    fake.worker_file.write_text("1")
    assert not_as_recorded(record, roster) == ["m: not as recorded: the code of python has changed"]


def test_a_run_that_was_not_finished_is_named(record: dict[str, Any]) -> None:
    record["state"] = "interrupted"
    roster = recorded_workflow(record).start(models(), out="after").roster
    assert not_as_recorded(record, roster) == [
        "not as recorded: that run was interrupted; rows that it does not have count as different"
    ]


HALF = {"version": 1, "state": "finished", "models": {}, "inputs": {}, "workflow": {"path": "w.yaml"}}


@pytest.mark.parametrize("text", ["", "[]", *(json.dumps(x) for x in ({"version": 2}, {"version": 1}, HALF))])
def test_what_is_no_record_is_refused(here: Path, text: str) -> None:
    (here / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json: not"):
        read_record(here / "run.json")
    with pytest.raises(ConfigError, match="there is no run in"):
        read_record(here / "none.json")
