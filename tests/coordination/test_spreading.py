"""`map` on real replicas: every item once, in order, whatever dies, raises or is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conditions import LONG, until

from orchestrator import AsyncOrchestrator, Model, Orchestrator, Settings
from orchestrator.errors import Cancelled, ConfigError, DeadlineExceeded, RemoteError, WorkerDied
from orchestrator.events import Event
from orchestrator.workflow import Workflow

FAMILY = f"{Path(__file__).with_name('spread_model.py')}:Spread"
WITH = ["numpy==2.2.6"]

news: list[Event] = []


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings, listener=news.append) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def model(orc: Orchestrator) -> Model:
    """Two replicas for the tests that leave them alive."""
    return orc.load(FAMILY, with_=WITH, replicas=2, name="spread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's items are written down; what an earlier test cancelled still writes in its own."""
    return tmp_path


def begun(folder: Path) -> list[tuple[int, str]]:
    """(pid, item) of every item that a worker began, in the order of beginning."""
    pairs = (line.split(" ", 1) for line in (folder / "begun.txt").read_text().splitlines())
    return [(int(pid), item) for pid, item in pairs]


def counts(folder: Path) -> Counter[int]:
    return Counter(int(item) for _, item in begun(folder))


def close_gates(folder: Path, items: range) -> None:
    for item in items:
        (folder / f"gate-{item}").touch()


def open_gates(folder: Path) -> None:
    for gate in folder.glob("gate-*"):
        gate.unlink()


def waiting(folder: Path) -> list[Path]:
    return list(folder.glob("waits-*"))


def test_texts_by_length_and_the_result_in_their_order(model: Model, folder: Path) -> None:
    texts = [f"{number}-" + "x" * (number * 7 % 50) for number in range(100)]
    seen = len(news)
    result = model.map("lengths", texts, str(folder), 2.0, chunk_size=8)
    assert result.dtype == np.float32
    assert result.tolist() == [[2.0 * len(text), number] for number, text in enumerate(texts)]
    assert Counter(item for _, item in begun(folder)) == Counter(texts)
    longest_first = sorted(map(len, texts), reverse=True)
    first = [len(item) for _, item in begun(folder)][:8]  # of either replica
    assert first in (longest_first[:8], longest_first[8:16])
    told = [event for event in news[seen:] if event.stage == "call"]
    assert len(told) == 13
    assert [event.done for event in told] == sorted(event.done or 0 for event in told)
    assert [event.finished for event in told] == [False] * 12 + [True]
    assert {event.total for event in told} == {100}


def test_without_a_length_items_stay_in_order_and_with_a_key_they_do_not(model: Model, folder: Path) -> None:
    assert model.map("work", range(6), str(folder), chunk_size=6) == [0, 10, 20, 30, 40, 50]
    assert [item for _, item in begun(folder)] == list("012345")
    assert model.map("work", (n for n in range(6)), str(folder), chunk_size=6, key=lambda n: n) == [
        0,
        10,
        20,
        30,
        40,
        50,
    ]
    assert [item for _, item in begun(folder)[6:]] == list("543210")


def test_arrays_go_as_arrays_and_mappings_are_joined_by_key(model: Model, folder: Path) -> None:
    result = model.map("rows", np.arange(10, dtype=np.int16).reshape(5, 2), chunk_size=2)
    assert result["kind"] == ["ndarray"] * 5
    assert result["twice"].dtype == np.int16
    assert result["twice"].tolist() == [[0, 2], [4, 6], [8, 10], [12, 14], [16, 18]]


def test_no_items_give_what_the_method_gives_for_none(model: Model, folder: Path) -> None:
    empty = model.map("lengths", [], str(folder))
    assert empty.shape == (0, 2)
    assert empty.dtype == np.float32


def test_both_replicas_work_and_two_chunks_wait_at_each_at_most(model: Model, folder: Path) -> None:
    close_gates(folder, range(40))
    answers: list[list[int]] = []
    thread = threading.Thread(
        target=lambda: answers.append(model.map("work", range(40), str(folder), chunk_size=2))
    )
    thread.start()
    try:
        until(lambda: sum(replica.in_flight for replica in model._deployment.replicas) == 4)
        until(lambda: len(waiting(folder)) == 2)
        assert [replica.in_flight for replica in model._deployment.replicas] == [2, 2]
        assert not model._deployment.scheduler.waiting
    finally:
        open_gates(folder)
    thread.join(LONG)
    assert answers == [[item * 10 for item in range(40)]]
    assert set(counts(folder).values()) == {1}
    assert len({pid for pid, _ in begun(folder)}) == 2


def test_a_replica_killed_while_busy_loses_nothing_and_doubles_nothing(
    orc: Orchestrator, folder: Path
) -> None:
    with orc.load(FAMILY, with_=WITH, replicas=3, name="killed", no_more=str(folder / "no more")) as model:
        (folder / "gate-7").touch()
        answers: list[list[int]] = []
        thread = threading.Thread(
            target=lambda: answers.append(model.map("work", range(300), str(folder), chunk_size=5))
        )
        thread.start()
        until(lambda: waiting(folder))
        (folder / "no more").touch()  # it cannot come back: its items must go to others
        victim = int(waiting(folder)[0].name.rpartition("-")[2])
        os.kill(victim, signal.SIGKILL)
        open_gates(folder)
        thread.join(LONG)
        assert answers == [[item * 10 for item in range(300)]]
        twice = {item for item, times in counts(folder).items() if times == 2}
        assert twice == {5, 6, 7}  # what the dead one had begun of its chunk
        assert set(counts(folder)) == set(range(300))
        assert counts(folder).total() == 303
        again = [pid for pid, item in begun(folder) if item in ("5", "6", "7")][3:]
        assert victim not in again


def test_a_chunk_that_kills_is_named_and_its_neighbours_are_not(orc: Orchestrator, folder: Path) -> None:
    with orc.load(FAMILY, with_=WITH, replicas=2, name="killer") as model:
        (folder / "kills-3").touch()
        with pytest.raises(WorkerDied, match=r"items 2, 3, of 12"):
            model.map("work", range(12), str(folder), chunk_size=2, retries=1)
        assert counts(folder)[3] == 2


def test_chunks_that_a_death_touched_go_one_at_a_time(orc: Orchestrator, folder: Path) -> None:
    """Two that were with a killer must not meet again: the innocent one would be taken for it."""
    with orc.load(FAMILY, with_=WITH, name="touched") as model:
        (replica,) = model._deployment.replicas
        close_gates(folder, range(1))
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(model.map, "work", range(4), str(folder), chunk_size=2)
            try:
                until(lambda: replica.in_flight == 2 and waiting(folder))
                os.kill(int(waiting(folder)[0].name.rpartition("-")[2]), signal.SIGKILL)
                until(lambda: len(waiting(folder)) == 2)  # the first chunk again, in the next process
                assert replica.in_flight + len(model._deployment.scheduler.waiting) == 1
            finally:
                open_gates(folder)
            assert answer.result(LONG) == [0, 10, 20, 30]


def test_the_first_error_ends_it_and_says_which_items(model: Model, folder: Path) -> None:
    (folder / "refuses-21").touch()
    close_gates(folder, range(1))  # the other replica is busy until it is told to stop
    with pytest.raises(
        RemoteError, match=r"no 21 \(items 16, 17, 18, 19, 20, 21, 22, 23 and 8 more, of 500"
    ) as caught:
        model.map("work", range(500), str(folder), chunk_size=16)
    assert caught.value.remote_type == "ValueError"
    assert caught.value.details["items"] == list(range(16, 32))
    assert set(counts(folder).values()) == {1}
    assert max(counts(folder)) < 64
    assert model.call("work", [90], str(folder), timeout=LONG) == [900]
    assert 1 not in counts(folder)


def test_ctrl_c_cancels_everything_under_way(model: Model, folder: Path) -> None:
    close_gates(folder, range(40))

    def interrupt() -> None:
        until(lambda: len(waiting(folder)) == 2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        model.map("work", range(40), str(folder), chunk_size=1)
    thread.join(LONG)
    assert model.call("work", [50], str(folder), timeout=LONG) == [500]
    assert counts(folder).keys() <= {0, 1, 2, 3, 50}  # what was under way, at most


def test_cancel_from_another_thread(model: Model, folder: Path) -> None:
    close_gates(folder, range(40))
    spread = model.spread("work", range(40), str(folder), chunk_size=1)
    failures: list[Exception] = []

    def run() -> None:
        with contextlib.suppress(AssertionError):
            try:
                spread.run()
            except Cancelled as error:
                failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: len(waiting(folder)) == 2)
    spread.cancel()
    thread.join(LONG)
    assert "after 0 of 40 items" in str(failures[0])
    assert model.call("work", [50], str(folder), timeout=LONG) == [500]


def test_the_timeout_is_for_all(model: Model, folder: Path) -> None:
    close_gates(folder, range(8))
    with pytest.raises(DeadlineExceeded, match=r"items \d, of 8"):
        model.map("work", range(8), str(folder), chunk_size=1, timeout=0.5)
    assert model.call("work", [50], str(folder), timeout=LONG) == [500]


def test_results_that_are_not_one_an_item_are_refused(model: Model) -> None:
    for method, said in (
        ("total", "gave a int"),
        ("first", "2 items gave 1 results"),
        ("uneven", "cannot be one array"),
    ):
        with pytest.raises(ConfigError, match=said):
            model.map(method, [1, 2, 3, 4], chunk_size=2)


def test_what_cannot_be_spread_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="not one str"):
        model.map("lengths", "a text")
    with pytest.raises(ConfigError, match="chunk_size"):
        model.map("work", [1], chunk_size=0)
    with pytest.raises(ConfigError, match="did you mean 'work'"):
        model.map("wrok", [1])
    with pytest.raises(ConfigError, match="finite"):
        model.map("work", [1], key=lambda _: float("nan"))


def test_asyncio(settings: Settings, folder: Path) -> None:
    async def use() -> None:
        async with (
            AsyncOrchestrator(settings=settings) as orc,
            await orc.load(FAMILY, with_=WITH, replicas=2) as model,
        ):
            assert await model.map("work", range(20), str(folder), chunk_size=3) == [
                item * 10 for item in range(20)
            ]
            close_gates(folder, range(30, 40))
            task = asyncio.ensure_future(model.map("work", range(30, 40), str(folder), chunk_size=1))
            await asyncio.to_thread(until, lambda: len(waiting(folder)) == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await model.call("work", [50], str(folder), timeout=LONG) == [500]

    asyncio.run(use())
    assert counts(folder).keys() <= {*range(20), *range(30, 34), 50}


WORKFLOW = """
version: 1
name: spread
inputs: {numbers: {type: list, default: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}, folder: {type: text}}
models: {m: {family: "FAMILY", with: ["numpy==2.2.6"], replicas: 2}}
steps:
  - id: a
    for_each: {n: "${numbers}"}
    model: m
    call: work
    batch: 3
    on_error: {retry: 1}
    with: {items: "${n}", folder: "${folder}"}
outputs: {a: "${a}"}
"""


def test_for_each_of_a_workflow_spreads_and_survives_a_death(orc: Orchestrator, folder: Path) -> None:
    (folder / "w.yaml").write_text(WORKFLOW.replace("FAMILY", FAMILY))
    close_gates(folder, range(12))
    with ThreadPoolExecutor(1) as pool:
        workflow = Workflow.read(folder / "w.yaml")
        run = pool.submit(workflow.run, orc, inputs={"folder": str(folder)}, out=folder / "out")
        until(lambda: len(waiting(folder)) == 2)
        pids = {int(path.name.rpartition("-")[2]) for path in waiting(folder)}
        os.kill(pids.pop(), signal.SIGKILL)
        open_gates(folder)
        assert pids, "both chunks went to one replica"
        assert run.result(LONG).exit_code == 0
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["a"] for row in rows] == [number * 10 for number in range(12)]
    assert set(counts(folder)) == set(range(12))
    assert counts(folder).total() == 13  # the item that the dead one had begun
