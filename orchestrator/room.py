"""The room on this machine's devices, shared by all deployments: who goes where, and who goes away for whom."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from orchestrator.deployments import Deployment
from orchestrator.devices import CPU, Inventory
from orchestrator.errors import PlacementError
from orchestrator.events import Event, Listener, ignore
from orchestrator.placement import Ledger, Needs, Placement, Reservation, needs_of, place
from orchestrator.placement.ledger import Entry
from orchestrator.settings import Settings
from orchestrator.specification import Specification
from orchestrator.states import ReplicaState
from orchestrator.waiting import taken
from orchestrator.worker.interrupts import listening

__all__ = ["SharedRoom"]

log = logging.getLogger(__name__)

TOWERS = {"vision_tower": "mm_vision_tower", "vision_tower_aux": "mm_vision_tower_aux"}
"""Options that name a folder with weights of its own, and the keys of config.json that they replace."""
HOLDING = (ReplicaState.READY, ReplicaState.DRAINING)  # to evict one that drains already is to wait for it
PAUSE = 0.05  # seconds between two looks whether a busy model has become idle


@dataclass(frozen=True)
class Question:
    """What is asked of the room: one replica's needs, and the accelerators that it may not have."""

    specification: Specification
    needs: Needs
    barred: frozenset[str]
    workers: int

    def answer(self, inventory: Inventory) -> Placement:
        """The placement on an inventory; raises `PlacementError` when nothing fits."""
        what = self.specification
        try_ = partial(
            place,
            inventory=inventory,
            device_map=what.device_map,
            devices=self._allowed(inventory),
            max_memory=what.max_memory,
            offload=bool(what.options.get("allow_offload")),
            workers=self.workers,
        )
        if what.options.get("half_on_gpu") and inventory.accelerators and what.device_map != CPU:
            found = try_(self.needs.as_dtype("float16"), dtype="float16")
            if found.device != CPU:
                return found
        return try_(self.needs, dtype=what.dtype)

    def fits(self, inventory: Inventory) -> bool:
        """Whether there is an answer."""
        try:
            self.answer(inventory)
        except PlacementError:
            return False
        return True

    def _allowed(self, inventory: Inventory) -> Sequence[str]:
        if not self.barred:
            return self.specification.devices
        asked = [inventory.select(d) for d in self.specification.devices] or list(inventory.accelerators)
        left = [device.uuid for device in asked if device.uuid not in self.barred]
        if not left:
            raise PlacementError(
                f"{self.specification.name}: every accelerator that it may use has a replica already",
                hint=f"replicas={len(self.barred)}",
            )
        return left


@dataclass(frozen=True)
class Obstacle:
    """What is in the way of a placement: idle deployments that are to go, or else busy ones that are waited for."""

    error: PlacementError
    """What a refusal says."""
    victims: Sequence[Deployment] = ()
    busy: Sequence[Deployment] = ()


class SharedRoom:
    """Reserves devices for the replicas of one coordinator; other coordinators of this machine are respected.

    Idle deployments go, least recently used first, when something else needs the room and when that makes it fit;
    pinned ones (a negative `keep_alive`) never. Busy ones are waited for, `room_timeout` seconds at most; for as long
    idle ones that come back are evicted again.
    """

    def __init__(
        self,
        settings: Settings,
        deployments: Callable[[], Sequence[Deployment]],
        listener: Listener = ignore,
    ) -> None:
        self.settings = settings
        self.listener = listener
        self.ledger = Ledger(settings)
        self._deployments = deployments
        self._placing = threading.RLock()

    def reserve(
        self, specification: Specification, replica: int, away: Collection[str] = ()
    ) -> tuple[Placement, Reservation]:
        """Reserves a placement for one replica, on no accelerator of `away` or of its siblings.

        Raises:
            PlacementError: nothing fits, whoever may go; says what is needed, free and held.
        """
        needs = self._needs(specification)
        end = time.monotonic() + self.settings.room_timeout
        told: set[str] = set()
        evicted: set[str] = set()
        while True:
            with taken(self._placing):
                with self.ledger.held():  # other coordinators look at the same room
                    barred = self._siblings(specification, replica) | frozenset(away)
                    question = Question(
                        specification, needs, barred, self._workers() + specification.replicas
                    )
                    found = self._look(question)
                    if isinstance(found, Placement):
                        if self.settings.threads > 0:
                            found = replace(found, threads=self.settings.threads)
                        return found, self.ledger.reserve(f"{specification.name}.{replica}", found)
                # What is idle goes once even without time to wait; what comes back goes again while there is time.
                if (found.busy or evicted) and time.monotonic() > end:
                    raise self._refusal(found, evicted)
                # The ledger is free meanwhile: a worker that ends gives its room back through it.
                for victim in found.victims:
                    log.info("evicting %s to make room for %s", victim.name, specification.name)
                    evicted.add(victim.name)
                    victim.evict(self.settings.stop_grace)
            if found.victims:
                continue
            names = {deployment.name for deployment in found.busy}
            if names - told:
                told |= names
                words = f"waiting for {_listed(names)} to become idle, whose room it needs"
                self.listener(Event("worker", specification.name, words))
            with listening():
                time.sleep(PAUSE)

    def _needs(self, specification: Specification) -> Needs:
        options = specification.options
        path = None if specification.checkpoint is None else specification.checkpoint.path
        towers = {
            key: Path(options[option])
            for option, key in TOWERS.items()
            if options.get(option) and Path(options[option]).exists()
        }
        needs = needs_of(path, dtype=specification.dtype, towers=towers)
        more = options.get("quantization_config")
        asked = {**more, **options} if isinstance(more, Mapping) else options
        bits = next((bits for bits in (4, 8) if asked.get(f"load_in_{bits}bit")), None)
        return needs if bits is None else needs.quantised_to(bits)

    def _look(self, question: Question) -> Placement | Obstacle:
        """A placement, or what is in its way.

        Raises:
            PlacementError: nothing would help.
        """
        free = self.ledger.free(Inventory.detect())
        try:
            return question.answer(free)
        except PlacementError as error:
            victims = self._victims(question, free)
            if victims:
                return Obstacle(error, victims=victims)
            busy = self._unpinned(question, idle=False)
            others = [*busy, *self._unpinned(question, idle=True)]
            if not busy or not question.fits(self._without(free, others)):
                raise
            return Obstacle(error, busy=busy)

    def _victims(self, question: Question, free: Inventory) -> list[Deployment]:
        """The idle deployments whose going makes it fit: the least recently used, and no more than are needed."""
        chosen: list[Deployment] = []
        for deployment in self._unpinned(question, idle=True):
            chosen.append(deployment)
            if question.fits(self._without(free, chosen)):
                break
        else:
            return []
        for deployment in list(chosen):
            others = [d for d in chosen if d is not deployment]
            if question.fits(self._without(free, others)):
                chosen = others
        return chosen

    def _unpinned(self, question: Question, *, idle: bool) -> list[Deployment]:
        """Deployments with workers that may go: the idle ones (least recently used first), or the busy ones."""
        found = [
            (deployment.idle_for(), deployment)
            for deployment in self._deployments()
            if deployment.name != question.specification.name
            and any(replica.state in HOLDING for replica in deployment.replicas)
            and not (deployment.specification.keep_alive or 0) < 0
        ]
        return [d for since, d in sorted(found, key=lambda pair: -pair[0]) if (since > 0) is idle]

    def _without(self, inventory: Inventory, deployments: Sequence[Deployment]) -> Inventory:
        """The inventory with what these deployments hold given back."""
        names = {f"{d.name}.{replica.index}" for d in deployments for replica in d.replicas}
        entries = [e for e in self._own_entries() if e.name in names]
        return inventory.with_devices(
            [
                replace(d, free=min(d.total, d.free + sum(e.reserved.get(d.uuid, 0) for e in entries)))
                for d in inventory.devices
            ]
        )

    def _siblings(self, specification: Specification, replica: int) -> frozenset[str]:
        """The accelerators of a deployment's other replicas: each has its own."""
        names = {f"{specification.name}.{i}" for i in range(specification.replicas) if i != replica}
        return frozenset(d for e in self._own_entries() if e.name in names for d in e.reserved) - {CPU}

    def _own_entries(self) -> list[Entry]:
        return [entry for entry in self.ledger.entries() if entry.pid == os.getpid()]

    def _workers(self) -> int:
        return sum(replica.state is ReplicaState.READY for d in self._deployments() for replica in d.replicas)

    def _refusal(self, found: Obstacle, evicted: Collection[str]) -> PlacementError:
        """The error at the end of `room_timeout`."""
        seconds = f"{self.settings.room_timeout:g} s"
        if found.busy:
            names = _listed(deployment.name for deployment in found.busy)
            words = f"waited {seconds} for {names} to become idle"
        else:
            words = f"evicted {_listed(evicted)}, and after {seconds} the room was taken again"
        return PlacementError(f"{found.error.message}\n  {words}", hint=found.error.hint)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
