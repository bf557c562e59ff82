"""The inventory: NVML (a fake one), CUDA_VISIBLE_DEVICES, MIG, cgroups, imagined machines."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.devices import GIB, Inventory, format_size, host_cores, host_memory, parse_size
from orchestrator.errors import ConfigError


class FakeNvml:
    """What of pynvml the inventory uses, over cards given as plain dicts."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards, broken=None):
        self.cards, self.broken, self.open = cards, broken, 0

    def nvmlInit(self):
        if self.broken:
            raise self.NVMLError(self.broken)
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.cards[index]

    def nvmlDeviceGetUUID(self, card):
        return card["uuid"]

    def nvmlDeviceGetName(self, card):
        return card.get("name", b"Fake A100")  # old drivers answer in bytes

    def nvmlDeviceGetMemoryInfo(self, card):
        if card.get("unified"):
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(total=card["total"] * GIB, free=card["free"] * GIB)

    def nvmlDeviceGetMigMode(self, card):
        if "mig" not in card:
            raise self.NVMLError("Not Supported")
        return (1, 1)

    def nvmlDeviceGetMaxMigDeviceCount(self, card):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, index):
        if index >= len(card["mig"]):
            raise self.NVMLError("Not Found")
        return card["mig"][index]

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.get("processes", [])]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card):
        raise self.NVMLError("Insufficient Permissions")


CARDS = [
    {
        "uuid": "GPU-aaaa-1111",
        "total": 80,
        "free": 70,
        "processes": [(2**22 + 5, 9 * GIB), (2**22 + 6, None)],
    },
    {"uuid": "GPU-aabb-2222", "total": 80, "free": 80},
    {"uuid": b"GPU-cccc-3333", "total": 24, "free": 20, "name": "Fake 4090"},
]
MIG = [{"uuid": "GPU-dddd-4444", "total": 80, "free": 80, "mig": [
    {"uuid": "MIG-1111", "total": 20, "free": 19}, {"uuid": "MIG-2222", "total": 40, "free": 39}]}]  # fmt: skip


@pytest.fixture
def nvml(monkeypatch):
    def install(cards, broken=None):
        fake = FakeNvml(cards, broken)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def uuids(inventory):
    return [d.uuid for d in inventory.accelerators]


def test_reads_memory_names_and_processes(nvml):
    fake = nvml(CARDS)
    first, _, third = Inventory.detect(environ={}).accelerators
    assert (first.index, first.label, first.total, first.free) == (0, "cuda:0", 80 * GIB, 70 * GIB)
    assert [(h.name, h.size, h.pid) for h in first.holders] == [
        ("process", 9 * GIB, 2**22 + 5),
        ("process", 0, 2**22 + 6),
    ]
    assert (third.uuid, third.name) == ("GPU-cccc-3333", "Fake 4090")
    assert fake.open == 0  # NVML is given back


def test_a_machine_without_a_driver_is_its_cpu(nvml):
    nvml([], broken="Driver Not Loaded")
    inventory = Inventory.detect(environ={})
    assert inventory.accelerators == ()
    assert inventory.devices[-1].label == "cpu"
    assert inventory.devices[-1].total > 0
    assert inventory.cores >= 1
    assert "Driver Not Loaded" in inventory.notes[0]


def test_memory_shared_with_the_host_is_the_hosts(nvml):
    nvml([{"uuid": "GPU-1", "unified": True}])
    assert Inventory.detect(environ={}).accelerators[0].total == host_memory()[0]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", ["GPU-aabb-2222"]),
        ("2,0", ["GPU-cccc-3333", "GPU-aaaa-1111"]),
        ("GPU-cccc-3333", ["GPU-cccc-3333"]),
        ("GPU-aab", ["GPU-aabb-2222"]),
        ("GPU-c, 1", ["GPU-cccc-3333", "GPU-aabb-2222"]),
        ("GPU-aa", []),  # not unique
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,9,1", ["GPU-aaaa-1111"]),  # CUDA stops at the first that is none
        ("0,-1,1", ["GPU-aaaa-1111"]),
        ("0,0", []),  # CUDA then shows none
        ("nonsense", []),
    ],
)
def test_cuda_visible_devices_as_cuda_reads_it(nvml, visible, expected):
    nvml(CARDS)
    inventory = Inventory.detect(environ={"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert uuids(inventory) == expected
    assert [d.index for d in inventory.accelerators] == list(range(len(expected)))  # renumbered, as CUDA does
    if visible in ("GPU-aa", "0,9,1", "0,0", "nonsense"):
        assert "CUDA_VISIBLE_DEVICES" in inventory.notes[0]


def test_indices_of_unlike_cards_are_told_to_be_ambiguous(nvml):
    nvml(CARDS)
    assert "PCI_BUS_ID" in Inventory.detect(environ={"CUDA_VISIBLE_DEVICES": "1"}).notes[0]
    assert not Inventory.detect(environ={"CUDA_VISIBLE_DEVICES": "GPU-aabb-2222"}).notes


def test_mig_instances_take_the_place_of_their_card(nvml):
    nvml([*MIG, CARDS[1]])
    inventory = Inventory.detect(environ={})
    assert uuids(inventory) == ["MIG-1111", "MIG-2222", "GPU-aabb-2222"]
    assert [d.alone for d in inventory.accelerators] == [True, True, False]
    only = Inventory.detect(environ={"CUDA_VISIBLE_DEVICES": "MIG-2222"})
    assert [(d.uuid, d.total) for d in only.accelerators] == [("MIG-2222", 40 * GIB)]
    assert uuids(Inventory.detect(environ={"CUDA_VISIBLE_DEVICES": "0"})) == ["MIG-1111", "MIG-2222"]


def test_imagined_machines():
    inventory = Inventory.parse("2x80GiB, 24GB,cpu:64GiB")
    assert [d.total for d in inventory.accelerators] == [80 * GIB, 80 * GIB, 24 * 10**9]
    assert inventory.host.total == 64 * GIB
    assert inventory.imagined
    assert Inventory.parse("cpu:16GiB").accelerators == ()


@pytest.mark.parametrize(
    "text", ["4xbig", "x24GiB", "4x24GiBs", "gpu", "0GiB", "4x-3GiB", "0x8GiB", "99999999x8GiB"]
)
def test_a_wrong_imagined_machine_is_refused(text):
    with pytest.raises(ConfigError):
        Inventory.parse(text)


def test_select_by_index_label_uuid_and_prefix(nvml):
    nvml(CARDS)
    inventory = Inventory.detect(environ={})
    assert {inventory.select(n).uuid for n in (0, "0", "cuda:0", "cuda", "GPU-aaaa", "GPU-aaaa-1111")} == {
        "GPU-aaaa-1111"
    }
    assert inventory.select("cpu").kind == "cpu"
    for wrong in ("7", "GPU-a", "", "cuda:9", "tpu"):
        with pytest.raises(ConfigError) as caught:
            inventory.select(wrong)
        assert "GPU-cccc-3333" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * GIB),
        ("24 GB", 24 * 10**9),
        ("1.5MiB", 3 * 2**19),
        (17, 17),
        ("17b", 17),
        ("16777216", 2**24),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "24 Gi", "-1GiB", "0", "big", "1e9", "24"])
def test_wrong_sizes(text):
    with pytest.raises(ConfigError):
        parse_size(text)


def test_sizes_for_people():
    assert [format_size(n) for n in (17, 3 * 2**19, 24 * GIB, 2**41)] == [
        "17 B",
        "1.50 MiB",
        "24.00 GiB",
        "2.00 TiB",
    ]


def write(root: Path, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_cgroup_v2_limits_are_the_memory(tmp_path):
    write(tmp_path, {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": str(2 * 2**20),  # an ancestor's limit holds too
        "sys/fs/cgroup/a/memory.current": str(2**20),
        "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {2**19}\n",
        "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
    })  # fmt: skip
    assert host_memory(tmp_path) == (2 * 2**20, 2**20 + 2**19)
    assert host_cores(tmp_path) == 1


def test_cgroup_v1_limits_are_the_memory(tmp_path):
    write(tmp_path, {
        "proc/self/cgroup": "4:memory:/x\n1:cpu,cpuacct:/x\n0::/\n",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(2**21),
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": str(2**20),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "100000",
        "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert host_memory(tmp_path) == (2**21, 2**20)
    assert host_cores(tmp_path) == 1


def test_without_cgroups_the_whole_machine_counts(tmp_path):
    total, free = host_memory(tmp_path)
    assert 0 < free <= total
    assert host_cores(tmp_path) >= 1
