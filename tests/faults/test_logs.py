"""What is written about workers and builds: labelled, private, rotated, secrets crossed out; read by people and by programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conditions import LONG, until
from house import FAULTY, House

from orchestrator.logs import LogLine, last_lines, logs_of, new_log, note, parse, read_lines
from orchestrator.worker import logfile
from orchestrator.worker.logfile import LogFile
from orchestrator.worker.masking import Mask

# -- without a process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pump(tmp_path: Path):
    """Writes bytes through a keeper's log, in the pieces given; standard output stays ours."""
    saved = os.dup(1), os.dup(2)
    opened: list[int] = []

    def run(pieces: list[bytes], environ: dict[str, str] | None = None, *, name: str = "x.log") -> Path:
        log = LogFile(str(tmp_path / name), environ or {})
        reader, writer = os.pipe()
        for piece in pieces:
            os.write(writer, piece)
            assert log.pump(reader)
        os.close(writer)
        assert not log.pump(reader)
        os.close(reader)
        log.close()
        opened.append(log.fd)
        return tmp_path / name

    yield run
    for target, fd in zip((1, 2), saved, strict=True):
        os.dup2(fd, target)
        os.close(fd)
    for fd in opened:
        os.close(fd)


def test_logs_are_listed_in_the_order_of_their_making(tmp_path: Path) -> None:
    made = [new_log(tmp_path, "a b/c") for _ in range(8)]
    new_log(tmp_path, "a b")
    assert logs_of(tmp_path, "a b/c") == made


def test_each_line_has_its_time_and_source(pump) -> None:
    path = pump([b"one\ntw", b"o\n\n\xff\xfe binary\nno end"])
    lines = [parse(line) for line in read_lines(path)]
    assert [line.text for line in lines] == ["one", "two", "", "\ufffd\ufffd binary", "no end"]
    assert {line.source for line in lines} == {"model"}
    assert all(line.time and line.time.endswith("Z") and len(line.time) == 24 for line in lines)
    note(path, "runtime", "first\nsecond")
    assert [parse(line) for line in read_lines(path)][5:] == [
        LogLine(lines[0].time and parse(list(read_lines(path))[5]).time, "runtime", "first"),
        LogLine(parse(list(read_lines(path))[6]).time, "runtime", "second"),
    ]
    assert last_lines(path, 2) == ["\ufffd\ufffd binary", "no end"]  # what the model said, without labels


def test_long_lines_are_not_held_back_and_stay_one_line(pump) -> None:
    path = pump([b"x" * 30_000, b"y" * 30_000, b" end\nnext\n"])
    assert [len(parse(line).text) for line in read_lines(path)] == [60_004, 4]


def test_logs_rotate_and_lose_nothing_of_the_last_part(pump, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "LOG_BYTES", 2000)
    path = pump([b"line %d\n" % number for number in range(200)])
    assert path.stat().st_size < 2200
    assert path.with_name("x.log.1").stat().st_size < 2200
    numbers = [int(parse(line).text.split()[1]) for line in read_lines(path)]
    assert numbers == list(range(numbers[0], 200))
    assert path.stat().st_mode & 0o777 == 0o600


SECRETS = {
    "HF_TOKEN": "hf_abcdefgh", "AWS_SECRET_ACCESS_KEY": "aws-secret-1", "MY_PASSWORD": "pass!word", "KEYBOARD": "qwertyuiop",
    "SHORT_KEY": "abc", "LONGER_TOKEN": "hf_abcdefgh-and-more", "HOME": "/home/someone",
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("token hf_abcdefgh!", "token <HF_TOKEN>!"),
        ("hf_abcdefgh-and-more", "<LONGER_TOKEN>"),
        ("pass!word aws-secret-1", "<MY_PASSWORD> <AWS_SECRET_ACCESS_KEY>"),
        ("qwertyuiop abc /home/someone", "qwertyuiop abc /home/someone"),
        ("https://me:pw@host/simple", "https://****@host/simple"),
        ("https://host/x?a=1&access_token=zzz&b=2", "https://host/x?a=1&access_token=****&b=2"),
        ("https://host/x?token=zzz and more", "https://host/x?token=**** and more"),
        ("https://host/x?X-Amz-Signature=12ab", "https://host/x?X-Amz-Signature=****"),
        ("https://host/x?tokens=5&monkey=6", "https://host/x?tokens=5&monkey=6"),
        ("eos_token=</s> max_new_tokens=512", "eos_token=</s> max_new_tokens=512"),
        ("sha256 0123456789abcdef0123456789abcdef", "sha256 0123456789abcdef0123456789abcdef"),
    ],
)
def test_secrets_are_known_by_their_names(said: str, written: str) -> None:
    assert Mask(SECRETS).text(said) == written


def test_a_secret_in_two_pieces(pump) -> None:
    path = pump([b"the token is hf_abc", b"defgh\n"], SECRETS)
    assert [parse(line).text for line in read_lines(path)] == ["the token is <HF_TOKEN>"]


def test_masking_takes_no_more_than_linear_time() -> None:
    for nasty in ("?a_" * 300_000, "://" + "x" * 900_000, "?" + "a" * 900_000 + "=1"):
        Mask(SECRETS).text("http://" + nasty)


def test_a_full_disk_loses_lines_and_nothing_else(pump, tmp_path: Path) -> None:
    (tmp_path / "full.log").symlink_to("/dev/full")
    pump([b"lost\n"] * 10, name="full.log")
    note(tmp_path / "full.log", "runtime", "lost too")
    note(tmp_path / "none.log", "runtime", "nor is a file made")
    assert not (tmp_path / "none.log").exists()


# -- with workers --------------------------------------------------------------------------------------------------------


def test_a_worker_its_life_and_its_secrets(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orc = house.open()
    model = house.load(orc, name="talker")
    model.say("hello", error="to stderr")
    model.say("https://user:secret@host/simple")
    replica = model._deployment.replicas[0]
    assert replica.process is not None
    path = replica.process.log_path
    model.say("no end", end="")
    until(lambda: replica.process.tail(1) == ["no end"])  # type: ignore[union-attr]
    os.kill(replica.process.pid, signal.SIGKILL)
    until(lambda: replica.restarts == 1 and replica.link)
    assert replica.log not in (None, path)  # each life has its own
    said = [parse(line) for line in read_lines(path)]
    assert [line.text for line in said if line.source == "model"] == [
        "hello", "to stderr", "https://****@host/simple", "no end",
    ]  # fmt: skip
    told = [line.text for line in said if line.source == "runtime"]
    assert told[0].startswith("pid ")
    assert told[1] == "starting -> ready"
    assert any("was killed by SIGKILL" in line for line in told)
    assert any(line.startswith("ready -> backoff: worker talker") for line in told)


def orchestrator(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments], capture_output=True, text=True, check=False,
        timeout=4 * LONG, env={**os.environ, **variables},
    )  # fmt: skip


@pytest.mark.slow
def test_logs_of_the_command_line(tmp_path: Path) -> None:
    home = {"ORCHESTRATOR_HOME": str(tmp_path)}
    log = new_log(tmp_path / "logs", "model")
    for source, text in (("runtime", "starting -> ready"), ("model", "hello"), ("model", "again")):
        note(log, source, text)
    shown = orchestrator("logs", "model", "-n", "2", **home).stdout.splitlines()
    assert [line.split(" | ")[1] for line in shown] == ["hello", "again"]
    told = orchestrator("logs", "model", "--json", "--source", "runtime", **home).stdout
    assert {**json.loads(told), "time": 0} == {
        "time": 0, "worker": "model", "source": "runtime", "line": "starting -> ready",
    }  # fmt: skip
    asked = orchestrator("logs", "model", ORCHESTRATOR_LOG_FORMAT="json", **home).stdout
    assert [json.loads(line)["line"] for line in asked.splitlines()] == [
        "starting -> ready",
        "hello",
        "again",
    ]
    assert json.loads(orchestrator("logs", "--json", **home).stdout) == [
        {"log": str(log), "bytes": log.stat().st_size}
    ]
    assert orchestrator("logs", "nothing", **home).returncode == 2


@pytest.mark.slow
def test_following_goes_on_over_a_rotation_and_into_the_next_life(tmp_path: Path) -> None:
    log = new_log(tmp_path / "logs", "model")
    note(log, "model", "old")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "orchestrator", "logs", "-f", "model"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "ORCHESTRATOR_HOME": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline().endswith("| old\n")
        note(log, "model", "followed")
        assert process.stdout.readline().endswith("| followed\n")
        log.rename(log.with_name(log.name + ".1"))
        log.touch(mode=0o600)
        note(log, "model", "rotated")
        assert process.stdout.readline().endswith("| rotated\n")
        note(new_log(tmp_path / "logs", "model"), "model", "another life")
        assert process.stdout.readline().endswith("| another life\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_the_command_line_with_their_code(tmp_path: Path, number: int, code: int) -> None:
    log = new_log(tmp_path / "logs", "model")
    note(log, "model", "there")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "orchestrator", "logs", "-f", "model"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "ORCHESTRATOR_HOME": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=LONG)
    assert process.returncode == code


@pytest.mark.slow
def test_talk_in_json(tmp_path: Path) -> None:
    done = orchestrator("-v", "call", f"{FAULTY}.die", ORCHESTRATOR_LOG_FORMAT="json")
    assert done.returncode == 1
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {"stage", "subject", "message"} <= set(next(t for t in told if t.get("stage") == "load"))
    records = [t for t in told if t.get("logger") == "orchestrator.replicas"]
    assert any("starting -> ready" in record["message"] for record in records)
    assert all({"time", "level", "message"} <= set(record) for record in records)
