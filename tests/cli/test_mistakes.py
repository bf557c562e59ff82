"""What somebody at a shell can get wrong, and what is wrong around the command line: told in words, with an exit code."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import MODEL, orchestrator, shell

from orchestrator.cli.main import _failure, cli
from orchestrator.errors import ConfigError


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


def test_a_list_that_is_no_json_is_text_and_that_is_told(model: Path) -> None:
    done = orchestrator("call", f"{model}:Model.scale", "x=[1")
    assert (done.returncode, done.stdout) == (0, "[1[1\n")
    assert "'x=[1' is taken as text, for it is no JSON: Expecting ',' delimiter" in done.stderr


@pytest.mark.parametrize("command", [["call", "python", "m"], ["checkpoint", "fetch", "pypi:x"]])
def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, command: list[str]) -> None:
    home = tmp_path / "file"
    home.write_text("")
    done = orchestrator(*command, "--home", str(home))
    assert done.returncode == 3, done.stderr
    assert f"the store {home} cannot be written" in done.stderr
    assert "ORCHESTRATOR_HOME" in done.stderr


def test_budgets_of_a_call_are_read_as_those_of_place(model: Path) -> None:
    call = ("call", f"{model}:Model.scale", "x=2")
    assert orchestrator(*call, "--max-memory", "cpu=8GiB").returncode == 0
    wrong = orchestrator(*call, "--max-memory", "much")
    assert (wrong.returncode, "'much' is no budget" in wrong.stderr) == (2, True)
    unknown = orchestrator(*call, "--max-memory", "cpu=8GiB,77=1GiB")
    assert (unknown.returncode, "'77' names no device" in unknown.stderr) == (2, True)


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
