"""What a worker inherits, where its socket lies, and what becomes of its logs. No process is started here."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conditions import LONG, until

from orchestrator.errors import WorkerStartError
from orchestrator.links import WorkerLink
from orchestrator.logs import KEEP, last_lines, new_log
from orchestrator.processes import WorkerProcess
from orchestrator.processes import folder as folders
from orchestrator.processes.deaths import oom_kills
from orchestrator.processes.variables import worker_variables
from orchestrator.processes.watch import watch

HOST = {
    "PATH": "/bin", "HOME": "/home/x", "LANG": "C.UTF-8", "LC_ALL": "C", "HF_HOME": "/hf", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "t",
    "HUGGING_FACE_HUB_TOKEN": "t", "MODELSCOPE_API_TOKEN": "t", "MODELSCOPE_CACHE": "/ms", "TOKENIZERS_PARALLELISM": "0",
    "PYTHONPATH": "/x", "PYTHONDONTWRITEBYTECODE": "1", "VIRTUAL_ENV": "/v", "CONDA_PREFIX": "/c", "UV_INDEX": "u", "PIP_INDEX_URL": "p",
    "AWS_SECRET_ACCESS_KEY": "t", "AWS_PROFILE": "x", "OPENAI_API_KEY": "t", "https_proxy": "http://p", "NO_PROXY": "x",
    "SSL_CERT_FILE": "/ca", "OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "3", "CUDA_HOME": "/cuda", "WANDB_API_KEY": "t",
    "__PYVENV_LAUNCHER__": "x", "LD_LIBRARY_PATH": "/lib", "TMPDIR": "/tmp", "SOMETHING": "else", "HF_TOKEN_PATH": "/t",
}  # fmt: skip


def test_an_allow_list_and_no_tokens():
    got = worker_variables(HOST, {}, modules_cache=Path("/modules"))
    assert set(got) == {
        "PATH", "HOME", "LANG", "LC_ALL", "HF_HOME", "HF_HUB_OFFLINE", "MODELSCOPE_CACHE", "TOKENIZERS_PARALLELISM", "https_proxy",
        "NO_PROXY", "SSL_CERT_FILE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "LD_LIBRARY_PATH", "TMPDIR",
        "CUDA_DEVICE_ORDER", "HF_MODULES_CACHE", "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
    }  # fmt: skip
    assert got["HF_MODULES_CACHE"] == "/modules"


def test_what_is_given_wins_and_may_hold_a_token():
    placement = SimpleNamespace(devices=("GPU-a", "GPU-b"), threads=2)
    got = worker_variables(
        HOST, {"HF_TOKEN": "mine", "HF_HOME": "/other"}, modules_cache=Path("/m"), placement=placement
    )
    assert got["HF_TOKEN"] == "mine"
    assert got["HF_HOME"] == "/other"
    assert got["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert got["OMP_NUM_THREADS"] == "7"  # the user's own word
    assert got["MKL_NUM_THREADS"] == "2"


def test_a_family_asks_for_a_token_by_its_name_and_gets_no_other():
    got = worker_variables(
        HOST, {"HF_TOKEN": "${HF_TOKEN}", "MINE": "${AWS_SECRET_ACCESS_KEY}", "NONE": "${ABSENT}", "TEXT": "a ${HF_TOKEN}"},
        modules_cache=Path("/m"),
    )  # fmt: skip
    assert (got["HF_TOKEN"], got["MINE"], got["TEXT"]) == ("t", "t", "a ${HF_TOKEN}")
    assert "NONE" not in got
    assert "OPENAI_API_KEY" not in got


def test_torch_reads_weights_only_unless_the_family_says_otherwise():
    force, allow = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    got = worker_variables({**HOST, allow: "1", force: "0"}, {}, modules_cache=Path("/m"))
    assert got[force] == "1"
    assert allow not in got
    assert worker_variables(HOST, {force: "0"}, modules_cache=Path("/m"))[force] == "0"
    assert force not in worker_variables(HOST, {allow: "1"}, modules_cache=Path("/m"))


def test_a_worker_on_the_cpu_sees_no_gpu():
    placement = SimpleNamespace(devices=("cpu",), threads=4)
    assert (
        worker_variables(HOST, {}, modules_cache=Path("/m"), placement=placement)["CUDA_VISIBLE_DEVICES"]
        == ""
    )


def test_the_folder_is_private_short_and_new(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "x" * 100)
    made = folders.make_folder()
    assert made.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(made / "s")) < 107
    other = folders.make_folder()
    assert made != other
    folders.remove_folder(other)
    (made / "s").touch()
    folders.remove_folder(made)
    folders.remove_folder(made)
    assert not made.exists()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folders.remove_folder(inner := folders.make_folder())
    assert inner.parent == tmp_path or len(str(tmp_path)) > 74


def test_folders_of_processes_that_are_gone_are_swept_away(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    space = folders._namespace()
    gone = subprocess.Popen(["true"])
    gone.wait()
    stay = [f"orc-{os.getpid():x}-{space:x}-a", f"orc-{gone.pid:x}-{space + 1:x}-b", "orc-else", "other"]
    for name in (*stay, f"orc-{gone.pid:x}-{space:x}-c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "s").touch()
    (tmp_path / f"orc-{gone.pid:x}-{space:x}-link").symlink_to(tmp_path / "other")
    folders._swept.clear()
    folders._sweep(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*stay, f"orc-{gone.pid:x}-{space:x}-link"]
    )
    assert (tmp_path / "other" / "s").exists()


def test_nowhere_to_put_a_socket(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.tempfile, "mkdtemp", refuse)
    with pytest.raises(WorkerStartError, match="Permission denied"):
        folders.make_folder()


def test_logs_are_named_private_and_pruned(tmp_path):
    logs = [new_log(tmp_path / "logs", "a model/with: odd name") for _ in range(KEEP + 3)]
    left = sorted((tmp_path / "logs").iterdir())
    assert len(left) == KEEP
    assert logs[-1] in left
    assert left[0].name.startswith("a_model_with_odd_name-")
    assert left[0].stat().st_mode & 0o777 == 0o600
    new_log(tmp_path / "logs", "another")
    assert len(list((tmp_path / "logs").iterdir())) == KEEP + 1


def test_a_place_for_logs_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(WorkerStartError, match="cannot be made"):
        new_log(tmp_path / "logs", "x")


def test_last_lines(tmp_path):
    log = tmp_path / "x.log"
    assert last_lines(log, 5) == []
    log.write_bytes(b"one\ntwo\n\xff\xfe three\nfour without an end")
    assert last_lines(log, 2) == ["\ufffd\ufffd three", "four without an end"]
    assert last_lines(log, 0) == []
    (tmp_path / "x.log.1").write_bytes(b"minus one\nzero\n")
    assert last_lines(log, 6) == [
        "minus one",
        "zero",
        "one",
        "two",
        "\ufffd\ufffd three",
        "four without an end",
    ]
    log.write_bytes(b"x" * (1 << 20) + b" end\n")
    line = last_lines(log, 3)[-1]
    assert len(line) < 2100
    assert line.endswith(" end")


def test_oom_kills_are_counted_somewhere():
    assert oom_kills() >= 0


@pytest.mark.parametrize("nth", [1, 2])
def test_a_worker_for_which_there_are_no_descriptors_leaves_nothing(tmp_path, monkeypatch, nth):
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    pair, numbers = socket.socketpair, itertools.count(1)

    def refuse(*arguments):
        if next(numbers) == nth:
            raise OSError(errno.EMFILE, "Too many open files")
        return pair(*arguments)

    monkeypatch.setattr("socket.socketpair", refuse)
    with pytest.raises(WorkerStartError, match="Too many open files"):
        WorkerProcess(SimpleNamespace(), "toy", tmp_path / "log")
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("nth", [1, 2])
def test_a_link_for_which_there_are_no_descriptors_says_so(tmp_path, monkeypatch, nth):
    process = WorkerProcess(SimpleNamespace(), "toy", tmp_path / "log")
    make, numbers = os.eventfd, itertools.count(1)

    def refuse(*arguments):
        if next(numbers) == nth:
            raise OSError(errno.EMFILE, "Too many open files")
        return make(*arguments)

    monkeypatch.setattr("os.eventfd", refuse)
    process.wait = lambda _: None  # it has no end to wait for
    with pytest.raises(WorkerStartError, match=r"toy cannot be reached: .*Too many open files"):
        WorkerLink(process)
    process._discard()


def test_a_fault_at_the_end_of_one_worker_does_not_hide_the_ends_of_others(caplog):
    def fault():
        raise KeyError("a fault of ours")

    seen = threading.Event()
    for ended in (fault, seen.set):
        ours, theirs = socket.socketpair()
        with ours:
            watch(ours.fileno(), ended)
            theirs.close()
            until(lambda: seen.is_set() or "could not be dealt with" in caplog.text)
    assert seen.wait(LONG)
