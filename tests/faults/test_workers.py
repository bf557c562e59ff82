"""What workers, environments and disks do wrong, and what becomes of it. Real processes, real signals, real files."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conditions import LONG, gone, until
from house import FAULTY, House, lines

from orchestrator import Settings
from orchestrator.environments import Environment
from orchestrator.errors import LoadError, WorkerDied, WorkerStartError
from orchestrator.links import WorkerLink
from orchestrator.processes import WorkerProcess
from orchestrator.worker import segments

# -- stopped, silent, loud -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_that_is_stopped_is_replaced_and_one_that_goes_on_is_not(house: House) -> None:
    model = house.load(house.open(heartbeat_timeout=5.0))
    replica = model._deployment.replicas[0]
    pid = model.pid()
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    assert model.pid() == pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(WorkerDied, match="ended by us with SIGKILL"):
        model.call("echo", timeout=LONG)
    assert model.call("pid", timeout=LONG) != pid
    assert replica.restarts == 1


@pytest.mark.slow
def test_a_worker_that_is_stopped_while_it_loads_is_not_waited_for(house: House, tmp_path: Path) -> None:
    orc = house.open(heartbeat_timeout=3.0)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(house.load, orc, marker=str(tmp_path / "loads"), seconds=10 * LONG)
        until(lambda: lines(tmp_path / "loads"))
        pid = orc.status().deployments[0].replicas[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            loading.result(LONG)
    assert orc.status().deployments == ()


@pytest.mark.slow
def test_a_long_hold_of_the_interpreters_lock_is_no_death(house: House) -> None:
    model = house.load(house.open(heartbeat_timeout=LONG))
    pid = model.pid()
    model.hold_the_lock(1)
    assert model.pid() == pid


@pytest.mark.slow
def test_a_hundred_megabytes_of_output(house: House) -> None:
    """Binary, without an end of line: neither lost time nor a disk that fills."""
    model = house.load()
    model.call("flood", 100, timeout=4 * LONG)
    assert model.echo(1) == 1
    log = model._deployment.replicas[0].log
    assert log is not None
    assert log.stat().st_size + log.with_name(log.name + ".1").stat().st_size < 20 << 20


@pytest.mark.slow
def test_grandchildren_go_also_when_the_keeper_is_killed(house: House) -> None:
    model = house.load()
    children = [model.child(), model.child(own_session=True)]
    os.kill(psutil.Process(model.pid()).ppid(), signal.SIGKILL)
    until(lambda: all(map(gone, children)))
    until(lambda: model._deployment.replicas[0].restarts == 1)
    assert model.call("echo", 1, timeout=LONG) == 1


# -- what is missing or broken -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_library_that_the_system_lacks_is_named(house: House) -> None:
    with pytest.raises(LoadError) as caught:
        house.load(fail="library")
    assert "libfor_gpus_only.so.7" in caught.value.message
    assert "cannot open shared object file" in caught.value.message


@pytest.mark.slow
def test_a_death_while_loading_quotes_the_last_lines(house: House) -> None:
    with pytest.raises(WorkerDied, match="exit code 5") as caught:
        house.load(fail="die")
    assert caught.value.last_lines[-1] == "told to die"


@pytest.fixture
def damaged(house: House, tmp_path: Path) -> Environment:
    """A copy of an environment that a test may damage."""
    sound = house.load(house.open()).environment
    copy = tmp_path / "environment"
    subprocess.run(["cp", "-a", str(sound.path), str(copy)], check=True)
    return replace(sound, path=copy, python=copy / sound.python.relative_to(sound.path))


DAMAGES = {
    "numpy/__init__.py": (LoadError, "numpy"),
    "zmq/__init__.py": (WorkerStartError, "zmq"),
    "msgpack": (WorkerStartError, "msgpack"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("how", ["deleted", "truncated"])
def test_a_damaged_environment_is_an_error_that_names_the_module(
    damaged: Environment, settings: Settings, what: str, how: str
) -> None:
    error, name = DAMAGES[what]
    (path,) = damaged.path.glob(f"lib/python*/site-packages/{what}")
    if path.is_dir():
        path = path / "__init__.py"
    if how == "deleted":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.unlink()  # it is a hard link: the others keep theirs
        path.write_bytes(whole[: len(whole) // 2] + b"\n(")
    process = spawn(damaged, settings)
    link = None
    try:
        with pytest.raises(error) as caught:  # noqa: PT012 - which of the three depends on the damage and on time
            link = WorkerLink(process)
            link.hello(LONG)
            link.load(None, {}, {}, timeout=LONG)
        assert name in str(caught.value) + getattr(caught.value, "remote_traceback", "")
    finally:
        if link is not None:
            link.close(0)
        process.stop(0)


def spawn(environment: Environment, settings: Settings) -> WorkerProcess:
    file, _, name = FAULTY.rpartition(":")
    return WorkerProcess.spawn(
        environment, worker_file=Path(file), worker_class=name, name="faulty", settings=settings, variables={}
    )


# -- no room -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_shared_memory_on_this_side(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays travel in frames then; nothing is lost."""

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = house.load()
    array = np.arange(1 << 20)
    with monkeypatch.context() as patched:
        patched.setattr(segments.os, "posix_fallocate", refuse)
        assert np.array_equal(model.echo(array), array)
    assert np.array_equal(model.echo(array), array)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here: not root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a keeper may still be ending


@pytest.mark.slow
def test_a_disk_that_fills_under_the_logs(house: House, small_disk: Path, settings: Settings) -> None:
    """What is printed is lost, answers are not; a worker that cannot have a log says so."""
    environment = house.load(house.open()).environment
    home = replace(settings, home=small_disk)
    process = spawn(environment, home)
    link = WorkerLink(process)
    link.hello(LONG)
    link.load(None, {}, {}, timeout=LONG)
    link.call("flood", [5], timeout=LONG)
    assert link.call("echo", [7], timeout=LONG) == 7
    link.close(LONG)
    assert process.returncode == 0


WORKFLOW = """
version: 1
name: big
inputs:
  sizes: {{type: list, default: [1000, 5000000]}}
models:
  m: {{family: {faulty!r}, with: ["numpy==2.2.6"]}}
steps:
  - {{id: z, for_each: {{s: "${{sizes}}"}}, model: m, call: zeros, with: {{size: "${{s}}"}}}}
outputs:
  z: ${{z}}
"""


@pytest.mark.slow
def test_a_disk_that_fills_under_a_run(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(WORKFLOW.format(faulty=FAULTY))
    out = small_disk / "out"
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", str(tmp_path / "w.yaml"), "--out", str(out), "--no-cache"],
        capture_output=True, text=True, check=False, timeout=4 * LONG,
    )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["item"]["s"] for row in rows] == [1000]  # what was finished is whole


# -- a thousand times ----------------------------------------------------------------------------------------------------


def held() -> tuple[int, int, int, int]:
    """Descriptors, threads, children and shared segments of this process."""
    gc.collect()
    me = psutil.Process()
    maps = Path("/proc/self/maps").read_text().count("memfd:orchestrator")
    return me.num_fds(), threading.active_count(), len(me.children(recursive=True)), maps


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "loads"), [(50, 20)])
def test_a_thousand_loads_and_unloads_leave_nothing(
    house: House, settings: Settings, processes: int, loads: int
) -> None:
    """Fifty workers come and go; each loads, answers in shared memory and unloads twenty times."""
    orc = house.open()
    environment = house.load(orc).environment
    orc.close()

    def live(_: int) -> None:
        link = WorkerLink(spawn(environment, settings))
        link.hello(LONG)
        for _ in range(loads):
            link.load(None, {}, {}, timeout=LONG)
            assert link.call("zeros", [300_000], timeout=LONG).sum() == 0
            link.unload(LONG)
        link.close(LONG)

    children, maps = held()[2:]  # what other tests left, a process of multiprocessing for example
    live(0)  # what is made once
    until(lambda: held()[2] <= children and held()[3] <= maps)
    before = held()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(live, range(processes)))
    until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
