"""Room that is shared: who goes for whom, who stays, who comes back; another device when memory runs out on one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conditions import LONG, until

from orchestrator import Model, Orchestrator, Settings
from orchestrator.devices import GIB, Inventory
from orchestrator.errors import OutOfMemory, PlacementError
from orchestrator.events import Event
from orchestrator.worker.memory import INJECT

WEIGHTY = f"{Path(__file__).with_name('room_models.py')}:Weighty"
NUMPY = ["numpy==2.2.6"]
MIB = 2**20
WEIGHTS = 100 * MIB
# A worker counts 400 MiB for its interpreter before it runs, and some 150 MiB when it does: three do not fit.
LIMIT = "cpu=760MiB"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose files say 100 MiB; there is nothing in them."""
    folder = tmp_path_factory.mktemp("weighty")
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [WEIGHTS // 4], "data_offsets": [0, WEIGHTS]}}
    ).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + WEIGHTS)
    return folder


@pytest.fixture
def news() -> list[Event]:
    """What the listener of `orc` heard."""
    return []


@pytest.fixture
def orc(settings: Settings, news: list[Event], tmp_path: Path) -> Iterator[Orchestrator]:
    """An orchestrator on a small machine, with a ledger of its own and the user's environments."""
    small = replace(settings, memory_limits=LIMIT, room_timeout=0.0)
    with Orchestrator(settings=small, listener=news.append) as orchestrator:
        orchestrator._coordinator.room.ledger.path = tmp_path / "ledger.json"
        yield orchestrator


@pytest.fixture
def load(orc: Orchestrator, checkpoint: Path) -> Callable[..., Model]:
    def load(name: str, answer: int = 0, **options: object) -> Model:
        return orc.load(
            WEIGHTY, with_=NUMPY, checkpoint=checkpoint, name=name, mib=100, answer=answer, **options
        )

    return load


def states(orc: Orchestrator) -> dict[str, str]:
    return {d.name: d.replicas[0].state for d in orc.status().deployments}


@pytest.mark.slow
def test_the_least_recently_used_goes_and_comes_back_on_its_next_call(
    orc: Orchestrator, load: Callable[..., Model]
) -> None:
    first, second = load("first", 10), load("second", 20)
    first.ask()
    load("third", 30)
    assert states(orc) == {"first": "ready", "second": "cold", "third": "ready"}
    assert second.call("ask", timeout=LONG) == 21
    assert states(orc)["second"] == "ready"
    assert list(states(orc).values()).count("cold") == 1
    held = [
        holder
        for holder in orc._coordinator.room.ledger.free(Inventory.detect()).host.holders
        if holder.deployment
    ]
    assert {holder.name for holder in held} == {
        f"{n}.0" for n, state in states(orc).items() if state == "ready"
    }
    assert all(
        WEIGHTS < holder.size < 3 * WEIGHTS for holder in held
    )  # what is true, not the 500 MiB foreseen


@pytest.mark.slow
def test_pinned_models_stay_and_the_refusal_names_them(orc: Orchestrator, load: Callable[..., Model]) -> None:
    load("first", keep_alive=-1)
    load("second", keep_alive=-1)
    with pytest.raises(PlacementError, match=r"held by .*first") as caught:
        load("third")
    assert "second" in caught.value.message
    assert states(orc) == {"first": "ready", "second": "ready"}


@pytest.mark.slow
def test_nobody_goes_for_what_does_not_fit_anyway(orc: Orchestrator, load: Callable[..., Model]) -> None:
    load("first")
    with pytest.raises(PlacementError):
        orc.load(WEIGHTY, with_=NUMPY, checkpoint=load("second").checkpoint.path, name="vast", dtype="float64",
                 max_memory={"cpu": 300 * MIB})  # fmt: skip
    assert states(orc) == {"first": "ready", "second": "ready"}


@pytest.mark.slow
def test_a_busy_model_is_waited_for(
    orc: Orchestrator, load: Callable[..., Model], news: list[Event], tmp_path: Path
) -> None:
    load("pinned", keep_alive=-1)
    busy = load("busy")
    future = busy.submit("wait_for", str(tmp_path / "go"))
    with pytest.raises(PlacementError, match="waited 0 s for busy"):
        load("third")
    orc._coordinator.room.settings = replace(orc.settings, room_timeout=LONG)
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(load, "third", 30)
        until(lambda: any("waiting for busy" in event.message for event in news))
        (tmp_path / "go").touch()
        assert future.result(LONG) == "waited"
        assert third.result(LONG).ask() == 31
    assert states(orc)["busy"] == "cold"


@pytest.mark.slow
def test_an_evicted_model_that_finds_no_room_says_so_and_tries_again(
    orc: Orchestrator, load: Callable[..., Model], tmp_path: Path
) -> None:
    first = load("first", 10)
    blocking = [load("second"), load("third")]
    assert states(orc)["first"] == "cold"
    futures = [model.submit("wait_for", str(tmp_path / "go")) for model in blocking]
    with pytest.raises(PlacementError, match="waited"):
        first.call("ask", timeout=LONG)
    (tmp_path / "go").touch()
    assert [future.result(LONG) for future in futures] == ["waited", "waited"]
    assert first.call("ask", timeout=LONG) == 11  # not quarantined: it was no fault of its own


@pytest.mark.slow
def test_keep_alive_of_nothing_ends_the_worker_after_its_call(
    orc: Orchestrator, load: Callable[..., Model]
) -> None:
    brief = load("brief", 1, keep_alive=0)
    assert states(orc)["brief"] == "ready"  # it is not gone before it was of any use
    pid = brief.pid()
    until(lambda: not psutil.pid_exists(pid))
    assert brief.call("ask", timeout=LONG) == 2


# -- more than one device, imagined: the worker runs on the CPU and is told its card by CUDA_VISIBLE_DEVICES ----------


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(Inventory.parse("2x8GiB,cpu:64GiB", cores=2), imagined=False)
    monkeypatch.setattr(Inventory, "detect", classmethod(lambda cls, *_, **__: machine))


@pytest.fixture
def cards(settings: Settings, tmp_path: Path, two_cards: None) -> Iterator[tuple[Orchestrator, list[Event]]]:
    news: list[Event] = []
    with Orchestrator(settings=settings, listener=news.append) as orchestrator:
        orchestrator._coordinator.room.ledger.path = tmp_path / "ledger.json"
        yield orchestrator, news


@pytest.mark.slow
def test_memory_that_runs_out_on_one_device_is_looked_for_on_another(
    cards: tuple[Orchestrator, list[Event]],
) -> None:
    orc, news = cards
    model = orc.load(WEIGHTY, with_=NUMPY)
    assert model.where() == "imagined-0"
    future = model.submit("doubled_on", "imagined-1", [1, 2, 3])
    assert future.result(LONG) == [2, 4, 6]
    assert future.recovered == (
        "freed the cache (batches of 3)", "batches of 1", "another device",
    )  # fmt: skip
    assert model.where() == "imagined-1"  # it stays there
    assert [e.message for e in news if e.stage == "call" and e.finished] == [
        "doubled_on: memory ran out; freed the cache (batches of 3), then batches of 1, then another device"
    ]
    assert orc.status().deployments[0].recovered == 1
    with pytest.raises(OutOfMemory) as caught:
        model.never()
    assert caught.value.tried == ["another device"]
    assert caught.value.memory["cpu"]["free"] > 0


@pytest.mark.slow
def test_another_replica_takes_what_does_not_fit_here(cards: tuple[Orchestrator, list[Event]]) -> None:
    orc, _ = cards
    model = orc.load(WEIGHTY, with_=NUMPY, replicas=2)
    pids = {replica.pid for replica in orc.status().deployments[0].replicas}
    for device in ("imagined-0", "imagined-1"):
        assert model.doubled_on(device, [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    with pytest.raises(OutOfMemory, match="another replica"):
        model.doubled_on("nowhere", [1])
    assert {replica.pid for replica in orc.status().deployments[0].replicas} == pids  # nobody had to move


@pytest.mark.slow
def test_a_move_waits_for_the_calls_of_others(
    cards: tuple[Orchestrator, list[Event]], tmp_path: Path
) -> None:
    orc, _ = cards
    model = orc.load(WEIGHTY, with_=NUMPY)
    short = model.submit("doubled_on", "imagined-1", [1])
    others = [model.submit("wait_for", str(tmp_path / "go"))] + [
        model.submit("doubled", [n]) for n in range(6)
    ]
    (tmp_path / "go").touch()
    assert short.result(LONG) == [2]
    assert [f.result(LONG) for f in others] == ["waited", *([2 * n] for n in range(6))]


@pytest.mark.slow
def test_injected_shortages_leave_the_result_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(INJECT, "2,3,call:3")
    with Orchestrator(settings=settings) as orc:
        model = orc.load(WEIGHTY, with_=NUMPY)
        future = model.submit("doubled", list(range(20)))
        assert future.result(LONG) == [2 * n for n in range(20)]
        assert future.recovered == ("freed the cache (batches of 8)", "batches of 4")
        assert model.doubled([1]) == [2]
        with pytest.raises(OutOfMemory, match="injected, call 3") as caught:
            model.doubled([1])
        assert caught.value.tried == []
        assert caught.value.memory["cpu"].keys() == {"used", "free", "total"}
        assert model.doubled([1]) == [2]


def test_the_limit_is_what_all_models_may_take_together(settings: Settings, tmp_path: Path) -> None:
    from orchestrator.placement import Ledger, estimate_from_config, place
    from orchestrator.placement.shapes import SHAPES

    ledger = Ledger(Settings(home=tmp_path, memory_limits="0=10GiB"))
    machine = replace(Inventory.parse("2x24GiB,cpu:64GiB"), imagined=False)
    assert [d.free // GIB for d in ledger.free(machine).accelerators] == [10, 24]
    placement = place(estimate_from_config(SHAPES["gemma-2b"], "float16"), ledger.free(machine), devices=[0])
    with ledger.reserve("gemma", placement):
        left = ledger.free(machine).accelerators
        assert left[0].free == 10 * GIB - placement.shares[0].used
        assert left[0].total == 10 * GIB
