"""What a load asks of the room: the dtype that it will really have, the towers, the bits; the worker's threads."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conditions import LONG

from orchestrator.checkpoints import Checkpoint
from orchestrator.deployments import Deployment
from orchestrator.devices import CPU, GIB, Holder, Inventory
from orchestrator.errors import ConfigError, PlacementError
from orchestrator.placement import SHAPES, Ledger, estimate_from_config, measured_memory, place
from orchestrator.placement.place import RUNTIME
from orchestrator.processes.variables import worker_variables
from orchestrator.room import SharedRoom
from orchestrator.settings import Settings
from orchestrator.specification import Specification
from orchestrator.states import ReplicaState

MIB = 2**20


def folder(path: Path, tensors: dict[str, int]) -> Path:
    """A checkpoint of float32 tensors by their bytes, all hole."""
    path.mkdir(parents=True)
    header, offset = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + offset)
    return path


def specification(path: Path, **fields: object) -> Specification:
    checkpoint = Checkpoint(str(path), "path", path.name, None, path)
    return Specification("model", SimpleNamespace(), SimpleNamespace(), checkpoint, **fields)  # type: ignore[arg-type]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedRoom:
    machine = replace(Inventory.parse("8GiB,4GiB,cpu:64GiB", cores=4), imagined=False)
    monkeypatch.setattr(Inventory, "detect", classmethod(lambda cls, *_, **__: machine))
    return SharedRoom(Settings(home=tmp_path / "home", room_timeout=0.0), list)


def test_half_on_gpu_reserves_half_on_a_gpu_and_all_on_the_cpu(room: SharedRoom, tmp_path: Path) -> None:
    path = folder(tmp_path / "clip", {"w": 10 * GIB})
    what = specification(path, dtype="float32", options={"half_on_gpu": True})
    placement, reservation = room.reserve(what, 0)
    with reservation:
        assert placement.devices == ("imagined-0",)  # 10 GiB would not fit
        assert placement.shares[0].weights == 5 * GIB
        assert placement.dtype == "float16"
    on_cpu = replace(what, device_map=CPU)
    placement, reservation = room.reserve(on_cpu, 0)
    with reservation:
        assert (placement.shares[0].weights, placement.dtype) == (10 * GIB, "float32")
    with pytest.raises(PlacementError):
        room.reserve(replace(what, options={}, device_map="single"), 0)


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"quantization_config": {"load_in_4bit": True}}])
def test_quantised_loads_and_towers_are_counted_as_they_will_be(
    room: SharedRoom, tmp_path: Path, bits: dict[str, object]
) -> None:
    path = folder(tmp_path / "mgm", {"model.layers.0.w": 12 * GIB})
    tower = folder(tmp_path / "clip", {"vision_model.w": GIB})
    what = specification(path, dtype="float16", options={**bits, "vision_tower": str(tower)})
    placement, reservation = room.reserve(what, 0)
    reservation.close()
    weights = {name: size for share in placement.shares for name, size in share.weights_by_block().items()}
    assert weights["model.layers.0"] == pytest.approx(3 * GIB * 4.5 / 8, rel=1e-6)
    assert weights["clip.vision_model"] == GIB // 2


def test_offload_is_for_those_who_ask(room: SharedRoom, tmp_path: Path) -> None:
    path = folder(tmp_path / "big", {f"model.layers.{i}.w": GIB for i in range(14)})
    with pytest.raises(PlacementError, match="does not fit"):
        room.reserve(specification(path, dtype="float32"), 0)
    placement, reservation = room.reserve(
        specification(path, dtype="float32", options={"allow_offload": True}), 0
    )
    reservation.close()
    assert [share.label for share in placement.shares][-1] == CPU


def test_each_replica_gets_its_own_accelerator_even_when_they_start_at_once(
    room: SharedRoom, tmp_path: Path
) -> None:
    what = specification(folder(tmp_path / "small", {"w": GIB}), replicas=3)
    found = [room.reserve(what, index) for index in range(2)]
    assert [placement.devices for placement, _ in found] == [("imagined-0",), ("imagined-1",)]
    with pytest.raises(PlacementError, match="has a replica already"):
        room.reserve(what, 2)
    found[0][1].close()
    placement, _ = room.reserve(replace(what, replicas=2), 0, away=("imagined-1",))
    assert placement.devices == ("imagined-0",)


def test_only_those_go_whose_room_is_needed(room: SharedRoom, tmp_path: Path) -> None:
    """The least recently used holds the small card; the large one is wanted."""
    gone: list[str] = []

    def idle(name: str, device: str, since: float) -> SimpleNamespace:
        what = replace(specification(folder(tmp_path / name, {"w": 2 * GIB})), name=name, devices=(device,))
        _, reservation = room.reserve(what, 0)

        def evict(grace: float) -> None:
            gone.append(name)
            reservation.close()

        return SimpleNamespace(
            name=name, specification=what, idle_for=lambda: since, evict=evict,
            replicas=[SimpleNamespace(index=0, state=ReplicaState.READY)],
        )  # fmt: skip

    deployments = [idle("new", "0", 5.0), idle("old", "1", 50.0)]
    room._deployments = lambda: deployments  # type: ignore[assignment, return-value]
    placement, _ = room.reserve(
        specification(folder(tmp_path / "large", {"w": 6 * GIB}), device_map="single"), 0
    )
    assert placement.devices == ("imagined-0",)
    assert gone == ["new"]


@pytest.mark.parametrize("state", [ReplicaState.READY, ReplicaState.DRAINING])
def test_others_can_use_the_ledger_while_a_model_goes_and_one_that_goes_already_is_waited_for(
    room: SharedRoom, tmp_path: Path, state: ReplicaState
) -> None:
    idle = replace(specification(folder(tmp_path / "idle", {"w": 6 * GIB})), name="idle", devices=("0",))
    _, reservation = room.reserve(idle, 0)

    def evict(grace: float) -> None:
        with ThreadPoolExecutor(1) as pool:  # in the thread that ends the worker
            pool.submit(reservation.close).result(LONG)

    going = SimpleNamespace(
        name="idle", specification=idle, idle_for=lambda: 1.0, evict=evict,
        replicas=[SimpleNamespace(index=0, state=state)],
    )  # fmt: skip
    room._deployments = lambda: [going]  # type: ignore[list-item]
    large = specification(folder(tmp_path / "wanted", {"w": 6 * GIB}), device_map="single")
    assert room.reserve(large, 0)[0].devices == ("imagined-0",)


def coming_back(room: SharedRoom, tmp_path: Path, times: int) -> list[str]:
    """An idle model on the first card that calls bring back so many times; the list of its evictions."""
    what = replace(specification(folder(tmp_path / "idle", {"w": 6 * GIB})), name="idle", devices=("0",))
    placement, reservation = room.reserve(what, 0)
    held = [reservation]
    evictions: list[str] = []

    def evict(grace: float) -> None:
        evictions.append("idle")
        held.pop().close()
        if len(evictions) <= times:
            held.append(room.ledger.reserve("idle.0", placement))

    model = SimpleNamespace(
        name="idle", specification=what, idle_for=lambda: 1.0, evict=evict,
        replicas=[SimpleNamespace(index=0, state=ReplicaState.READY)],
    )  # fmt: skip
    room._deployments = lambda: [model]  # type: ignore[assignment, return-value]
    return evictions


def test_a_model_that_comes_back_is_evicted_again_while_there_is_time(
    room: SharedRoom, tmp_path: Path
) -> None:
    evictions = coming_back(room, tmp_path, times=2)
    room.settings = replace(room.settings, room_timeout=LONG)
    wanted = specification(folder(tmp_path / "wanted", {"w": 6 * GIB}), device_map="single")
    assert room.reserve(wanted, 0)[0].devices == ("imagined-0",)
    assert len(evictions) == 3


def test_a_model_that_comes_back_when_the_time_is_over_stays(room: SharedRoom, tmp_path: Path) -> None:
    evictions = coming_back(room, tmp_path, times=2)
    wanted = specification(folder(tmp_path / "wanted", {"w": 6 * GIB}), device_map="single")
    with pytest.raises(PlacementError, match="evicted idle, and after 0 s the room was taken again"):
        room.reserve(wanted, 0)
    assert len(evictions) == 1


def test_nobody_is_waited_for_in_vain(room: SharedRoom, tmp_path: Path) -> None:
    """A busy model whose going would not make it fit is no reason to wait."""
    small = replace(specification(folder(tmp_path / "small", {"w": GIB})), name="small", devices=("1",))
    room.reserve(small, 0)
    busy = SimpleNamespace(
        name="small", specification=small, idle_for=lambda: 0.0,
        replicas=[SimpleNamespace(index=0, state=ReplicaState.READY)],
    )  # fmt: skip
    room._deployments = lambda: [busy]  # type: ignore[list-item]
    room.settings = replace(room.settings, room_timeout=3600.0)
    with pytest.raises(PlacementError, match="does not fit") as caught:
        room.reserve(specification(folder(tmp_path / "vast", {"w": 50 * GIB})), 0)
    assert "waited" not in caught.value.message


@pytest.mark.parametrize(
    ("keep_alive", "idle", "unused", "expired"),
    [(None, 1e6, False, False), (-1, 1e6, False, False), (0, 0.01, False, True), (5, 4.0, False, False),
     (5, 6.0, False, True), (0, 1.0, True, False), (0, 11.0, True, True), (60, 59.0, True, False)],
)  # fmt: skip
def test_keep_alive(
    tmp_path: Path,
    keep_alive: float | None,
    idle: float,
    unused: bool,
    expired: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    what = specification(tmp_path, keep_alive=keep_alive)
    deployment = Deployment(what, Settings(home=tmp_path), SimpleNamespace(), lambda _: None)  # type: ignore[arg-type]
    monkeypatch.setattr(Deployment, "idle_for", lambda self: idle)
    deployment.scheduler.unused = unused
    assert deployment.expired() is expired


def test_replicas_on_one_cpu_do_not_push_each_other_out(room: SharedRoom, tmp_path: Path) -> None:
    what = specification(folder(tmp_path / "half", {"w": 40 * GIB}), replicas=2, device_map=CPU)
    own = SimpleNamespace(
        name="model",
        specification=what,
        idle_for=lambda: 5.0,
        replicas=[SimpleNamespace(index=0, state=ReplicaState.READY)],
        evict=lambda grace: pytest.fail("a replica went for its sibling"),
    )
    room._deployments = lambda: [own]  # type: ignore[list-item]
    room.reserve(what, 0)
    with pytest.raises(PlacementError, match=r"held by model\.0"):
        room.reserve(what, 1)


def test_what_a_worker_told_counts_where_the_driver_tells_other_process_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = replace(Inventory.parse("24GiB,cpu:64GiB"), imagined=False)
    placement = place(estimate_from_config(SHAPES["gemma-2b"], "float16"), machine)
    monkeypatch.setattr(Inventory, "detect", classmethod(lambda cls, *_, **__: machine))
    told = {"cpu": {"used": GIB}, "cuda:0": {"used": 3 * GIB, "free": 20 * GIB}}
    assert measured_memory(1, placement, told) == {"imagined-0": 3 * GIB + RUNTIME["cuda"]}
    known = machine.with_devices([replace(machine.accelerators[0], holders=(Holder("python", 5 * GIB, 1),))])
    monkeypatch.setattr(Inventory, "detect", classmethod(lambda cls, *_, **__: known))
    assert measured_memory(1, placement, told) == {"imagined-0": 5 * GIB}


@pytest.mark.parametrize("text", ["cpu", "cpu=lots", "=3GiB", "9=1GiB"])
def test_wrong_limits_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        Ledger(Settings(home=tmp_path, memory_limits=text)).free(
            replace(Inventory.parse("8GiB"), imagined=False)
        )


def test_a_worker_gets_its_threads_and_waits_without_spinning(tmp_path: Path) -> None:
    placement = SimpleNamespace(devices=("GPU-1", "GPU-2"), threads=3)
    given = worker_variables({}, {}, modules_cache=tmp_path, placement=placement)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        assert given[name] == "3"
    assert given["OMP_WAIT_POLICY"] == "PASSIVE"
    assert given["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    own = worker_variables(
        {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "ACTIVE"}, {}, modules_cache=tmp_path, placement=placement
    )
    assert (own["OMP_NUM_THREADS"], own["OMP_WAIT_POLICY"], own["MKL_NUM_THREADS"]) == ("5", "ACTIVE", "3")
