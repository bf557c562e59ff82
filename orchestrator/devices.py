"""What the machine has: accelerators through NVML (never torch), cores and RAM through the kernel.

`CUDA_VISIBLE_DEVICES` is honoured in every form that CUDA knows: indices, UUIDs, unique prefixes of UUIDs and
MIG instances. Without a driver the machine is simply its CPU: cores and RAM are then the device's memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psutil

from orchestrator.errors import ConfigError

__all__ = ["CPU", "GIB", "Device", "Holder", "Inventory", "format_size", "parse_budgets", "parse_size"]

CPU = "cpu"
GIB = 2**30
UNITS = {"": 1, "b": 1} | {
    f"{prefix}{unit}": base ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for unit, base in (("ib", 1024), ("b", 1000))
}
SMALLEST = 2**20  # bytes: with fewer and no unit, `16` was meant to be 16GiB
MOST = 1024  # imagined devices of one kind
UNLIMITED = 2**60  # cgroup v1 says "no limit" with a number near 2**63


@dataclass(frozen=True)
class Holder:
    """Who holds memory of a device: a deployment (from the ledger) or a process (from NVML)."""

    name: str
    size: int
    """Bytes; 0 where the driver does not tell."""
    pid: int | None = None
    deployment: bool = False


@dataclass(frozen=True)
class Device:
    """One place where a model can be: an accelerator, a MIG instance, or the CPU with its RAM. Sizes in bytes."""

    index: int
    """Position among the visible accelerators, from 0; -1 for the CPU."""
    uuid: str
    """What names it for ever, and in a worker's `CUDA_VISIBLE_DEVICES`; `"cpu"` for the CPU."""
    name: str
    kind: Literal["cuda", "cpu"]
    total: int
    free: int
    holders: tuple[Holder, ...] = ()
    alone: bool = False
    """A MIG instance: CUDA lets a process see one of them only, so no model spans two."""

    @property
    def label(self) -> str:
        """`"cuda:0"` or `"cpu"`."""
        return CPU if self.kind == CPU else f"cuda:{self.index}"


@dataclass(frozen=True)
class Inventory:
    """The devices of one machine, real or imagined."""

    accelerators: tuple[Device, ...]
    host: Device
    cores: int = 1
    """Cores that this process may use: affinity and cgroup quota counted."""
    notes: tuple[str, ...] = ()
    """Why it is as it is: no driver, an unknown entry of `CUDA_VISIBLE_DEVICES` …"""
    imagined: bool = False

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None) -> Inventory:
        """The machine's own inventory; takes some milliseconds, never raises for want of a driver."""
        environ = os.environ if environ is None else environ
        accelerators, notes = _accelerators(environ)
        total, free = host_memory()
        cores = host_cores()
        host = Device(-1, CPU, f"CPU, {cores} cores", "cpu", total, free)
        return cls(accelerators, host, cores, notes)

    @classmethod
    def parse(cls, text: str, *, cores: int | None = None) -> Inventory:
        """An imagined machine: `"4x24GiB"`, `"2x80GiB,cpu:64GiB"`, `"cpu:16GiB"`; without `cpu:` 1 TiB of RAM.

        Raises:
            ConfigError: an entry is not `[COUNTx]SIZE` or `cpu:SIZE`, or there are more than 1024 of one.
        """
        accelerators: list[Device] = []
        host = Device(-1, CPU, "imagined CPU", "cpu", 1024 * GIB, 1024 * GIB)
        for entry in filter(None, (part.strip() for part in text.split(","))):
            match = re.fullmatch(r"(?i:(cpu):|(\d+)\s*[x*])?\s*([\d.]+\s*[a-z]*)", entry, re.IGNORECASE)
            if match is None or not 1 <= int(match[2] or 1) <= MOST:
                raise ConfigError(
                    f"{entry!r} is no device, and no 1 to {MOST} of them",
                    hint="write 4x24GiB, 80GiB or cpu:64GiB",
                )
            size = parse_size(match[3])
            if match[1]:
                host = replace(host, total=size, free=size)
                continue
            for _ in range(int(match[2] or 1)):
                index = len(accelerators)
                name = f"imagined {format_size(size)}"
                accelerators.append(Device(index, f"imagined-{index}", name, "cuda", size, size))
        return cls(tuple(accelerators), host, cores or host_cores(), imagined=True)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """The accelerators, then the host."""
        return (*self.accelerators, self.host)

    def select(self, name: str | int) -> Device:
        """The device that a person means by `0`, `"0"`, `"cuda:0"`, a UUID, a unique prefix of one, or `"cpu"`.

        Raises:
            ConfigError: none or several are meant; lists the devices.
        """
        text = str(name).strip()
        number = text.removeprefix("cuda:").removeprefix("gpu:")
        if number.isdigit():
            found = [d for d in self.accelerators if d.index == int(number)]
        elif text == "cuda":
            found = list(self.accelerators[:1])
        else:
            found = [d for d in self.devices if d.uuid == text] or [
                d for d in self.devices if text and d.uuid.startswith(text)
            ]
        if len(found) != 1:
            known = ", ".join(f"{d.label} ({d.uuid})" if d.uuid != d.label else d.label for d in self.devices)
            raise ConfigError(
                f"{text!r} names {'no device' if not found else 'several devices'}",
                hint=f"there are: {known}",
            )
        return found[0]

    def with_devices(self, devices: Sequence[Device]) -> Inventory:
        """A copy whose devices of the same UUID are replaced."""
        by_uuid = {d.uuid: d for d in devices}
        return replace(
            self,
            accelerators=tuple(by_uuid.get(d.uuid, d) for d in self.accelerators),
            host=by_uuid.get(CPU, self.host),
        )


def parse_size(value: int | str) -> int:
    """Bytes from `24GiB` (binary), `24GB` (decimal) or a plain number.

    Raises:
        ConfigError: not a size, not more than 0, or a text without a unit of fewer bytes than anything here takes.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise ConfigError(f"{value!r} is no size", hint="write 24GiB (binary), 24GB (decimal) or bytes")
    if isinstance(value, str) and not match[2] and float(match[1]) < SMALLEST:
        raise ConfigError(f"{value!r} has no unit: that is {value} bytes", hint=f"write {value.strip()}GiB")
    return int(float(match[1]) * unit)


def parse_budgets(text: str, what: str) -> dict[str, str]:
    """`0=20GiB,cpu=60GiB` as a mapping of devices to sizes; `what` names the option in errors.

    Raises:
        ConfigError: an entry is not `DEVICE=SIZE`.
    """
    pairs = [entry.partition("=") for entry in text.split(",") if entry.strip()]
    wrong = next(("".join(p) for p in pairs if not all(part.strip() for part in p)), None)
    if wrong is not None:
        raise ConfigError(f"{what}: {wrong!r} is no budget", hint="write 0=20GiB,1=22GiB,cpu=60GiB")
    for _, _, size in pairs:
        parse_size(size)
    return {key.strip(): size.strip() for key, _, size in pairs}


def format_size(size: float) -> str:
    """`"13.48 GiB"`, `"512.00 MiB"`, `"17 B"`."""
    for unit, name in ((2**40, "TiB"), (GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} B"


def host_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: CPU affinity, cut by the cgroup's quota (v2 and v1), at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups(root, "cpu"):
        quota, period = -1, 100_000
        if (folder / "cpu.max").is_file():
            words = _read(folder / "cpu.max").split()
            if len(words) == 2 and words[0].isdigit():
                quota, period = int(words[0]), int(words[1])
        else:
            quota = _number(folder / "cpu.cfs_quota_us") or -1
            period = _number(folder / "cpu.cfs_period_us") or period
        if quota > 0:
            cores = min(cores, max(1, -(-quota // period)))
    return max(1, cores)


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Total and available RAM in bytes; a cgroup's limit counts, and its reclaimable file cache as available."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for folder in _cgroups(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or not 0 < limit < UNLIMITED:
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        cache = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
        used -= int(cache[1]) if cache else 0
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it, each of which may set a limit."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        relative = Path(path.lstrip("/"))
        for part in (relative, *relative.parents):
            if (base / part).is_dir():
                yield base / part


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


@contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _accelerators(environ: Mapping[str, str]) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """The visible accelerators in the order that CUDA would give them, and words on what was left out."""
    try:
        with _nvml() as nvml:
            found = [d for i in range(nvml.nvmlDeviceGetCount()) for d in _describe(nvml, i)]
    except ImportError:
        return (), ("no accelerator: the package nvidia-ml-py is not installed",)
    except Exception as error:  # NVMLError: no driver, a driver and a library of two versions …
        return (), (f"no accelerator: {error}",)
    devices, notes = _visible(found, environ)
    return tuple(replace(d, index=i) for i, d in enumerate(devices)), tuple(notes)


def _describe(nvml: Any, index: int) -> Iterator[Device]:
    """The device of NVML's index; its MIG instances in its place where MIG is on."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        current = 0
    if not current:
        yield _device(nvml, handle, index)
        return
    for part in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, part)
        except nvml.NVMLError:  # an empty slot
            continue
        yield replace(_device(nvml, instance, index), alone=True)


def _device(nvml: Any, handle: Any, index: int) -> Device:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError:  # memory shared with the host
        total, free = host_memory()
    uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
    return Device(index, uuid, name, "cuda", total, free, tuple(_holders(nvml, handle)))


def _holders(nvml: Any, handle: Any) -> Iterator[Holder]:
    seen: set[int] = set()
    for query in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            processes = query(handle)
        except nvml.NVMLError:  # not permitted, or not known for this device
            continue
        for process in processes:
            if process.pid not in seen:
                seen.add(process.pid)
                yield Holder(_process_name(process.pid), int(process.usedGpuMemory or 0), process.pid)


def _process_name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:  # another user's, or of another pid namespace
        return "process"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _visible(found: list[Device], environ: Mapping[str, str]) -> tuple[list[Device], list[str]]:
    """`CUDA_VISIBLE_DEVICES` as CUDA reads it: in its order, up to the first entry that names nothing."""
    spec = environ.get("CUDA_VISIBLE_DEVICES")
    if spec is None:
        return found, []
    chosen: list[Device] = []
    notes: list[str] = []
    for entry in (part.strip() for part in spec.split(",")):
        meant = _meant(entry, found)
        if not meant:
            if entry not in ("", "-1", "NoDevFiles"):
                notes.append(
                    f"CUDA_VISIBLE_DEVICES: {entry!r} names no device; it and what follows is ignored"
                )
            break
        if any(d in chosen for d in meant):
            return [], [f"CUDA_VISIBLE_DEVICES names {entry!r} twice: CUDA then shows no device"]
        chosen += meant
    by_index = any(part.strip().isdigit() for part in spec.split(","))
    if by_index and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({d.name for d in found}) > 1:
        notes.append(
            "the cards differ and CUDA_DEVICE_ORDER is not PCI_BUS_ID: indices of CUDA_VISIBLE_DEVICES are read "
            "in the order of the bus here; UUIDs are never ambiguous"
        )
    if not chosen and not notes:
        notes.append(f"no accelerator: CUDA_VISIBLE_DEVICES={spec!r}")
    return chosen, notes


def _meant(entry: str, found: list[Device]) -> list[Device]:
    if entry.isdigit():
        return [d for d in found if d.index == int(entry)]
    matches = [d for d in found if entry.startswith(("GPU-", "MIG-")) and d.uuid.startswith(entry)]
    return matches if len(matches) == 1 else []
