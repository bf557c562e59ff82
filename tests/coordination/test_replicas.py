"""One replica over its lives, on fake processes and links: what it does when two things happen at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conditions import LONG, until

from orchestrator import backoff, replicas
from orchestrator.deployments import Deployment
from orchestrator.errors import LoadError, WorkerDied, WorkerError
from orchestrator.links import LoadReport
from orchestrator.placement import Placement
from orchestrator.replicas import Replica
from orchestrator.settings import Settings
from orchestrator.states import ReplicaState
from orchestrator.status import status_of


class FakeProcess:
    """Lives until it is stopped or killed."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.log_path = Path(os.devnull)
        self.ended = threading.Event()
        self.on_wait: Callable[[], object] = self.ended.set  # a worker that is asked ends

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    def wait(self, timeout: float) -> None:
        self.on_wait()

    def stop(self, grace: float) -> None:
        self.ended.set()

    def kill(self) -> None:
        self.ended.set()

    def memory(self) -> int | None:
        return None

    def note(self, text: str) -> None: ...


class FakeLink:
    """Loads as its house says."""

    def __init__(self, process: FakeProcess, house: House) -> None:
        self.process, self.house = process, house
        self.in_flight = 0
        self.replaced = False
        self.asked_to_end = 0
        self.deaths: list[Callable[[WorkerDied], None]] = []

    @property
    def alive(self) -> bool:
        return self.process.alive

    def hello(self, timeout: float) -> None: ...

    def load(self, *order: Any, **more: Any) -> LoadReport:
        self.house.loading(self.process)
        return LoadReport({})

    def overrun(self) -> float:
        return 0.0

    def bye(self) -> None:
        self.asked_to_end += 1

    def close(self, grace: float) -> None: ...

    def on_death(self, callback: Callable[[WorkerDied], None]) -> None:
        self.deaths.append(callback)

    def die(self) -> None:
        self.process.kill()
        for callback in self.deaths:
            callback(WorkerDied("it died"))


class House:
    """Where replicas live: `place` is asked for a device, `loading` is run by each load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved: list[SimpleNamespace] = []
        self.place: Callable[[], str] = lambda: "cuda:0"
        self.loading: Callable[[FakeProcess], object] = lambda process: None
        self.settings = Settings(stop_grace=LONG)
        monkeypatch.setattr(backoff, "FIRST_PAUSE", 0.01)
        monkeypatch.setattr(replicas, "measured_memory", lambda *_: {})
        monkeypatch.setattr(replicas, "WorkerLink", lambda process: FakeLink(process, self))
        monkeypatch.setattr(replicas, "WorkerProcess", SimpleNamespace(spawn=lambda *_, **__: FakeProcess()))

    def reserve(self, specification: Any, replica: int, away: Any = ()) -> tuple[Placement, Any]:
        device = self.place()
        reservation = SimpleNamespace(open=True, correct=lambda *_, **__: None)
        reservation.close = lambda: setattr(reservation, "open", False)
        self.reserved.append(reservation)
        return Placement(device, (device,), "cpu", {}, "float32", 1, ""), reservation

    @property
    def held(self) -> int:
        """Places that are taken."""
        return sum(reservation.open for reservation in self.reserved)

    def specification(self, count: int = 1) -> Any:
        family = SimpleNamespace(
            worker_file=Path(), worker_class="", environment={}, sandbox=False, label="fake", name="fake"
        )
        return SimpleNamespace(
            name="model", replicas=count, family=family, environment=SimpleNamespace(id="e", versions={}),
            checkpoint=None, options={}, files=(), keep_alive=None,
        )  # fmt: skip

    def replica(self, changed: Callable[[Replica], object] = lambda _: None) -> Replica:
        return Replica(self.specification(), 0, self.settings, self, changed)

    def ready(self) -> Replica:
        replica = self.replica()
        replica.start(replica.listener)
        return replica


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


def test_what_has_just_died_is_not_evicted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE", LONG)
    replica = house.ready()
    replica._link.die()
    assert replica.state is ReplicaState.BACKOFF
    assert not replica.rest(LONG)
    assert replica.state is ReplicaState.BACKOFF
    replica.stop(0)


def test_a_worker_that_dies_while_another_place_is_looked_for_gives_that_place_back(house: House) -> None:
    replica = house.ready()

    def dies_meanwhile() -> str:
        replica._link.die()
        return "cuda:1"

    house.place = dies_meanwhile
    assert not replica.move()
    house.place = lambda: "cuda:0"
    until(lambda: replica.state is ReplicaState.READY)
    assert house.held == 1
    replica.stop(0)
    assert house.held == 0


def test_it_moves_where_the_next_life_begins(house: House) -> None:
    replica = house.ready()
    house.place = lambda: "cuda:1"
    assert replica.move()
    assert replica.placement is not None
    assert (replica.placement.device, house.held) == ("cuda:1", 1)


def test_a_start_that_fails_for_the_machines_reasons_is_made_again(house: House) -> None:
    """A disk that is full, no more descriptors: nobody waits in that thread, and calls wait for its outcome."""
    troubles = [OSError(28, "No space left on device"), RuntimeError("can't start new thread")]

    def place() -> str:
        if troubles:
            raise troubles.pop()
        return "cuda:0"

    house.place = place
    replica = house.replica()
    replica.wake()
    until(lambda: replica.state is ReplicaState.READY)
    assert "No space left on device" in str(replica.last_error)


def test_waking_it_while_another_start_is_about_to_give_up_starts_it(house: House) -> None:
    replica = house.replica()
    with replica._starting:
        replica.wake()
        replica.wake()
    until(lambda: replica.state is ReplicaState.READY)
    assert len(house.reserved) == 1


def test_a_worker_is_not_asked_to_end_before_the_slots_given_away_were_used(house: House) -> None:
    replica = house.ready()
    link, process = replica._link, replica.process
    replica.in_flight = 1  # its call is on the way to the link
    asked: list[int] = []

    def wait() -> None:
        asked.append(link.asked_to_end)
        if len(asked) == 3:
            replica.in_flight = 0
        if link.asked_to_end:
            process.ended.set()

    process.on_wait = wait
    assert replica.rest(LONG)
    assert asked == [0, 0, 0, 1]
    assert replica.state is ReplicaState.COLD


@pytest.mark.parametrize("end", [Replica.stop, Replica.rest])
def test_ctrl_c_while_it_drains_ends_it_at_once(
    house: House, end: Callable[[Replica, float], object]
) -> None:
    replica = house.ready()
    process = replica.process

    def interrupted() -> None:
        raise KeyboardInterrupt

    process.on_wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        end(replica, LONG)
    assert not process.alive
    assert house.held == 0
    assert replica.state in (ReplicaState.CLOSED, ReplicaState.COLD)


def test_ctrl_c_while_one_replica_drains_ends_the_others_too(house: House) -> None:
    deployment = Deployment(house.specification(2), house.settings, house, lambda _: None)
    deployment.load(lambda _: None)
    processes = [replica.process for replica in deployment.replicas]

    def interrupted() -> None:
        raise KeyboardInterrupt

    processes[0].on_wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        deployment.unload(LONG)
    assert [process.alive for process in processes] == [False, False]
    assert house.held == 0


def test_the_first_replica_that_fails_to_load_stops_the_others(house: House) -> None:
    first = threading.Lock()

    def loading(process: FakeProcess) -> None:
        if first.acquire(blocking=False):
            process.ended.wait()  # for hours, if nobody ends it
            raise WorkerDied("it was ended")
        raise LoadError("told to fail")

    house.loading = loading
    deployment = Deployment(house.specification(2), house.settings, house, lambda _: None)
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(deployment.load, lambda _: None)
        with pytest.raises(LoadError, match="told to fail"):
            loaded.result(LONG)
    assert house.held == 0


def test_a_replica_that_was_unloaded_before_it_began_says_so(house: House) -> None:
    replica = house.replica()
    replica.stop(0)
    with pytest.raises(WorkerError, match="unloaded"):
        replica.start(replica.listener)


def test_the_status_of_a_worker_that_is_being_taken_down(house: House) -> None:
    class Vanishing(Replica):
        looks = 0

        @property  # type: ignore[override]
        def process(self) -> Any:
            self.looks += 1
            return FakeProcess() if self.looks == 1 else None

        @process.setter
        def process(self, _: Any) -> None: ...

    deployment = Deployment(house.specification(), house.settings, house, lambda _: None)
    deployment.replicas[0] = Vanishing(house.specification(), 0, house.settings, house, lambda _: None)
    assert status_of(deployment).replicas[0].pid == os.getpid()
