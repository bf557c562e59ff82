"""A client's process that ends, by whatever means, at whatever stage: nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conditions import LONG, gone, until
from house import FAULTY, NUMPY, lines

from orchestrator import Settings

CLIENT = """
import os, sys, threading, time
from pathlib import Path
from orchestrator import Orchestrator
LOG = {log!r}
def load(**options):
    return orc.load({faulty!r}, with_={numpy!r}, **options)
def ready(*pids):
    print(*pids, flush=True)
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program; after the test it is gone, with every process below it and every folder that it made."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    started: list[subprocess.Popen[str]] = []

    def start(body: str) -> subprocess.Popen[str]:
        program = CLIENT.format(log=str(tmp_path / "log"), faulty=FAULTY, numpy=NUMPY) + textwrap.dedent(body)
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    until(lambda: not [p for p in psutil.process_iter(["cmdline"]) if str(runtime) in str(p.info["cmdline"])])
    until(lambda: not list(runtime.iterdir()))


def told(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    return [int(word) for word in line.split()]


STAGES = {
    "idle": "with Orchestrator() as orc:\n m = load(); ready(m.pid(), m.child()); time.sleep(600)",
    "in a call": "with Orchestrator() as orc:\n m = load(); pid = m.pid(); f = m.submit('write_when', LOG, 'x', '/no')\n"
    " while not os.path.exists(LOG): time.sleep(.01)\n ready(pid); f.result()",
    "while a worker loads": "with Orchestrator() as orc:\n threading.Thread(target=load, kwargs=dict(seconds=600, marker=LOG)).start()\n"
    " while not os.path.exists(LOG): time.sleep(.01)\n ready(orc.status().deployments[0].replicas[0].pid); time.sleep(600)",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_of_the_coordinator(client: Callable[..., subprocess.Popen[str]], stage: str) -> None:
    process = client(STAGES[stage])
    pids = told(process)
    process.kill()
    until(lambda: all(map(gone, pids)))


ENDS = {
    "by an exception": ("raise ValueError", 1),
    "by os._exit": ("os._exit(5)", 5),
    "by sys.exit": ("sys.exit(6)", 6),
    "without closing": ("", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_the_client_ends(
    client: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STOP_GRACE", str(LONG))
    words, code = ENDS[end]
    process = client(
        f"orc = Orchestrator()\nm = load(closed={str(tmp_path / 'closed')!r}); f = m.submit('sleep', 600)\n"
        f"ready(m._deployment.replicas[0].process.pid)\nf.cancel()\n{words}"
    )
    pids = told(process)
    assert process.wait(LONG) == code
    until(lambda: all(map(gone, pids)))
    # where Python's own end is reached, the model's is too
    assert lines(tmp_path / "closed") == ([] if end == "by os._exit" else ["closed"])


@pytest.mark.slow
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_ctrl_c(client: Callable[..., subprocess.Popen[str]], twice: bool) -> None:
    """Once: the call ends, the workers are let go. Twice: at once, although the model will not stop."""
    body = f"""
        with Orchestrator() as orc:
            m = load(); pid = m.pid()
            try:
                ready(pid)
                m.{"stubborn(LOG)" if twice else "sleep(600)"}
            finally:
                ready(pid)
    """
    process = client(body)
    (pid,) = told(process)
    if twice:
        log = Path(process.args[2].split("LOG = '")[1].split("'")[0])  # type: ignore[index]
        until(lambda: lines(log))
    else:
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING)
    process.send_signal(signal.SIGINT)
    told(process)
    if twice:
        process.send_signal(signal.SIGINT)
    assert process.wait(LONG) == -signal.SIGINT
    until(lambda: gone(pid))


@pytest.mark.slow
def test_the_thread_that_loaded_ends(client: Callable[..., subprocess.Popen[str]]) -> None:
    process = client("""
        models = []
        with Orchestrator() as orc:
            t = threading.Thread(target=lambda: models.append(load())); t.start(); t.join()
            ready(models[0].pid())
            time.sleep(1.5)
            ready(models[0].pid())
    """)
    assert told(process) == told(process)
    assert process.wait(LONG) == 0


@pytest.mark.slow
def test_a_kill_of_the_coordinator_while_another_one_goes_on(
    client: Callable[..., subprocess.Popen[str]], settings: Settings
) -> None:
    """Two coordinators with a model of the same name: each has its own workers."""
    one, two = (client(STAGES["idle"]) for _ in range(2))
    ones, twos = told(one), told(two)
    os.kill(one.pid, signal.SIGKILL)
    until(lambda: all(map(gone, ones)))
    assert not any(map(gone, twos))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["_await_birth", "note"])
def test_kill_9_between_a_process_and_its_birth(
    client: Callable[..., subprocess.Popen[str]], tmp_path: Path, stage: str
) -> None:
    """The keeper that finds nobody cleans up: the fixture looks for the folder of the socket."""
    process = client(f"""
        from orchestrator.processes import WorkerProcess
        WorkerProcess.{stage} = lambda *_: (ready(), os.kill(os.getpid(), 9))
        with Orchestrator() as orc:
            load()
    """)
    told(process)
    assert process.wait(LONG) == -signal.SIGKILL
