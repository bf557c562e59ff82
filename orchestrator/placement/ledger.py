"""Who reserved what on this machine: a small file that every coordinator of one user reads and writes under a lock.

A reservation counts as long as its owner lives (pid and start time). What its worker already holds shows in the
device's own figures, so only what is still to come is taken off the free memory.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import psutil
from filelock import FileLock, Timeout

from orchestrator.devices import CPU, Device, Holder, Inventory, parse_budgets, parse_size
from orchestrator.errors import PlacementError
from orchestrator.placement.place import RUNTIME, Placement
from orchestrator.settings import Settings
from orchestrator.waiting import GLANCE
from orchestrator.worker.interrupts import listening

__all__ = ["Entry", "Ledger", "Reservation", "measured_memory"]

log = logging.getLogger(__name__)

CLOCK_SLACK = 1.0  # seconds; a start time read twice may differ by a tick


@dataclass
class Entry:
    """One reservation, as in the file. Sizes in bytes by device UUID."""

    id: str
    name: str
    pid: int
    started: float
    reserved: dict[str, int]
    growth: dict[str, int] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    worker: int | None = None

    def pending(self, device: Device) -> int:
        """What it will still take of a device beyond what the device's own figures show."""
        return max(0, self.reserved.get(device.uuid, 0) - self._shown(device))

    def taken(self, device: Device) -> int:
        """What it holds of a device or may still take."""
        return max(self.reserved.get(device.uuid, 0), self._shown(device))

    def _shown(self, device: Device) -> int:
        shown = self.measured.get(device.uuid, 0)
        if device.kind == CPU and self.worker is not None:
            shown = max(shown, _resident(self.worker))
        for holder in device.holders:
            if self.worker is not None and holder.pid == self.worker and not holder.deployment:
                shown = max(shown, holder.size)
        return shown


class Ledger:
    """The reservations of this machine. Threads and processes may share one.

    Its methods raise PlacementError where the file cannot be locked or written, but for `change` and `remove`: what
    they could not write is told to the log, and no worker's life hangs on it.
    """

    def __init__(self, settings: Settings, *, lock_timeout: float = 30.0) -> None:
        self._removed: set[str] = set()
        self.path = settings.home / "ledger.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._limits = parse_budgets(settings.memory_limits, "memory_limits")
        self._lock = FileLock(str(self.path) + ".lock", timeout=lock_timeout)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else reserves while the block runs: look at what is free, place and reserve in one."""
        end = time.monotonic() + self._lock.timeout
        while not self._acquired(end - time.monotonic()):
            with listening():
                pass
        try:
            yield
        finally:
            self._lock.release()

    def _acquired(self, left: float) -> bool:
        """Waits a moment for the lock, of the `left` seconds."""
        try:
            self._lock.acquire(timeout=max(0.0, min(GLANCE, left)))
        except Timeout:
            if left > GLANCE:
                return False
            raise PlacementError(
                f"another coordinator has kept the ledger locked for {self._lock.timeout:g} s",
                hint=f"see who uses {self._lock.lock_file}",
            ) from None
        except OSError as error:
            raise self._unusable(error) from None
        return True

    def entries(self) -> list[Entry]:
        """The reservations of live owners."""
        with self.held():
            return self._read()

    def reserve(self, name: str, placement: Placement) -> Reservation:
        """Records what a placement will take, until the reservation is closed or this process is gone."""
        entry = Entry(
            uuid.uuid4().hex, name, os.getpid(), _started(os.getpid()) or 0.0,
            dict(placement.reservations), dict(placement.growth),
        )  # fmt: skip
        with self.held():
            self._write([*self._read(), entry])
        return Reservation(self, entry)

    def free(self, inventory: Inventory) -> Inventory:
        """The inventory with pending reservations taken off its free memory, and their names among the holders.

        Where `memory_limits` names a device, our models together get no more of it.
        """
        if inventory.imagined:
            return inventory
        entries = self.entries()
        limits = {inventory.select(name).uuid: parse_size(size) for name, size in self._limits.items()}
        return inventory.with_devices(
            [_reduced(device, entries, limits.get(device.uuid)) for device in inventory.devices]
        )

    def change(self, entry: Entry) -> None:
        """Writes a changed entry; one that is gone stays gone."""
        try:
            with self.held():
                self._write([entry if e.id == entry.id else e for e in self._read()])
        except PlacementError as error:
            log.warning("the reservation of %s stays as it was: %s", entry.name, error)

    def remove(self, entry: Entry) -> None:
        """Forgets an entry; other coordinators see it at the latest when this one writes again."""
        self._removed.add(entry.id)
        try:
            with self.held():
                self._write(self._read())
        except PlacementError as error:
            log.warning("others may still see the reservation of %s: %s", entry.name, error)
        else:
            self._removed.discard(entry.id)

    def _read(self) -> list[Entry]:
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8"))
            entries = [Entry(**row) for row in rows]
        except (OSError, ValueError, TypeError):  # none yet, or not ours: reservations are only foresight
            return []
        return [e for e in entries if e.id not in self._removed and _alive(e)]

    def _write(self, entries: list[Entry]) -> None:
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps([vars(e) for e in entries]), encoding="utf-8")
            beside.replace(self.path)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> PlacementError:
        return PlacementError(
            f"the ledger of reservations {self.path} cannot be written: {error.strerror or error}",
            hint="make room on that disk, or set ORCHESTRATOR_HOME to a folder that can be written",
        )


class Reservation:
    """One reservation; a context, or closed by hand. Closing twice is no error."""

    def __init__(self, ledger: Ledger, entry: Entry) -> None:
        self.ledger, self.entry = ledger, entry

    def correct(self, measured: Mapping[str, int], *, worker: int | None = None) -> None:
        """Tells what the loaded model really holds, by device UUID, and which process holds it.

        What remains reserved is that and the growth that calls may bring.
        """
        reserved = {
            device: measured.get(device, self.entry.reserved.get(device, 0))
            + self.entry.growth.get(device, 0)
            if device in measured
            else self.entry.reserved.get(device, 0)
            for device in {*self.entry.reserved, *measured}
        }
        self.entry = replace(self.entry, reserved=reserved, measured=dict(measured), worker=worker)
        self.ledger.change(self.entry)

    def close(self) -> None:
        """Gives the room back."""
        self.ledger.remove(self.entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def measured_memory(pid: int, placement: Placement, told: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Bytes that a loaded worker holds, by device UUID: as the driver tells, else as the worker itself does.

    In a container the driver tells other process ids than ours; what the worker told leaves CUDA's context out.
    """
    found: dict[str, int] = {}
    if placement.device == CPU or CPU in placement.max_memory:
        with suppress(psutil.Error):
            found[CPU] = int(psutil.Process(pid).memory_info().rss)
    accelerators = [device for device in placement.devices if device != CPU]
    for index, name in enumerate(accelerators):
        if used := told.get(f"cuda:{index}", {}).get("used", 0):
            found[name] = used + RUNTIME["cuda"]
    if accelerators:
        for device in Inventory.detect().accelerators:
            held = next((h.size for h in device.holders if h.pid == pid), 0)
            if held and device.uuid in accelerators:
                found[device.uuid] = held
    return found


def _reduced(device: Device, entries: list[Entry], limit: int | None) -> Device:
    holders = [
        Holder(e.name, e.reserved[device.uuid], e.worker or e.pid, deployment=True)
        for e in entries
        if e.reserved.get(device.uuid)
    ]
    workers = {e.worker for e in entries if e.worker is not None}
    others = [h for h in device.holders if h.pid not in workers]
    free = device.free - sum(e.pending(device) for e in entries)
    total = device.total
    if limit is not None:
        total = min(total, limit)
        free = min(free, total - sum(e.taken(device) for e in entries))
    return replace(device, total=total, free=max(0, free), holders=(*holders, *others))


def _started(pid: int) -> float | None:
    with suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return None


def _resident(pid: int) -> int:
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _alive(entry: Entry) -> bool:
    started = _started(entry.pid)
    return started is not None and abs(started - entry.started) < CLOCK_SLACK
