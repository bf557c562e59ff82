"""The commands call, ps, logs and stop as a user types them, in processes of their own."""

from __future__ import annotations

import contextlib
import errno
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
from click.testing import CliRunner
from conditions import until

from orchestrator.cli.call import _presentable
from orchestrator.cli.main import _failure, cli
from orchestrator.errors import ConfigError
from orchestrator.worker.values import RawTensor

MODEL = """
# /// script
# dependencies = ["numpy==2.2.6"]
# ///
import sys, time
import numpy as np


class Model:
    def __init__(self, factor=2):
        self.factor = factor
        print("loaded with", factor)

    def scale(self, x):
        return self.factor * x

    def length(self, data):
        return len(data)

    def picture(self):
        return b"\\x89PNG" * 100_000

    def both(self):
        return {"data": b"abc", "list": [np.arange(2)]}

    def grid(self, n):
        return {"small": np.arange(3), "large": np.zeros((n, n), np.float32)}

    def each(self, words, mark="!"):
        if "bad" in words:
            raise ValueError("a bad word")
        return [word + mark for word in words]

    def nothing_finite(self):
        return {"value": float("nan"), "list": [1.5, float("inf")], "array": np.array([np.nan, 2.0])}

    def count(self, to):
        for n in range(to):
            yield str(n)

    def fail(self):
        raise ValueError("told so")

    def sleep(self):
        time.sleep(600)


def double(x):
    return 2 * x
"""
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


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path


def orchestrator(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
    )


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


def test_a_list_that_is_no_json_is_text_and_that_is_told(model: Path) -> None:
    done = orchestrator("call", f"{model}:Model.scale", "x=[1")
    assert (done.returncode, done.stdout) == (0, "[1[1\n")
    assert "'x=[1' is taken as text, for it is no JSON: Expecting ',' delimiter" in done.stderr


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


@pytest.mark.parametrize("command", [["call", "python", "m"], ["checkpoint", "fetch", "pypi:x"]])
def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, command: list[str]) -> None:
    home = tmp_path / "file"
    home.write_text("")
    done = orchestrator(*command, "--home", str(home))
    assert done.returncode == 3, done.stderr
    assert f"the store {home} cannot be written" in done.stderr
    assert "ORCHESTRATOR_HOME" in done.stderr


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


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nofamily", "m"], 2, "no family"),
        (["sentence-embedding"], 2, "METHOD is missing"),
        (["auto", "m"], 2, "--checkpoint"),
        (["MODEL:Model.ecko"], 2, "no method 'ecko'"),
        (["MODEL:Model.fail"], 1, "told so"),
        (["MODEL:Model.scale", "x=1", "2"], 2, "after KEY=VALUE"),
        (["MODEL:Model.length", "data=@/no/such/file"], 2, "/no/such/file"),
        (["MODEL:Model.each", "--map", sys.executable], 2, "is not UTF-8 text"),
        (["MODEL:Nothing.scale", "x=1"], 2, "no class and no function 'Nothing'"),
        (["MODEL:Modle.scale", "x=1"], 2, "MODEL:Model?"),
        (["MODEL", "scale", "x=1"], 2, "it has: MODEL:Model, MODEL:double"),
        (["MODEL:Model.scale", "y=1"], 1, "it is declared as scale(x)"),
        (["MODEL:Model.scale", "x=1", "-o", "colour=red"], 1, "colour"),
        (["/no/such.py:Model.m"], 2, "cannot read"),
        (["MODEL:Model"], 2, "METHOD is missing"),
        (["MODEL:Model.scale", "x=1", "-o", "factor"], 2, "write KEY=VALUE"),
        (["MODEL:Model.scale", "x=1", "-o", "replicas=2"], 2, "write --replicas"),
        (["MODEL:Model.scale", "x=1", "--timeout", "0"], 2, "--timeout"),
        (["MODEL:Model.sleep", "--timeout", "0.2"], 1, "hint: raise --timeout"),
        (["MODEL:Model.scale", "x=1", "--python", "newest"], 2, "no version of Python"),
        (["MODEL:Model.count", "to=1", "--stream", "--out", "x.npz"], 2, "leave out --map and --out"),
        (["MODEL:Model.grid", "n=1", "--out", "/no/such/x.npz"], 2, "there is no folder /no/such"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(
    model: Path, arguments: list[str], code: int, words: str
) -> None:
    done = orchestrator("call", *[argument.replace("MODEL", str(model)) for argument in arguments])
    assert done.returncode == code
    assert words.replace("MODEL", str(model)) in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr
    assert done.stdout == ""


SERVED = f"served-{os.getpid()}"  # `ps` shows what others run too


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["matrix", "examples/ci_matrix.yaml", "--html", "/no/such/x.html"], "no folder /no/such"),
        (["place", "--shape", "llama-7b", "--devices", "80GiB", "--svg", "/no/such/x.svg"], "no folder /no/such"),
        (["graph", "examples/photo_story.yaml", "--out", "x.png"], "ends in .svg or .mmd or .md"),
        (["place", "--shape", "llama-7b", "--devices", "2x16"], "write 16GiB"),
        (["matrix", "examples/photo_story.yaml"], "orchestrator run FILE"),
        (["bisect", "examples/ci_matrix.yaml", "--good", "4.36.2", "--bad", "newest"], "'newest' is no version"),
        (["env", "lock", "./mine.py:Model"], "is a file, not a family"),
        (["env", "show", "0123abcd"], "no environment's id begins with '0123abcd'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_the_work(arguments: list[str], words: str) -> None:
    done = orchestrator(*arguments, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_place_is_told_of_what_no_weights_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[]")
    for option, name, words in (
        ("-c", "empty", "holds no weights"),
        ("--config", "list.json", "no mapping of"),
    ):
        done = orchestrator("place", option, str(tmp_path / name), "--devices", "8GiB")
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr


def test_the_worker_s_own_traceback_is_shown_on_request(model: Path) -> None:
    done = orchestrator("call", f"{model}:Model.fail")
    assert "-vv" in done.stderr
    assert "in fail" not in done.stderr
    place = f'File "{model}", line {MODEL[: MODEL.index("raise ValueError(" + chr(34) + "told so")].count(chr(10)) + 1}'
    assert f"{place}, in fail" in orchestrator("call", "-vv", f"{model}:Model.fail").stderr


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    line = line.replace("orchestrator", f"'{sys.executable}' -m orchestrator")
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, check=False, timeout=120, env={**os.environ, **environment}
    )


def test_characters_that_the_encoding_has_not_are_escaped(model: Path) -> None:
    done = shell(f"orchestrator -q call {model}:double '\u2713'", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout) == (0, b"\\u2713\\u2713\n"), done.stderr


def test_closed_standard_streams_do_no_harm(model: Path) -> None:
    done = shell(f"orchestrator call {model}:double 21 2>&- <&-")
    assert (done.returncode, done.stdout) == (0, b"42\n")
    assert shell("orchestrator family list >&-").returncode == 0


def test_a_full_disk_is_told_with_a_remedy() -> None:
    done = shell("orchestrator -q family list > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: No space left on device\nhint: make room there")


def test_what_the_system_refuses_is_named_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert _failure(PermissionError(errno.EACCES, "Permission denied", "/some/file")) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: Permission denied: /some/file\nhint: ")
    assert "ORCHESTRATOR_HOME" in told


def test_a_lock_that_cannot_be_written_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.env_make.os.access", lambda *_: False)
    monkeypatch.setattr("orchestrator.cli.env_make._lock", pytest.fail)
    result = CliRunner().invoke(cli, ["env", "lock", "python"])
    assert isinstance(result.exception, ConfigError)
    assert "requirements.lock cannot be written" in str(result.exception)


def test_a_current_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path}/gone && rmdir ../gone && orchestrator ps")
    assert (done.returncode, done.stderr.decode()) == (
        2, "error: the current folder has been removed; change to one that exists\n"
    )  # fmt: skip


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


def test_budgets_of_a_call_are_read_as_those_of_place(model: Path) -> None:
    call = ("call", f"{model}:Model.scale", "x=2")
    assert orchestrator(*call, "--max-memory", "cpu=8GiB").returncode == 0
    wrong = orchestrator(*call, "--max-memory", "much")
    assert (wrong.returncode, "'much' is no budget" in wrong.stderr) == (2, True)
    unknown = orchestrator(*call, "--max-memory", "cpu=8GiB,77=1GiB")
    assert (unknown.returncode, "'77' names no device" in unknown.stderr) == (2, True)


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
