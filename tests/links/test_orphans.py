"""When the client's process ends, however: nothing of it stays. Real processes, real signals."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
from conditions import gone, until

from orchestrator.errors import WorkerError
from orchestrator.links import WorkerLink
from orchestrator.processes import WorkerProcess
from orchestrator.settings import Settings

CLIENT = """
    import os, sys, threading, time
    from pathlib import Path
    sys.path.insert(0, {here!r})
    from small_environments import small_environment
    from orchestrator.links import WorkerLink
    from orchestrator.processes import WorkerProcess
    from orchestrator.settings import Settings

    def begin():
        global process, link
        process = WorkerProcess.spawn(
            small_environment("3.11", "numpy==1.26.4", "pillow==10.4.0"),
            worker_file=Path({here!r}) / "families" / "toy.py", worker_class="Toy", name="orphan",
            settings=Settings(home=Path({home!r})), variables={{}},
        )
        link = WorkerLink(process)
        link.hello(60)
        link.load(None, {{}}, {{}}, timeout=60)

    def tell(*pids):
        print(process.pid, *pids, process.meeting.folder, flush=True)
"""


def run_client(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    script = textwrap.dedent(CLIENT).format(here=str(Path(__file__).parent), home=str(tmp_path / "home"))
    script += textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def told(client: subprocess.Popen[str]) -> tuple[list[int], str]:
    assert client.stdout is not None
    words = client.stdout.readline().split()
    assert words, "the client said nothing"
    return [int(word) for word in words[:-1]], words[-1]


STATES = {
    "idle": "begin(); pid = link.call('grandchild'); tell(pid); time.sleep(600)",
    "idle with a grandchild in its own session":
        "begin(); pid = link.call('grandchild', [600, True]); tell(pid); time.sleep(600)",
    "busy": "begin(); f = link.submit('nap', [600]); time.sleep(.2); tell(); time.sleep(600)",
    "streaming": "begin(); s = link.stream('count', [10**9, .001]); next(s); tell(); [None for _ in s]",
    "deadlocked with the interpreter's lock":
        "begin(); pid = link.call('grandchild'); f = link.submit('hold_the_lock', [600]); time.sleep(.2); tell(pid);"
        "time.sleep(600)",
    "ignoring SIGTERM": "begin(); link.call('ignore_sigterm'); tell(); time.sleep(600)",
    "stopped": "begin(); os.kill(process.pid, 19); tell(); time.sleep(600)",
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_kill_9_of_the_client_leaves_nothing(tmp_path, state):
    client = run_client(tmp_path, STATES[state])
    try:
        pids, folder = told(client)
        keeper = psutil.Process(pids[0]).ppid()
        client.kill()
        client.wait(60)
        until(lambda: all(map(gone, [*pids, keeper])))
        assert not Path(folder).exists()
    finally:
        client.kill()
        client.wait(60)
        client.stdout.close()


@pytest.mark.parametrize("state", ["idle", "deadlocked with the interpreter's lock"])
def test_kill_9_of_client_and_keeper_leaves_no_worker(tmp_path, state):
    client = run_client(tmp_path, STATES[state])
    try:
        pids, _ = told(client)
        keeper = psutil.Process(pids[0]).ppid()
        client.send_signal(signal.SIGSTOP)  # it cannot clean up after its keeper
        os.kill(keeper, signal.SIGKILL)
        client.kill()
        client.wait(60)
        until(lambda: gone(pids[0]))
        os.kill(pids[1], signal.SIGKILL)  # the grandchild: this is what only the keeper sees to
    finally:
        client.kill()
        client.wait(60)
        client.stdout.close()


ENDS = {
    "by returning": "begin(); tell()",
    "by an exception": "sys.stderr = open(os.devnull, 'w'); begin(); tell(); raise ValueError",
    "by os._exit": "begin(); tell(); os._exit(3)",
    "with a future in flight": "begin(); f = link.submit('nap', [600]); tell()",
    "after the thread that spawned ended":
        "t = threading.Thread(target=begin); t.start(); t.join(); time.sleep(.5);"
        "assert link.call('echo', [1]) == 1; tell()",
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_client_that_ends_leaves_nothing(tmp_path, end):
    client = run_client(tmp_path, ENDS[end])
    try:
        pids, folder = told(client)
        client.wait(60)
        until(lambda: all(map(gone, pids)))
        assert not Path(folder).exists()
    finally:
        client.kill()
        client.wait(60)
        client.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_client_that_is_signalled_leaves_nothing(tmp_path, number):
    body = "sys.stderr = open(os.devnull, 'w'); begin(); f = link.submit('nap', [600]); tell(); link.call('nap', [600])"
    client = run_client(tmp_path, body)
    try:
        pids, _ = told(client)
        time.sleep(0.2)
        client.send_signal(number)
        client.wait(60)
        until(lambda: all(map(gone, pids)))
    finally:
        client.kill()
        client.wait(60)
        client.stdout.close()


def test_killed_between_spawn_and_hello_the_folder_goes_too(tmp_path):
    body = """
        import orchestrator.links.link as module
        WorkerLink.hello = lambda self, timeout: (tell(), time.sleep(600))
        begin()
    """
    client = run_client(tmp_path, body)
    pids, folder = told(client)
    assert Path(folder).exists()
    client.kill()
    client.wait(60)
    client.stdout.close()
    until(lambda: gone(pids[0]))
    until(lambda: not Path(folder).exists())


def _use_after_fork(link, results):
    try:
        link.call("echo", [1], timeout=60)
    except WorkerError as error:
        results.send(str(error))
    else:
        results.send("answered")
    link.close(1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_client_is_told_and_does_no_harm(toy):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_use_after_fork, args=(toy.link, theirs))
    child.start()
    assert ours.poll(60)
    assert "forked" in ours.recv()
    child.join(60)
    assert child.exitcode == 0
    assert toy.link.call("echo", [2], timeout=60) == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_workers_alive(tmp_path):
    body = "begin(); child = os.fork()\nif child == 0: time.sleep(600)\ntell(child); time.sleep(600)"
    client = run_client(tmp_path, body)
    pids, _ = told(client)
    try:
        client.kill()
        client.wait(60)
        until(lambda: gone(pids[0]))
    finally:
        os.kill(pids[1], signal.SIGKILL)
        client.stdout.close()


def test_loading_and_unloading_leaves_nothing_behind(numpy1, tmp_path):
    """Descriptors, threads and processes are back where they were."""

    def live() -> None:
        process = WorkerProcess.spawn(
            numpy1, worker_file=Path(__file__).parent / "families" / "toy.py", worker_class="Toy", name="toy",
            settings=Settings(home=tmp_path), variables={},
        )  # fmt: skip
        link = WorkerLink(process)
        link.hello(60)
        link.load(None, {}, {}, timeout=60)
        link.call("echo", [b"x" * 1000])
        list(link.stream("arrays", [3, 300_000]))
        assert link.submit("echo", [1]).result(60) == 1
        link.close(60)

    def count() -> tuple[int, int, int]:
        gc.collect()
        me = psutil.Process()
        return me.num_fds(), threading.active_count(), len(me.children(recursive=True))

    children = count()[2]  # what other tests left
    live()  # what is made once: the watcher, zmq's context
    until(lambda: count()[2] <= children)
    before = count()
    for _ in range(5):
        live()
    until(lambda: all(now <= then for now, then in zip(count(), before, strict=True)))
