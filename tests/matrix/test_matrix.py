"""The matrix: its file, its comparison, bisection and outputs; and one real run over two numpys."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml
from conditions import gone, until
from packaging.version import Version

from orchestrator import Settings
from orchestrator.devices import host_cores
from orchestrator.environments.versions import newest, newest_of_each_minor, releases
from orchestrator.errors import ConfigError, PlacementError
from orchestrator.matrix import (
    Cell,
    CellResult,
    MatrixFile,
    MatrixResult,
    Runner,
    Tolerance,
    bisect,
    compare,
    expand,
    matrix_schema,
    output,
    read_matrix,
    run_matrix,
)
from orchestrator.matrix.page import as_html
from orchestrator.matrix.run import self_test_differences

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*_matrix.yaml"))
MODEL = """
import numpy

class Model:
    def versions(self):
        return {"values": numpy.float32([1, 2]), "name": "same"}

    def major(self):
        if numpy.__version__.startswith("2"):
            raise RuntimeError("numpy 2 is not for me")
        return 1

    def text(self):
        return numpy.__version__
"""


def matrix_file(folder: Path, **changes: object) -> Path:
    (folder / "model.py").write_text(MODEL)
    document = {
        "version": 1,
        "name": "m",
        "family": f"{folder / 'model.py'}:Model",
        "axes": {"numpy": ["1.26.4", "2.2.6"]},
        "call": {"versions": {}},
        **changes,
    }
    path = folder / "matrix.yaml"
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"famly": "x"}, "unknown key 'famly'"),
        ({"family": None}, "which family"),
        ({"axes": {"numpy": []}}, "no values"),
        ({"axes": {"numpy": [1.26]}}, "quote it"),
        ({"axes": {"numpy": ["1.26.4", "newest"]}}, "'newest' is not a version of numpy"),
        ({"axes": {"numpy": [">=1.26 <2"]}}, "'>=1.26 <2' is not a version of numpy"),
        ({"axes": {"dtype": "float32"}}, "must be a list"),
        ({"reference": {"nump": "1.26.4"}}, "did you mean 'numpy'"),
        ({"compare": {"maxabs": 1}}, "did you mean 'max_abs'"),
        ({"compare": {"text": "about"}}, "compare.text"),
        ({"call": {}}, "nothing to do"),
        ({"call": {}, "self_test": True, "axes": {"dtype": ["float32"]}}, "a self-test has no dtype"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_matrix(matrix_file(tmp_path, **changes))
    assert words in str(caught.value)
    assert "matrix.yaml:1:" in str(caught.value)


def test_cells_are_the_product_without_what_is_excluded(tmp_path: Path, settings: Settings) -> None:
    path = matrix_file(
        tmp_path,
        axes={"numpy": ["1.26.4", "2.2.6"], "dtype": ["float32", "float16"]},
        exclude=[{"numpy": "2.2.6", "dtype": "float16"}],
        reference={"numpy": "2.2.6"},
    )
    cells, reference = expand(read_matrix(path), settings)
    assert len(cells) == 3
    assert reference.name == "numpy 2.2.6, dtype float32"
    assert reference.requirements == ["numpy==2.2.6"]
    with pytest.raises(ConfigError, match="no cell"):
        expand(read_matrix(matrix_file(tmp_path, reference={"numpy": "1.0"})), settings)


def test_some_cells_are_chosen_and_the_reference_with_them(tmp_path: Path, settings: Settings) -> None:
    path = matrix_file(tmp_path, axes={"numpy": ["1.26.4", "2.0.0", "2.2.6"]})
    cells, reference = expand(read_matrix(path), settings, only={"numpy": "2.2.6"})
    assert [cell.get("numpy") for cell in cells] == ["1.26.4", "2.2.6"]
    assert reference == cells[0]
    with pytest.raises(ConfigError, match="no cell of the matrix is numpy=9"):
        expand(read_matrix(path), settings, only={"numpy": "9"})


def test_versions_latest_and_specifiers_may_be_mixed(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.matrix.schema.newest_of_each_minor", lambda *_: [Version("1.25.2"), Version("1.26.4")]
    )
    for written, meant in (
        (["1.24.4", ">=1.25,<2", "1.26.4", "latest"], ["1.24.4", "1.25.2", "1.26.4", "latest"]),
        (">=1.25,<2", ["1.25.2", "1.26.4"]),
        ("1.24.*", ["1.24.*"]),
        ("latest", ["latest"]),
    ):
        cells, _ = expand(read_matrix(matrix_file(tmp_path, axes={"numpy": written})), settings)
        assert [cell.get("numpy") for cell in cells] == meant


def test_paths_begin_at_the_matrix(tmp_path: Path) -> None:
    file = read_matrix(
        matrix_file(
            tmp_path,
            family="./model.py:Model",
            axes={"checkpoint": ["./a", "pypi:b"], "numpy": "<2"},
            reference={"checkpoint": "./a"},
        )
    )
    assert file.family == f"{tmp_path}/model.py:Model"
    assert file.axes == {"checkpoint": [f"{tmp_path}/a", "pypi:b"], "numpy": "<2"}
    assert file.reference == {"checkpoint": f"{tmp_path}/a"}


def test_the_schema_knows_every_key_of_a_file() -> None:
    schema = matrix_schema()
    known = schema["definitions"]["MatrixFile"]["properties"]
    assert {"axes", "call", "self_test", "with", "compare"} <= set(known)
    for example in EXAMPLES:
        assert set(yaml.safe_load(example.read_text())) <= set(known)
        read_matrix(example)
    assert EXAMPLES


def test_latest_means_unpinned() -> None:
    assert Cell((("transformers", "latest"), ("dtype", "float16"))).requirements == ["transformers"]


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "allowed"),
    [
        (np.float32([1, 2]), np.float32([1, 2.000001]), Tolerance(), True),
        (np.float32([1, 2]), np.float32([1, 2.1]), Tolerance(), False),
        (np.float32([1, 2]), np.float32([1, 2.1]), Tolerance(max_abs=1), True),
        (np.float32([1, 0]), np.float32([0, 1]), Tolerance(max_abs=9, cosine=0.9), False),
        (np.float32([1]), np.float32([np.nan]), Tolerance(max_abs=1e9), False),
        (np.zeros((2, 3)), np.zeros((3, 2)), Tolerance(), False),
        ("a cat sat", "a cat sits", Tolerance(), False),
        ("a cat sat", "a cat sits", Tolerance(text="similarity", similarity=0.7), True),
        ("a cat sat", "12345", Tolerance(text="similarity"), False),
        ([1, 2, 3], [1, 2, 3, 4], Tolerance(), False),
        ([1, 2, 3], [1, 2, 3, 4], Tolerance(tokens="first"), True),
        ([1, 2, 3], [1, 9, 3], Tolerance(tokens="first"), False),
        ({"x": 1.0}, {"y": 1.0}, Tolerance(), False),
        (None, 1, Tolerance(), False),
        (True, False, Tolerance(max_abs=5), False),
        (np.zeros(2), np.float64([0, 1e-9]), Tolerance(cosine=0.9), False),
        (np.float32([np.inf, 1]), np.float32([np.inf, 1.000001]), Tolerance(), True),
    ],
)
def test_what_may_differ(a: object, b: object, tolerance: Tolerance, allowed: bool) -> None:
    found = compare(a, b, tolerance)
    assert found
    assert all(difference.allowed for difference in found) is allowed


@pytest.mark.parametrize(
    "value", [np.float32([np.nan, 1]), {"a": ["x", 1, None, True]}, [], "", [[1], [1, 2]]]
)
def test_equal_is_no_difference(value: object) -> None:
    assert compare(value, value, Tolerance(max_abs=0)) == []


def test_the_place_of_a_difference_is_told() -> None:
    (found,) = compare(
        {"e": [np.float32([[0, 0], [0, 5]])]}, {"e": [np.zeros((2, 2), np.float32)]}, Tolerance()
    )
    assert (found.path, found.amount) == ("e", 5.0)
    assert "at [0, 1, 1]" in found.what


def test_both_texts_and_the_tokens_around_the_place_are_kept() -> None:
    text, ids = compare(
        {"text": "a cat", "ids": np.arange(100)},
        {"text": "a dog", "ids": np.where(np.arange(100) == 50, 7, np.arange(100))},
        Tolerance(),
    )
    assert (text.path, text.kind, text.reference, text.value) == ("text", "text", "a cat", "a dog")
    assert (ids.short, ids.value.split()[:10]) == ("from [50]", ["…", *map(str, range(42, 50)), "7"])


def bisected(outcomes: Sequence[str]) -> tuple[str | None, str | None, int]:
    versions = [str(n) for n in range(len(outcomes))]

    def run(version: str) -> CellResult:
        outcome = outcomes[int(version)]
        return CellResult(Cell((("v", version),)), "pass" if outcome == "differs" else outcome)  # type: ignore[arg-type]

    def judge(result: CellResult, reference: CellResult) -> None:
        if outcomes[int(result.cell.get("v") or 0)] == "differs":
            result.outcome = "differs"

    found = bisect(versions, run, judge)
    return found.good.cell.get("v"), found.bad.cell.get("v"), len(found.tried)


def test_bisection_finds_the_first_bad_one_in_few_steps() -> None:
    for first_bad in range(1, 60):
        outcomes = ["pass"] * first_bad + ["differs"] * (60 - first_bad)
        good, bad, tried = bisected(outcomes)
        assert (good, bad) == (str(first_bad - 1), str(first_bad))
        assert tried <= 9


def test_bisection_passes_over_what_cannot_be_installed() -> None:
    assert bisected(["pass", "pass", "cannot install", "cannot install", "fails", "fails"])[:2] == ("1", "4")


def test_bisection_says_when_there_is_nothing_to_find() -> None:
    with pytest.raises(ConfigError, match="nothing to find"):
        bisected(["pass", "pass", "pass"])
    with pytest.raises(ConfigError, match="gives no answer"):
        bisected(["fails", "fails"])


def test_bisection_tells_what_lies_between_and_was_passed_over() -> None:
    outcomes = ["pass", "pass", "cannot install", "fails", "fails"]
    found = bisect(list("01234"), lambda v: CellResult(Cell((("v", v),)), outcomes[int(v)]), lambda *_: None)  # type: ignore[arg-type]
    assert (found.good.cell.get("v"), found.bad.cell.get("v"), found.between) == ("1", "3", ("2",))


def test_a_self_test_differs_with_what_moved() -> None:
    told = {"ok": False, "max_abs": 0.5, "tolerance": 1e-4, "differences": {"logits": 0.5, "ids": 0.0}}
    (found,) = self_test_differences(told)
    assert (found.path, found.amount, found.allowed) == ("self-test.logits", 0.5, False)
    assert "off by 0.5 from the recorded numbers (tolerance 0.0001)" in found.what
    assert self_test_differences({"ok": True, "max_abs": 0.0, "tolerance": 0.0}) == []
    assert not self_test_differences({"ok": False, "error": "no gguf"})[0].allowed


@pytest.mark.slow
def test_the_families_own_self_test_is_run_in_each_cell(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text(
        'version: 1\naxes: {family: [retrieval-evaluation, causal-lm], transformers: ["4.36.2"]}\nself_test: true\n'
    )
    file = read_matrix(path)
    found = run_matrix(file, *expand(file, settings), settings)
    assert [cell.outcome for cell in found.cells] == ["pass", "pass"]
    assert found.cells[1].versions["transformers"] == "4.36.2"
    assert "self-test" in as_html(found)


PLACED = "import os\n\ndef threads():\n    return int(os.environ['OMP_NUM_THREADS'])\n"


def test_every_cell_has_the_same_number_of_threads(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order move the last bits, and that is no difference between versions."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "placed.py").write_text(PLACED)
    path = matrix_file(tmp_path, family="./placed.py:threads", call={"threads": {}})
    file = read_matrix(path)
    for threads, expected in ((0, max(1, host_cores() // 2)), (3, 3)):
        chosen = dataclasses.replace(settings, threads=threads)
        cells = run_matrix(file, *expand(file, settings), chosen, parallel=2).cells
        assert [cell.answers for cell in cells] == [{"threads": expected}] * 2


def test_a_cell_without_room_waits_for_another_to_end(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_matrix(matrix_file(tmp_path, axes={"numpy": ["1", "2", "3"]}))
    cells, reference = expand(file, settings)
    room, refused = threading.Semaphore(1), threading.Event()

    def answer(self: Runner, cell: Cell, result: CellResult) -> None:
        if cell.get("numpy") == "3" or not room.acquire(blocking=False):
            refused.set()
            raise PlacementError("no room")
        try:
            assert refused.wait(60)  # until another was refused, so that it has to wait for this one
            result.answers = {"versions": 1}
        finally:
            room.release()

    monkeypatch.setattr(Runner, "_answer", answer)
    found = run_matrix(file, cells, reference, settings, parallel=3)
    assert [cell.outcome for cell in found.cells] == ["pass", "pass", "fails"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> MatrixResult:
    """One real run: equal numbers, a call that fails on numpy 2 and a pin that does not exist."""
    folder = tmp_path_factory.mktemp("matrix")
    file = read_matrix(
        matrix_file(folder, axes={"numpy": ["1.26.4", "2.2.6", "0.0.1"]}, call={"versions": {}, "major": {}})
    )
    cells, reference = expand(file, settings)
    return run_matrix(file, cells, reference, settings)


def test_outcomes(result: MatrixResult) -> None:
    assert [cell.outcome for cell in result.cells] == ["pass", "fails", "cannot install"]
    assert "numpy 2 is not for me" in result.cells[1].message
    assert "0.0.1" in result.cells[2].message + result.cells[2].log
    assert result.cells[0].versions["numpy"] == "1.26.4"
    assert not result.ok


def test_a_difference_is_found_in_a_real_run(tmp_path: Path, settings: Settings) -> None:
    file = read_matrix(matrix_file(tmp_path, call={"text": {}}))
    found = run_matrix(file, *expand(file, settings), settings)
    assert [cell.outcome for cell in found.cells] == ["pass", "differs"]


@pytest.mark.parametrize(
    ("reference", "outcomes"), [({}, ["fails", "pass", "pass"]), ({"numpy": "1"}, ["fails"] * 3)]
)
def test_a_reference_that_nobody_chose_is_the_first_that_answers(
    tmp_path: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    reference: dict[str, str],
    outcomes: list[str],
) -> None:
    def answer(self: Runner, cell: Cell, result: CellResult) -> None:
        if cell.get("numpy") == "1":
            raise ConfigError("not this one")
        result.answers = {"versions": 1}

    monkeypatch.setattr(Runner, "_answer", answer)
    file = read_matrix(matrix_file(tmp_path, axes={"numpy": ["1", "2", "3"]}, reference=reference))
    found = run_matrix(file, *expand(file, settings), settings)
    assert [cell.outcome for cell in found.cells] == outcomes
    assert found.reference.get("numpy") == ("1" if reference else "2")


def test_outputs(result: MatrixResult) -> None:
    page = as_html(result)
    assert "cannot install" in page
    assert "src=" not in page
    assert "href=" not in page
    suite = ET.fromstring(output.as_junit(result))[0]
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("3", "2", "0")
    told = json.loads(json.dumps(output.as_json(result)))
    assert [cell["outcome"] for cell in told["cells"]] == ["pass", "fails", "cannot install"]
    lines = output.github_annotations(result, "m,x.yaml")
    assert len(lines) == 2
    assert all(line.startswith("::error file=m%2Cx.yaml,title=numpy ") and "\n" not in line for line in lines)
    assert output.as_markdown(result).count("\n") == 7


def test_html_escapes_what_models_say() -> None:
    cell = CellResult(Cell((("v", "<q>"),)), "fails", "<script>alert(1)</script>")
    page = as_html(MatrixResult(MatrixFile(version=1, axes={"v": ["<q>"]}), [cell], cell.cell))
    assert "<script>" not in page
    assert "<q>" not in page


def test_versions_come_from_the_index(settings: Settings) -> None:
    assert str(newest(settings, "numpy", ">=1.24,<1.27")) == "1.26.4"
    assert newest(settings, "numpy", ">999") is None
    assert [str(v) for v in newest_of_each_minor(settings, "numpy", ">=1.24,<1.27")] == [
        "1.24.4",
        "1.25.2",
        "1.26.4",
    ]
    found = [str(v) for v in releases(settings, "numpy", ">=1.26,<1.27")]
    assert found[0] == "1.26.0"
    assert found[-1] == "1.26.4"
    with pytest.raises(ConfigError, match="not a version specifier"):
        newest(settings, "numpy", "=>1")


def orchestrator_command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    """As a user runs them: files, GitHub's summary and annotations, one cell by `--only`, and bisection as JSON."""
    matrix_file(tmp_path, axes={"numpy": ["1.26.4", "2.2.6"]}, call={"major": {}})
    summary = tmp_path / "summary.md"
    done = subprocess.run(
        [
            sys.executable, "-m", "orchestrator", "matrix", "matrix.yaml", "--only", "numpy=2.2.6",
            "--html", "m.html", "--junitxml", "m.xml", "--markdown", "m.md",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "GITHUB_ACTIONS": "true",
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_WORKSPACE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "::error file=matrix.yaml,title=numpy 2.2.6%3A fails::RuntimeError: numpy 2 is not" in done.stdout
    assert summary.read_text() == (tmp_path / "m.md").read_text()
    assert summary.read_text().startswith("### m: 1 of 2 cells pass\n")
    assert ET.parse(tmp_path / "m.xml").getroot()[0].get("errors") == "1"
    assert "numpy 2 is not for me" in (tmp_path / "m.html").read_text()

    matrix_file(tmp_path, axes={"numpy": "latest", "msgspec": ">=0.20,<0.21"}, call={"major": {}})
    bounds = ["--good", "1.26.3", "--bad", "2.0.1"]
    with orchestrator_command(
        "bisect", "matrix.yaml", "--axis", "numpy", *bounds, "--json", cwd=tmp_path
    ) as child:
        out, err = child.communicate(timeout=200)
    assert child.returncode == 0, err
    found = json.loads(out)
    assert (found["good"], found["bad"], found["outcome"]) == ("1.26.4", "2.0.0", "fails")
    assert len(found["tried"]) == 4


@pytest.mark.slow
def test_an_interrupt_ends_the_cells(tmp_path: Path) -> None:
    (tmp_path / "sleep.py").write_text(
        "import os, time\n\ndef sleep(mark):\n    open(f'{mark}/{os.getpid()}', 'w').close()\n    time.sleep(600)\n"
    )
    marks = tmp_path / "marks"
    marks.mkdir()
    path = matrix_file(tmp_path, family="./sleep.py:sleep", call={"sleep": {"mark": str(marks)}})
    with orchestrator_command("-q", "matrix", str(path), cwd=tmp_path) as child:
        until(lambda: len(list(marks.iterdir())) == 2 or child.poll() is not None, 120)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err.strip()) == (130, "interrupted")
    workers = [int(mark.name) for mark in marks.iterdir()]
    assert len(workers) == 2
    until(lambda: all(map(gone, workers)))
