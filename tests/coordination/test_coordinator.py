"""The coordinator's own part: what is asked of it at once, what is no number, and a clock that goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conditions import LONG, until

from orchestrator import Orchestrator, Settings, deployments
from orchestrator.coordinator import Coordinator, LoadRequest
from orchestrator.errors import ConfigError, DeadlineExceeded, WorkerError
from orchestrator.running import Presence

FAULTY = f"{Path(__file__).parents[1] / 'faults' / 'faulty_model.py'}:Faulty"
NEW = ["numpy==2.2.6"]


@pytest.fixture
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


def together(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Loads wait for each other when each knows what it will be."""
    all_there = threading.Barrier(count, timeout=LONG)
    specify = coordinator._specify

    def specified(request: LoadRequest) -> Any:
        found = specify(request)
        all_there.wait()
        return found

    monkeypatch.setattr(coordinator, "_specify", specified)


def test_loads_of_one_family_at_once_get_names_of_their_own(
    orc: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    together(orc._coordinator, monkeypatch, 2)
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(orc.load, FAULTY, with_=NEW) for _ in range(2)]
        models = [load.result(LONG) for load in loads]
    assert len({model.name for model in models}) == 2
    assert {deployment.name for deployment in orc.status().deployments} == {model.name for model in models}


def test_nothing_is_started_after_the_end(orc: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = orc._coordinator
    specify = coordinator._specify

    def closed_meanwhile(request: LoadRequest) -> Any:
        found = specify(request)
        orc.close()
        return found

    monkeypatch.setattr(coordinator, "_specify", closed_meanwhile)
    with pytest.raises(WorkerError, match="closed"):
        orc.load(FAULTY, with_=NEW)
    assert coordinator.deployments == {}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"replicas": 0}, "replicas must be a whole number from 1, not 0"),
        ({"keep_alive": "5"}, "keep_alive must be a number of seconds, not '5'"),
        ({"max_memory": {0: "much"}}, "'much' is no size"),
        ({"devices": "cuda:7"}, "'cuda:7' names no device"),
    ],
)
def test_what_is_no_number_or_device_is_named(orc: Orchestrator, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        orc.load(FAULTY, with_=NEW, **wrong)


def test_the_clock_goes_on_after_a_fault_of_ours(
    orc: Orchestrator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticked = threading.Event()

    def fails_once(_: Coordinator) -> None:
        monkeypatch.setattr(Coordinator, "tick", lambda _: ticked.set())
        raise AttributeError("a fault of ours")

    monkeypatch.setattr(Coordinator, "tick", fails_once)
    assert ticked.wait(LONG)
    assert "a tick of the clock failed" in caplog.text


def test_a_disk_that_is_full_is_told_of_now_and_then(
    orc: Orchestrator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticks, published = threading.Semaphore(0), []

    def publish(_: Coordinator) -> None:
        published.append(time.monotonic())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Coordinator, "publish", publish)
    monkeypatch.setattr("orchestrator.coordinator.PUBLISH_EVERY", 10 * LONG)
    monkeypatch.setattr("orchestrator.coordinator.TICK", 0.001)
    monkeypatch.setattr(Coordinator, "tick", lambda _: ticks.release())
    orc._coordinator._changed.set()
    for _ in range(20):
        assert ticks.acquire(timeout=LONG)
    assert len(published) == 1


def test_a_model_that_takes_long_to_go_does_not_hold_up_the_clock(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an idle one closes, the deadlines of others hold."""
    monkeypatch.setattr(deployments, "FIRST_USE", 0.0)
    with Orchestrator(settings=replace(settings, stop_grace=10 * LONG)) as orc:
        busy = orc.load(FAULTY, with_=NEW, name="busy")
        go = tmp_path / "go"
        running = [busy.submit("write_when", str(tmp_path / "log"), "x", str(go)) for _ in range(2)]
        going = orc.load(FAULTY, with_=NEW, name="going", ends_with=str(go), keep_alive=0.0)
        replica = going._deployment.replicas[0]
        until(lambda: replica.state == "draining")
        late = busy.submit("echo", 1, timeout=0.1)
        with pytest.raises(DeadlineExceeded):
            late.result(LONG)
        assert replica.state == "draining"
        go.touch()
        assert all(future.result(LONG) for future in running)


def test_ctrl_c_at_the_end_ends_all_models_at_once(orc: Orchestrator) -> None:
    ended: list[tuple[str, bool]] = []

    class Loaded:
        def __init__(self, name: str) -> None:
            self.name = name

        def refuse(self) -> None: ...

        def unload(self, grace: float) -> None:
            ended.append((self.name, grace > 0))
            if grace > 0:
                raise KeyboardInterrupt

    coordinator = orc._coordinator
    coordinator.tick = lambda: None  # type: ignore[method-assign]
    coordinator.publish = lambda: None  # type: ignore[method-assign]
    coordinator.deployments = {name: Loaded(name) for name in "ab"}  # type: ignore[misc]
    coordinator._presence.publish([])
    with pytest.raises(KeyboardInterrupt):
        orc.close()
    assert ended == [("a", True), ("a", False), ("b", False)]
    assert not coordinator._presence.path.exists()


def test_ctrl_c_while_the_one_that_is_replaced_goes_leaves_the_name_free(orc: Orchestrator) -> None:
    class Quarantined:
        def refusal(self) -> WorkerError:
            return WorkerError("it died too often")

        def unload(self, grace: float) -> None:
            raise KeyboardInterrupt

    coordinator = orc._coordinator
    coordinator.tick = lambda: None  # type: ignore[method-assign]
    coordinator.publish = lambda: None  # type: ignore[method-assign]
    coordinator.deployments["replaced"] = Quarantined()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        orc.load(FAULTY, with_=NEW, name="replaced")
    assert coordinator.deployments == {}


def test_what_is_published_at_the_same_time_as_the_end_is_not_left_behind(settings: Settings) -> None:
    presence = Presence(settings)
    with ThreadPoolExecutor(4) as pool:
        for published in [pool.submit(presence.publish, []) for _ in range(200)]:
            published.result(LONG)
    assert presence.path.exists()
    presence.withdraw()
    presence.publish([])
    assert not presence.path.exists()


def test_an_end_in_the_middle_of_publishing_leaves_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forgotten Orchestrator is closed by the garbage collection, which may run in the thread that publishes."""
    presence = Presence(settings)
    replace_file = Path.replace

    def collected(draft: Path, target: Path) -> Path:
        presence.withdraw()
        return replace_file(draft, target)

    monkeypatch.setattr(Path, "replace", collected)
    presence.publish([])
    assert not presence.path.exists()
    assert not presence.path.with_suffix(".tmp").exists()
