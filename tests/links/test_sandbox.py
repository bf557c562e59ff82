"""A confined worker: what it cannot do, that it works like any other, and that its end is told as it was.

Where bubblewrap is missing or forbidden only the refusals are tested.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from conditions import gone, until
from test_orphans import run_client, told

from orchestrator.errors import OrchestratorError, SandboxUnavailable, WorkerDied, WorkerStartError
from orchestrator.links import WorkerLink
from orchestrator.processes import sandbox as module
from orchestrator.processes import worker_process
from orchestrator.processes.sandbox import Sandbox, require_bubblewrap


def obstacle() -> str:
    try:
        require_bubblewrap()
    except SandboxUnavailable as error:
        return error.message
    return ""


OBSTACLE = obstacle()
confined = pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)


@pytest.fixture
def prying(start):
    return start("prying.py", "Prying", sandbox=True).link


@confined
def test_it_reaches_nobody(prying, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0orchestrator-{os.getpid()}")
        abstract.listen()
        assert prying.call("tcp", [tcp.getsockname()[1]])[0] is False
        assert prying.call("abstract", [f"orchestrator-{os.getpid()}"])[0] is False
    with socket.socket(socket.AF_UNIX) as late:
        late.bind(str(tmp_path / "s"))
        late.listen()
        assert prying.call("unix", [str(tmp_path / "s")])[0] is False


@confined
@pytest.mark.slow
def test_a_socket_in_the_users_home_is_covered(start):
    path = Path.home() / f".orchestrator-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        try:
            one.listen()
            link = start("prying.py", "Prying", sandbox=True).link
            assert link.call("unix", [str(path)])[0] is False
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(str(path))  # it is there
        finally:
            path.unlink()


@confined
def test_it_writes_nothing_but_its_cache_and_scratch(start, tmp_path):
    worker = start("prying.py", "Prying", sandbox=True)
    link, place = worker.link, worker.link.call("place")
    cache = Path(place["home"])
    assert cache.parent == tmp_path / "home" / "sandbox"
    environment = worker.process.environment.path
    folders = (Path.home(), environment, Path(__file__).parent, Path("/etc"), Path("/"))
    for folder in (f for f in folders if not f.is_relative_to("/tmp")):  # which is scratch
        path = folder / f"written-by-{os.getpid()}"
        assert link.call("write", [str(path)]) == [False, "Read-only file system"]
        assert not path.exists()
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/dev/mem",
    ):
        assert (
            link.call("open_to_write", [path])[0] is False
        )  # ways out of a sandbox whose user is root outside
    scratch = Path(f"/tmp/scratch-{os.getpid()}")
    assert link.call("write", [str(scratch)])[0]
    assert not scratch.exists()
    assert link.call("write", [str(cache / "kept")])[0]
    assert (cache / "kept").read_text() == "something"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert place["variables"]["HF_MODULES_CACHE"].startswith(
        place["home"]
    )  # other workers' remote code is not its to write
    assert (
        link.call("read", [str(worker.process.log_path)])[0] is False
    )  # it lies in /tmp here, and was not given


@confined
def test_it_has_no_power_over_other_processes(prying):
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        assert prying.call("signal", [sleeper.pid]) == [False, "No such process"]
        assert sleeper.poll() is None
        assert set(prying.call("capabilities").values()) == {0}
        assert prying.call("place")["pid"] == 2  # alone with its init
        assert prying.call("place")["uid"] == os.getuid()
    finally:
        sleeper.kill()
        sleeper.wait(60)


@confined
def test_it_works_like_any_other(start, spawn, tmp_path):
    blob = tmp_path / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_text("through a link, as hubs store them")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "words.txt").symlink_to(blob)
    (tmp_path / "other.txt").write_text("not given")
    process = spawn("prying.py", "Prying", sandbox=True, readable=[tmp_path / "checkpoint"])
    link = WorkerLink(process)
    link.hello(60)
    link.load(str(tmp_path / "checkpoint"), {}, {}, timeout=60)
    assert link.call("checkpoint_words") == "through a link, as hubs store them"
    assert link.call("read", [str(tmp_path / "other.txt")])[0] is False
    assert psutil.Process(process.pid).ppid() != os.getpid()  # a process of this side's numbers
    big = np.ones(10_000_000, np.uint8)
    assert link.call("sum", [big]) == big.size
    assert link._post.pool.bytes >= big.size  # through shared memory, both ways
    assert link.call("ones", [big.size]).sum() == big.size
    assert link._post.views.known == 1
    link.close(60)
    assert process.returncode == 0
    assert process.describe_exit() == "ended with exit code 0"
    assert not process.meeting.folder.exists()


@confined
@pytest.mark.parametrize(
    ("method", "argument", "code"),
    [
        ("exit", 137, 137), ("crash", signal.SIGKILL, -9),
        *(pytest.param(*end, marks=pytest.mark.slow) for end in (
            ("exit", 0, 0), ("exit", 3, 3), ("crash", signal.SIGSEGV, -11), ("crash", signal.SIGABRT, -6),
            ("crash", signal.SIGTERM, -15),
        )),
    ],
)  # fmt: skip
def test_its_end_is_told_as_it_was(start, method, argument, code):
    worker = start("prying.py", "Prying", sandbox=True)
    with pytest.raises(WorkerDied) as caught:
        worker.link.call(method, [int(argument)], timeout=60)
    assert caught.value.returncode == code


@confined
def test_the_oom_killer_is_told_apart_through_the_sandbox(spawn, monkeypatch):
    kills = iter([5, 6])
    monkeypatch.setattr(worker_process, "oom_kills", lambda: next(kills))
    process = spawn("prying.py", "Prying", sandbox=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert "OOM killer" in process.describe_exit()


def tree(pid: int) -> list[int]:
    """The keeper and everything below it."""
    keeper = psutil.Process(pid)
    while keeper.ppid() != os.getpid():
        keeper = keeper.parent()
    return [keeper.pid, *(child.pid for child in keeper.children(recursive=True))]


@confined
@pytest.mark.parametrize(
    "killed",
    [
        "the keeper",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("the worker", "bubblewrap", "the init", "by us")),
    ],
)
def test_nothing_inside_outlives_it(start, killed):
    worker = start("prying.py", "Prying", sandbox=True)
    worker.link.call("flock", [3])
    pids = tree(worker.process.pid)
    assert len(pids) == 7  # keeper, bubblewrap, init, worker and its three
    victims = {
        "the keeper": pids[0],
        "bubblewrap": pids[1],
        "the init": pids[2],
        "the worker": worker.process.pid,
    }
    if killed == "by us":
        worker.process.stop(0)
    else:
        os.kill(victims[killed], signal.SIGKILL)
    until(lambda: all(map(gone, pids[1:])))
    worker.process.wait(60)
    assert worker.process.returncode == -9
    until(lambda: gone(pids[0]))


@confined
@pytest.mark.slow
@pytest.mark.parametrize("killed", ["the client", "the keeper of a client that is stopped"])
def test_kill_9_of_what_stands_above_leaves_nothing_of_a_sandbox(tmp_path, killed):
    body = """
        WorkerProcess.spawn = (lambda spawn: lambda *a, **k: spawn(*a, sandbox=True, **k))(WorkerProcess.spawn)
        begin(); link.call('grandchild', [600, True])
        import psutil
        keeper = psutil.Process().children()[0]
        tell(keeper.pid, *[child.pid for child in keeper.children(recursive=True)]); time.sleep(600)
    """
    client = run_client(tmp_path, body)
    try:
        pids, folder = told(client)
        assert len(pids) == 6  # the worker is told twice
        if killed == "the client":
            client.kill()
            client.wait(60)
            until(lambda: gone(pids[1]))
            assert not Path(folder).exists()
        else:
            client.send_signal(signal.SIGSTOP)  # it cannot clean up after its keeper
            os.kill(pids[1], signal.SIGKILL)
        until(lambda: all(map(gone, pids)))
    finally:
        client.kill()
        client.wait(60)
        client.stdout.close()


@confined
@pytest.mark.slow
def test_a_running_call_can_be_interrupted(start):
    worker = start("prying.py", "Prying", sandbox=True)
    future = worker.link.submit("nap", [600])
    waited = threading.Event()
    for _ in range(3000):
        worker.process.interrupt()
        if future.done() or waited.wait(0.02):
            break
    with pytest.raises(OrchestratorError, match="KeyboardInterrupt"):
        future.result(60)


@confined
def test_the_nodes_of_accelerators_come_with_a_placement_on_one(tmp_path, monkeypatch):
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "nvidia0").touch()
    (dev / "dri").mkdir()
    monkeypatch.setattr(module, "Path", lambda *parts: dev if parts == ("/dev",) else Path(*parts))
    with_them = Sandbox(tmp_path / "cache", accelerators=True).command()
    assert f'"--dev-bind-try", "{dev}/nvidia0"' in with_them
    assert f'"--dev-bind-try", "{dev}/dri"' in with_them
    assert "dev-bind-try" not in Sandbox(tmp_path / "cache").command()


# -- where it cannot be ----------------------------------------------------------------------------------------------


def test_without_bubblewrap_nothing_is_started(spawn, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="not installed") as caught:
        spawn("prying.py", "Prying", sandbox=True)
    assert "install bubblewrap" in caught.value.hint
    assert isinstance(caught.value, WorkerStartError)


def test_where_it_is_forbidden_the_reason_is_told(monkeypatch, tmp_path):
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace") as caught:
        require_bubblewrap()
    assert "user namespaces" in caught.value.hint


def test_a_bubblewrap_that_fails_after_the_probe_is_quoted(spawn, monkeypatch, tmp_path):
    failing = tmp_path / "bwrap"
    failing.write_text("#!/bin/sh\n[ $# -lt 30 ] && exit 0\necho 'bwrap: no space for this' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(WorkerStartError, match="ended with exit code 1") as caught:
        spawn("prying.py", "Prying", sandbox=True)
    assert "bwrap: no space for this" in caught.value.last_lines


def test_what_is_inherited_inside(tmp_path):
    host = {
        "HOME": "/home/x",
        "XDG_RUNTIME_DIR": "/run/user/1",
        "https_proxy": "http://u:p@proxy",
        "PATH": "/bin",
    }
    got = Sandbox(tmp_path).inherited(host)
    assert got == {
        "HOME": str(tmp_path), "TMPDIR": "/tmp", "PATH": "/bin", "HF_HOME": "/home/x/.cache/huggingface", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    assert Sandbox(tmp_path).inherited({**host, "HF_HOME": "/hf"})["HF_HOME"] == "/hf"
