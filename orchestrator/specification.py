"""What a replica is to be, and where it gets its devices from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator.checkpoints import Checkpoint
from orchestrator.environments import Environment, Family
from orchestrator.placement import Placement, Reservation

__all__ = ["Room", "Specification"]


@dataclass(frozen=True)
class Specification:
    """What the user asked for, with everything that can be known before a process starts."""

    name: str
    family: Family
    environment: Environment
    checkpoint: Checkpoint | None
    options: Mapping[str, Any] = field(default_factory=dict)
    replicas: int = 1
    dtype: str = "auto"
    device_map: str | Mapping[str, str] = "sequential"
    devices: tuple[str, ...] = ()
    """Indices or UUIDs that the replicas may use; empty is any."""
    max_memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes per device; empty is what is free, less a headroom."""
    keep_alive: float | None = None
    """Seconds without a call after which the workers go; None or negative is for ever."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What its workers are told of: the checkpoint, and the options that are paths or `path:Name`."""
        texts = [value for value in self.options.values() if isinstance(value, str) and value[:1] == "/"]
        named = [Path(text) for text in (*texts, *(text.rpartition(":")[0] for text in texts)) if text]
        known = [] if self.checkpoint is None else [self.checkpoint.path]
        return (*known, *(path for path in named if path.exists()))


class Room(Protocol):
    """Where replicas get their devices from."""

    def reserve(
        self, specification: Specification, replica: int, away: Collection[str] = ()
    ) -> tuple[Placement, Reservation]:
        """Reserves a placement, on none of the devices of `away`, until the reservation is closed.

        Raises:
            PlacementError: nothing fits.
        """
