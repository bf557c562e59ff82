"""The commands call, ps, logs and stop as a user types them, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import MODEL, orchestrator
from conditions import until

from orchestrator.cli.call import _presentable
from orchestrator.worker.values import RawTensor

SERVER = """
import sys, time
from orchestrator import Orchestrator
with Orchestrator() as orc:
    model = orc.load(sys.argv[1], name=sys.argv[2])
    print("ready", model.environment.id, flush=True)
    try:
        model.sleep()
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


def test_a_method_of_a_file_of_ones_own(model: Path) -> None:
    done = orchestrator("-q", "call", f"{model}:Model.scale", "x=21")
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


def test_a_relative_path_a_positional_value_an_option_and_a_function(model: Path) -> None:
    done = orchestrator("-q", "call", "./my_model.py:Model.scale", "2", "-o", "factor=5", cwd=model.parent)
    assert done.stdout == "10\n"
    assert orchestrator("-q", "call", "./my_model.py:double", "[1]", cwd=model.parent).stdout.split() == [
        "[", "1,", "1", "]",
    ]  # fmt: skip


def test_a_method_may_be_an_argument_of_its_own(model: Path) -> None:
    done = orchestrator("-q", "call", f"{model}:Model", "scale", "21")
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


def test_what_json_has_no_number_for_is_null(model: Path) -> None:
    shown = json.loads(
        orchestrator("-q", "call", f"{model}:Model.nothing_finite").stdout, parse_constant=pytest.fail
    )
    assert shown == {"value": None, "list": [1.5, None], "array": [None, 2.0]}


def test_what_every_command_takes_stands_before_or_after_it(model: Path, tmp_path: Path) -> None:
    assert orchestrator("call", f"{model}:double", "2", "-q").stderr == ""
    assert "orchestrator.replicas: my_model: cold -> starting" in (
        orchestrator("call", "-v", f"{model}:double", "2").stderr
    )
    for arguments in (("env", "list", "--home", str(tmp_path)), ("env", "--home", str(tmp_path), "list")):
        assert len(orchestrator(*arguments).stdout.splitlines()) == 1  # the header
    misplaced = orchestrator("--json", "ps")
    assert misplaced.returncode == 2
    assert "orchestrator ps --json" in misplaced.stderr


def test_a_reader_that_goes_away_is_no_error(model: Path) -> None:
    command = ["-q", "call", f"{model}:Model.count", "to=100000000", "--stream"]
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(2) == b"01"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 0


def test_bytes_of_a_file(model: Path) -> None:
    done = orchestrator("-q", "call", f"{model}:Model.length", f"data=@{model}")
    assert done.stdout.strip() == str(len(MODEL))


def test_arrays_are_shown_short_and_written_whole(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    done = orchestrator("call", f"{model}:Model.grid", "n=50", "--out", str(tmp_path / "out"))
    assert f"2 arrays in {out}\n" in done.stderr  # numpy adds the suffix
    shown = json.loads(done.stdout)
    assert shown == {"small": [0, 1, 2], "large": {"dtype": "float32", "shape": [50, 50]}}
    with np.load(out) as arrays:
        assert arrays["result.large"].shape == (50, 50)


def test_bytes_are_shown_by_their_number_and_written_as_they_are(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    done = orchestrator("call", f"{model}:Model.picture", "--out", str(out))
    assert (json.loads(done.stdout), out.read_bytes()) == ({"bytes": 400_000}, b"\x89PNG" * 100_000)
    assert f"400000 bytes in {out}\n" in done.stderr
    assert "--out FILE" in orchestrator("call", f"{model}:Model.picture").stderr


def test_bytes_beside_others_are_arrays_of_bytes(model: Path, tmp_path: Path) -> None:
    done = orchestrator("-q", "call", f"{model}:Model.both", "--out", str(tmp_path / "out"))
    assert json.loads(done.stdout) == {"data": {"bytes": 3}, "list": [[0, 1]]}
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["result.data"].tobytes() == b"abc"
        assert arrays["result.list.0"].tolist() == [0, 1]


def test_what_has_no_array_and_no_bytes_leaves_no_empty_file(model: Path, tmp_path: Path) -> None:
    done = orchestrator("-q", "call", f"{model}:double", "2", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout, list(tmp_path.glob("out*"))) == (0, "4\n", [])
    assert "was not written" in done.stderr


def test_a_picture_is_an_array_and_a_dtype_without_numpy_its_bits() -> None:
    pixels = np.zeros(2000, np.uint8)

    class Picture:
        __array_interface__ = pixels.__array_interface__

    found: dict[str, object] = {}
    shown = _presentable([Picture(), RawTensor("bfloat16", np.ones(2, np.uint16))], found, "result")
    assert shown == [{"dtype": "uint8", "shape": [2000]}, {"dtype": "bfloat16", "shape": [2]}]
    assert {key: str(value.dtype) for key, value in found.items()} == {  # type: ignore[attr-defined]
        "result.0": "uint8", "result.1.bfloat16": "uint16",
    }  # fmt: skip


def test_lines_of_a_file_are_spread_over_replicas(model: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("a\nlonger\nmid\n")
    spread = ("--replicas", "2", "--map", str(lines), "chunk_size=1")
    done = orchestrator("-q", "call", f"{model}:Model.each", *spread, "mark=?")
    assert done.stdout.splitlines() == ['"a?"', '"longer?"', '"mid?"'], done.stderr
    lines.write_text("good\nbad\n")
    done = orchestrator("-q", "call", f"{model}:Model.each", *spread)
    assert done.returncode == 1
    assert "a bad word (items 1, of 2, counted from 0)" in done.stderr


SELF_TESTED = """
class Mine:
    def __init__(self, checkpoint=None, *, placement): ...

    @staticmethod
    def self_test():
        return {"ok": OK, "max_abs": 0.5, "tolerance": 0.1}
"""


@pytest.mark.parametrize(("ok", "code", "shown"), [("True", 0, "yes"), ("False", 1, "NO")])
def test_provisioning_runs_the_self_test_on_request(tmp_path: Path, ok: str, code: int, shown: str) -> None:
    (tmp_path / "envs" / "mine").mkdir(parents=True)
    declared = '[project]\nname = "mine"\nrequires-python = ">=3.9"\ndependencies = ["numpy==2.2.6"]\n'
    worker = '[tool.orchestrator]\nworker = "mine.py:Mine"\n'
    (tmp_path / "envs" / "mine" / "pyproject.toml").write_text(declared + worker)
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "mine.py").write_text(SELF_TESTED.replace("OK", ok))
    done = orchestrator("env", "ensure", "mine", "--check", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].split()[:2] == ["mine", shown]


def test_streams_print_as_they_come(model: Path) -> None:
    streamed = ("-q", "call", f"{model}:Model.count", "to=4", "--stream")
    assert orchestrator(*streamed).stdout == "0123\n"
    assert orchestrator(*streamed, "--json").stdout.split() == ['"0"', '"1"', '"2"', '"3"']


SERVED = f"served-{os.getpid()}"  # `ps` shows what others run too


@pytest.fixture
def served(model: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, f"{model}:Model", SERVED],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "ORCHESTRATOR_STOP_GRACE": "0.5"},  # the call that runs goes on for ever
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def listed() -> list[dict[str, object]]:
    told = json.loads(orchestrator("ps", "--json").stdout)
    return [d for coordinator in told for d in coordinator["deployments"] if d["name"] == SERVED]


def test_ps_logs_and_stop_reach_another_process(served: subprocess.Popen[str]) -> None:
    until(lambda: [d["replicas"][0]["in_flight"] for d in listed()] == [1])  # type: ignore[index]
    assert SERVED in orchestrator("ps").stdout
    assert "loaded with 2" in orchestrator("logs", SERVED).stdout
    wrong = orchestrator("stop", "serve")
    assert wrong.returncode == 2
    assert "no running model is named 'serve'" in wrong.stderr
    assert orchestrator("stop", SERVED).returncode == 0
    assert served.stdout is not None
    assert served.stdout.readline().strip() in ("WorkerDied", "WorkerError")
    assert listed() == []


def test_what_a_killed_process_published_is_not_shown(served: subprocess.Popen[str]) -> None:
    until(listed)
    os.killpg(served.pid, signal.SIGKILL)
    served.wait()
    assert listed() == []


def test_ctrl_c_ends_a_call_with_130_and_leaves_no_worker(model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "call", f"{model}:Model.sleep"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    pid = 0
    for line in process.stderr:
        if "ready, pid" in line:
            pid = int(line.rsplit(" ", 1)[1])
        if line.startswith("load") and "loaded in" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert not Path(f"/proc/{pid}").exists()
