"""What is done about workers that fail, and how they are let go: restarts, quarantine, draining, states and events."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conditions import LONG, gone, until
from house import House, lines

from orchestrator import backoff
from orchestrator.errors import (
    ConfigError,
    DeadlineExceeded,
    OrchestratorError,
    Overloaded,
    Quarantined,
    WorkerDied,
    WorkerError,
)
from orchestrator.states import TRANSITIONS, ReplicaState

# -- letting go ----------------------------------------------------------------------------------------------------------


def test_unloading_lets_running_calls_finish_and_refuses_the_queue(house: House, tmp_path: Path) -> None:
    model = house.load(house.open(stop_grace=LONG), name="drained", closed=str(tmp_path / "closed"))
    log, go = tmp_path / "log", tmp_path / "go"
    running = [model.submit("write_when", str(log), k, str(go)) for k in "ab"]
    queued = [model.submit("write", str(log), k) for k in "cdef"]
    until(lambda: lines(log))
    with ThreadPoolExecutor(1) as pool:
        unloading = pool.submit(model.unload)
        until(lambda: house.states("drained")[-1] == "draining")
        go.touch()
        unloading.result(LONG)
    assert [future.result(LONG) for future in running] == [2, 4]
    for future in queued:
        with pytest.raises(WorkerError, match="unloaded"):
            future.result(LONG)
    assert lines(log) == ["begun a", "a", "begun b", "b"]
    assert lines(tmp_path / "closed") == ["closed"]  # the model's own end
    assert house.states("drained") == ["starting", "ready", "draining", "closed"]
    with pytest.raises(WorkerError, match="unloaded"):
        model.echo(1)


def test_draining_has_an_end(house: House) -> None:
    model = house.load()
    pid = model.pid()
    future = model.submit("stubborn")
    until(lambda: model._deployment.replicas[0].in_flight)
    model._coordinator.unload(model.name, grace=0.2)
    with pytest.raises(WorkerError):
        future.result(LONG)
    assert gone(pid)


def test_what_nobody_waits_for_does_not_hold_up_the_end(house: House, tmp_path: Path) -> None:
    """Ctrl-C in a long call, then the end of the block: the method is interrupted, and the model closes in order."""
    model = house.load(house.open(stop_grace=LONG), closed=str(tmp_path / "closed"))
    future = model.submit("write_slowly", str(tmp_path / "log"), "x", 10 * LONG)
    until(lambda: lines(tmp_path / "log"))
    assert future.cancel()
    model.unload()
    assert lines(tmp_path / "closed") == ["closed"]
    assert lines(tmp_path / "log") == ["begun x"]


def test_unloading_while_it_loads(house: House) -> None:
    orc = house.open()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(house.load, orc, name="slow", seconds=10 * LONG)
        until(lambda: orc.status().deployments and orc.status().deployments[0].replicas[0].pid)
        pid = orc.status().deployments[0].replicas[0].pid
        orc._coordinator.unload("slow")
        with pytest.raises(WorkerError, match="slow was unloaded"):
            loading.result(LONG)
    assert pid is not None
    assert gone(pid)
    assert orc.status().deployments == ()


# -- coming back ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_all_workers_are_killed_at_once_and_all_come_back(house: House, busy: bool) -> None:
    """Every call has its answer or its error."""
    model = house.load(replicas=2)
    both = model._deployment.replicas
    workers = {replica.process.pid for replica in both if replica.process}
    assert len(workers) == 2
    calls = [model.submit("sleep", 10 * LONG) for _ in workers] if busy else []
    until(lambda: sum(replica.in_flight for replica in both) == len(calls))
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for call in calls:
        with pytest.raises(WorkerDied, match="SIGKILL"):
            call.result(LONG)
    until(lambda: all(replica.link and replica.process.pid not in workers for replica in both))
    assert model.call("echo", 1, timeout=LONG) == 1
    assert [replica.restarts for replica in both] == [1, 1]


@pytest.mark.slow
def test_a_death_while_it_comes_back_is_one_more_death(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE", 0.01)
    marker = tmp_path / "loads"
    model = house.load(name="weak", fail="die later until 4", marker=str(marker))
    with pytest.raises(WorkerDied):
        model.die()
    assert model.call("echo", 1, timeout=LONG) == 1
    assert len(lines(marker)) == 4
    assert house.states("weak")[2:] == ["backoff", "starting"] * 3 + ["ready"]
    assert model._deployment.replicas[0].restarts == 3


@pytest.mark.slow
def test_too_many_deaths_are_a_quarantine_with_its_reason(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(backoff, "DEATHS_ALLOWED", 2)
    marker = tmp_path / "loads"
    orc = house.open()
    model = house.load(orc, name="weak", fail="die later", marker=str(marker))
    with pytest.raises(WorkerDied):
        model.die()
    with pytest.raises(Quarantined, match="exit code 5"):
        model.call("echo", 1, timeout=LONG)
    with pytest.raises(Quarantined):
        model.submit("echo", 1)
    assert len(lines(marker)) == 3
    status = orc.status().deployments[0].replicas[0]
    assert (status.state, status.restarts) == ("quarantined", 2)
    assert "exit code 5" in (status.last_error or "")
    # one log record and one event for each change
    told = [r.message for r in caplog.records if r.message.startswith("weak: ") and " -> " in r.message]
    seen = [f"weak: {event.message}" for event in house.events if event.stage == "state"]
    assert told == seen
    assert seen[-1].startswith("weak: starting -> quarantined: worker weak (pid ")
    # a request starts it again
    again = house.load(orc, name="weak")
    assert again.echo(1) == 1
    with pytest.raises(ConfigError, match="loaded already"):
        house.load(orc, name="weak")
    with pytest.raises(WorkerError, match="unloaded"):
        model.echo(1)


def test_every_state_has_its_ways_and_no_other(house: House) -> None:
    assert set(TRANSITIONS) == set(ReplicaState)
    replica = house.load()._deployment.replicas[0]
    with pytest.raises(RuntimeError, match="no way from ready to cold"):
        replica._become(ReplicaState.COLD)


@pytest.mark.slow
def test_a_listener_that_fails_harms_nobody(house: House) -> None:
    def fail(event: object) -> None:
        if getattr(event, "stage", "") == "state":
            raise ValueError("a listener's own fault")

    orc = house.open()
    orc._coordinator.listener = fail
    model = house.load(orc)
    with pytest.raises(WorkerDied):
        model.die()
    assert model.call("echo", 1, timeout=LONG) == 1


@pytest.mark.slow
def test_retries_are_made_only_where_they_were_declared(house: House, tmp_path: Path) -> None:
    """The side effect of a call whose worker is killed happens once; that of an idempotent one may happen again."""
    model = house.load()
    for retries, begun in ((0, 1), (1, 2)):
        log = tmp_path / str(retries)
        call = model.submit("write_when", str(log), "x", str(tmp_path / "go"), retries=retries)
        until(lambda log=log: lines(log))
        os.kill(model._deployment.replicas[0].process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        if retries:
            (tmp_path / "go").touch()
            assert call.result(LONG) == 3
        else:
            with pytest.raises(WorkerDied):
                call.result(LONG)
            model.call("echo", timeout=LONG)
        assert lines(log).count("begun x") == begun


@pytest.mark.slow
@pytest.mark.parametrize("submitted", [False, True])
def test_calls_behind_one_that_will_not_end_are_made_elsewhere_and_once(
    house: House, tmp_path: Path, submitted: bool
) -> None:
    """The worker gives back what it has not begun; what it is busy with, nobody waits for any more."""
    model = house.load(house.open(stop_grace=LONG), replicas=2)
    first = model.submit("stubborn", str(tmp_path / "a"))
    until(lambda: lines(tmp_path / "a"))
    busy = next(replica for replica in model._deployment.replicas if replica.in_flight)
    other = next(replica for replica in model._deployment.replicas if not replica.in_flight)
    filler = model.submit("patient", 10 * LONG)
    until(lambda: (busy.in_flight, other.in_flight) == (1, 1))
    log = str(tmp_path / "log")
    with ThreadPoolExecutor(1) as pool:
        calls = [model.submit("echo", 1)] if other is model._deployment.replicas[0] else []
        behind = model.submit("write", log, "x") if submitted else pool.submit(model.write, log, "x")
        until(lambda: busy.in_flight == 2)
        first.cancel()
        filler.cancel()
        assert behind.result(LONG) == 1
        assert [call.result(LONG) for call in calls] == [1] * len(calls)
    assert lines(tmp_path / "log") == ["x"]
    assert busy.restarts == 0  # it was not waited for
    os.kill(busy.process.pid, signal.SIGKILL)  # type: ignore[union-attr]


# -- the queue, deadlines and cancellation at every stage ----------------------------------------------------------------


@pytest.mark.slow
def test_a_full_queue_refuses_and_the_others_are_served(house: House) -> None:
    model = house.load(house.open(queue_depth=3))
    calls = [model.submit("patient", 10 * LONG) for _ in range(5)]  # two slots, three places
    with pytest.raises(Overloaded, match="3 calls wait already"):
        model.submit("echo", 1)
    with pytest.raises(Overloaded):
        model.call("echo", 1)
    for call in calls:
        call.cancel()
    assert model.call("echo", 1, timeout=LONG) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deadline", "cancel"])
@pytest.mark.parametrize("stage", ["queued", "loading", "running", "streaming"])
def test_an_end_at_every_stage_leaves_the_next_call_unharmed(
    house: House, tmp_path: Path, stage: str, how: str
) -> None:
    log = tmp_path / "log"
    model = house.load(marker=str(tmp_path / "loads"), seconds=0.5 if stage == "loading" else 0.0)
    before = model.pid()
    blockers = []
    if stage == "queued":
        blockers = [model.submit("patient", 10 * LONG) for _ in range(2)]
    if stage == "loading":
        model._deployment.evict(LONG)  # the next call brings it back, which takes half a second
    begins = stage in ("running", "streaming")  # before the deadline, on a loaded machine too
    timeout = None if how == "cancel" else 3.0 if begins else 0.2
    if stage == "streaming":
        stream = model.stream("count", 10**9, 0.001, timeout=timeout)
        assert next(stream) == 0
        if how == "deadline":
            with pytest.raises(DeadlineExceeded):
                list(stream)
        else:
            stream.close()  # type: ignore[attr-defined]
    else:
        method, arguments = {
            "running": ("write_slowly", (str(log), "x", 10 * LONG)),
        }.get(stage, ("write", (str(log), "x")))
        call = model.submit(method, *arguments, timeout=timeout)
        if how == "deadline":
            with pytest.raises(DeadlineExceeded):
                call.result(LONG)
        else:
            until(lambda: stage != "running" or lines(log))
            assert call.cancel()
    for blocker in blockers:
        blocker.cancel()
    assert model.call("echo", [1], timeout=LONG) == [1]
    assert lines(log) == (["begun x"] if stage == "running" else [])  # what was not begun never is
    assert (model.pid() == before) == (stage != "loading")


@pytest.mark.slow
def test_calls_of_fifty_threads_and_of_asyncio(house: House) -> None:
    import asyncio

    model = house.load(replicas=2)
    threads = threading.active_count()
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(model.echo, range(1000))) == list(range(1000))

    async def many() -> list[object]:
        return await asyncio.gather(
            *(asyncio.wrap_future(model.submit("echo", number)) for number in range(1000))
        )

    assert asyncio.run(many()) == list(range(1000))
    assert threading.active_count() < threads + 10


@pytest.mark.slow
def test_no_wait_hangs_on_the_wall_clock(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is set forward and back by a day, between any two looks at it."""
    import itertools
    import time

    jumps = itertools.cycle([86400.0, -86400.0, 0.0])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    model = house.load(house.open(heartbeat_timeout=LONG), keep_alive=LONG)
    pid = model.pid()
    with pytest.raises(DeadlineExceeded):
        model.call("patient", 10 * LONG, timeout=0.2)
    assert model.submit("echo", 1, timeout=LONG).result(LONG) == 1
    until(lambda: model._deployment.idle_for() > 0.6)  # some ticks of the coordinator's clock
    assert model.pid() == pid
    with pytest.raises(WorkerDied):
        model.die()
    with pytest.raises(OrchestratorError):
        model.call("patient", 10 * LONG, timeout=0.2)
    assert model.call("echo", 1, timeout=LONG) == 1
