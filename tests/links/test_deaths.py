"""How workers end, and what those who still wanted something are told."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import psutil
import pytest
from conditions import gone, until

from orchestrator.environments import Environment
from orchestrator.errors import LoadError, WorkerDied, WorkerStartError
from orchestrator.links import WorkerLink, background
from orchestrator.processes import worker_process
from orchestrator.processes.deaths import describe


@pytest.mark.parametrize(
    ("method", "argument", "code", "words"),
    [
        ("exit", 0, 0, "ended with exit code 0"),
        ("exit", 3, 3, "ended with exit code 3"),
        ("crash", signal.SIGSEGV, -11, "was killed by SIGSEGV"),
        ("crash", signal.SIGABRT, -6, "was killed by SIGABRT"),
        ("crash", signal.SIGKILL, -9, "was killed by SIGKILL"),
    ],
)
def test_each_end_has_its_words(toy, method, argument, code, words):
    deaths: list[WorkerDied] = []
    toy.link.on_death(deaths.append)
    toy.link.call("say", ["last words"])
    with pytest.raises(WorkerDied) as caught:
        toy.link.call(method, [int(argument)], timeout=60)
    assert caught.value.returncode == code
    assert words in caught.value.message
    assert "1 calls in flight" in caught.value.message
    assert caught.value.environment_id == toy.process.environment.id
    assert "last words" in caught.value.last_lines
    assert toy.process.describe_exit() == words
    until(lambda: deaths)
    assert len(deaths) == 1
    with pytest.raises(WorkerDied):
        toy.link.call("echo")
    late: list[WorkerDied] = []
    toy.link.on_death(late.append)  # who asks afterwards is told too


def test_the_traceback_of_a_segfault_is_in_the_last_lines(toy):
    with pytest.raises(WorkerDied) as caught:
        toy.link.call("crash", [11], timeout=60)
    assert any("Segmentation fault" in line for line in caught.value.last_lines + toy.process.tail(60))


def test_calls_futures_and_streams_fail_at_once_when_it_is_killed(toy):
    stream = toy.link.stream("count", [10_000, 0.01])
    next(stream)
    futures = [toy.link.submit("nap", [600]) for _ in range(3)]
    failed: list[WorkerDied] = []

    def wait() -> None:
        with pytest.raises(WorkerDied) as caught:
            toy.link.call("nap", [600])
        failed.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: toy.link.in_flight == 5)
    os.kill(toy.process.pid, signal.SIGKILL)
    thread.join(60)
    assert failed
    for future in futures:
        with pytest.raises(WorkerDied):
            future.result(60)
    with pytest.raises(WorkerDied):
        list(stream)
    assert toy.link.in_flight == 0


def test_an_idle_worker_that_is_killed_is_noticed(toy):
    deaths: list[WorkerDied] = []
    told = threading.Event()
    toy.link.on_death(lambda death: (deaths.append(death), told.set()))
    os.kill(toy.process.pid, signal.SIGKILL)
    assert told.wait(60)
    assert deaths[0].returncode == -9
    assert not toy.link.alive


def test_a_killed_keeper_takes_the_worker_along(toy):
    keeper = psutil.Process(toy.process.pid).ppid()
    os.kill(keeper, signal.SIGKILL)
    until(lambda: gone(toy.process.pid))
    with pytest.raises(WorkerDied):
        toy.link.call("echo", timeout=60)


@pytest.mark.parametrize("own_session", [False, True])
def test_grandchildren_go_with_their_worker(toy, own_session):
    pids = [toy.link.call("grandchild", [600, own_session]), toy.link.call("double_fork")]
    assert not any(map(gone, pids))
    os.kill(toy.process.pid, signal.SIGKILL)
    until(lambda: all(map(gone, pids)))
    assert toy.process.wait(60) == -9


def test_a_worker_that_ignores_sigterm_is_killed_in_time(toy):
    toy.link.call("ignore_sigterm")
    child = toy.link.call("grandchild")
    began = time.monotonic()
    assert toy.process.stop(0.3) == -9
    assert time.monotonic() - began > 0.25
    assert toy.process.describe_exit() == "was ended by us with SIGKILL"
    until(lambda: gone(child))


def test_stop_asks_first(toy):
    assert toy.process.stop(60) == -15
    assert toy.process.describe_exit() == "was ended by us with SIGTERM"


def test_a_worker_that_holds_the_interpreters_lock_is_killed_in_time(toy):
    future = toy.link.submit("hold_the_lock", [600])
    time.sleep(0.2)  # more often than not it holds it by then
    assert toy.process.stop(0.3) in (-15, -9)
    with pytest.raises(WorkerDied):
        future.result(60)


def test_a_stopped_worker_is_silent_and_comes_back(toy):
    link = toy.link
    os.kill(toy.process.pid, signal.SIGSTOP)
    until(lambda: toy.process.stopped)
    try:
        link.silence()
        time.sleep(0.3)
        assert link.silence() >= 0.25
    finally:
        os.kill(toy.process.pid, signal.SIGCONT)
    assert link.call("echo", [1], timeout=60) == 1
    assert link.silence() == 0.0


def test_a_thread_that_a_model_left_does_not_keep_the_worker(toy):
    assert toy.link.call("start_thread") >= 2
    toy.link.close(60)
    assert toy.process.returncode == 0  # by itself


def test_a_method_that_forks_and_returns_twice_answers_once(toy):
    for _ in range(5):
        assert toy.link.call("fork", timeout=60) == "parent"
    assert toy.link.call("echo", [1]) == 1


def test_a_flood_of_output_hurts_nobody(toy):
    toy.link.call("flood", [100], timeout=120)
    assert toy.link.call("echo", [1], timeout=60) == 1
    folder = toy.process.log_path.parent
    until(lambda: toy.process.tail(1)[0].endswith("the end of the flood"))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20 << 20


def test_closed_outputs_hurt_nobody(toy):
    toy.link.call("close_outputs")
    assert toy.link.call("echo", [1], timeout=60) == 1
    toy.link.close(60)
    assert toy.process.returncode == 0


def test_the_log_is_private(toy):
    assert toy.process.log_path.stat().st_mode & 0o777 == 0o600


# -- before it is ready --------------------------------------------------------------------------------------------------


def test_a_family_whose_import_prints_garbage_loads(start):
    assert start("noisy.py", "Family").link.call("ok") is True


@pytest.mark.parametrize(
    ("file", "name", "remote"),
    [
        ("unimportable.py", "X", "ModuleNotFoundError"),
        ("exiting.py", "X", "SystemExit"),
        ("toy.py", "Absent", "AttributeError"),
        ("toy.py", "Broken", "OSError"),
        ("missing.py", "X", "FileNotFoundError"),
    ],
)
def test_a_family_that_cannot_load_says_why(spawn, file, name, remote):
    link = WorkerLink(spawn(file, name))
    link.hello(60)
    with pytest.raises(LoadError) as caught:
        link.load(None, {}, {}, timeout=60)
    assert caught.value.remote_type == remote
    assert caught.value.remote_traceback
    link.close(1)


def test_an_import_that_hangs_ends_with_the_deadline_and_the_worker_can_be_stopped(spawn):
    from orchestrator.errors import DeadlineExceeded

    process = spawn("hanging.py", "X")
    link = WorkerLink(process)
    link.hello(60)
    with pytest.raises(DeadlineExceeded):
        link.load(None, {}, {}, timeout=0.5)
    link.close(0)
    assert not process.alive


def test_one_that_dies_before_hello_is_a_start_error(spawn):
    process = spawn()
    link = WorkerLink(process)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerStartError, match="was killed by SIGKILL before it was ready"):
        link.hello(60)


def test_one_that_is_gone_before_there_is_a_link_is_a_start_error(spawn):
    process = spawn()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert gone(process.pid)
    with pytest.raises(WorkerStartError, match="was killed by SIGKILL"):
        WorkerLink(process).hello(60)


@pytest.mark.parametrize("lost", ["the folder", "the address", "threads"])
def test_a_link_that_cannot_be_made_leaves_no_socket_open(spawn, monkeypatch, lost):
    process = spawn()
    if lost == "the folder":
        process.meeting.folder.rename(process.meeting.folder.with_name(process.meeting.folder.name + "-away"))
    elif lost == "the address":
        (process.meeting.folder / "s").mkdir()
    else:

        def refuse(self):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(background.threading.Thread, "start", refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(WorkerStartError, match="cannot be reached"):
            WorkerLink(process)
        gc.collect()
    assert not caught, [str(warning.message) for warning in caught]
    monkeypatch.undo()
    if lost == "the folder":
        process.meeting.folder.with_name(process.meeting.folder.name + "-away").rename(process.meeting.folder)
    elif lost == "the address":
        (process.meeting.folder / "s").rmdir()


def test_one_that_says_nothing_is_a_start_error_and_its_link_is_closed(spawn):
    process = spawn()
    os.kill(process.pid, signal.SIGSTOP)
    link = WorkerLink(process)
    with pytest.raises(WorkerStartError, match="said nothing"):
        link.hello(0.3)
    assert link.channel.closed
    assert not process.alive


def environment_with(python: Path) -> Environment:
    return Environment(
        id="broken", family="toy", path=python.parent, python=python, python_version="3.11", versions={},
        modules_cache=python.parent,
    )  # fmt: skip


def test_an_interpreter_that_is_not_there(spawn, tmp_path):
    with pytest.raises(WorkerStartError, match="cannot be started"):
        spawn(environment=environment_with(tmp_path / "python"))


def test_an_interpreter_that_ends_at_once_is_quoted(spawn, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho broken beyond repair\nexit 7\n")
    python.chmod(0o755)
    with pytest.raises(WorkerStartError, match="ended with exit code 7") as caught:
        spawn(environment=environment_with(python))
    assert caught.value.last_lines == ["broken beyond repair"]


def test_an_environment_without_the_wires_needs_is_a_start_error(spawn, tmp_path):
    import sys

    process = spawn(environment=environment_with(Path(sys.base_prefix) / "bin" / "python3"))
    link = WorkerLink(process)
    with pytest.raises(WorkerStartError) as caught:
        link.hello(60)
    assert any("ModuleNotFoundError" in line for line in caught.value.last_lines)


# -- words ---------------------------------------------------------------------------------------------------------------


def test_the_oom_killer_is_told_apart(spawn, monkeypatch):
    kills = iter([5, 6])
    monkeypatch.setattr(worker_process, "oom_kills", lambda: next(kills))
    process = spawn()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert "OOM killer" in process.describe_exit()
    assert "smaller batch" in (process.death().hint or "")


def test_words_for_signals_without_a_name():
    assert describe(-60) == "was killed by signal 60"
    assert describe(None) == "is still running"
