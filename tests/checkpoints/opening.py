"""Opening a store: for tests, and for the processes that they start."""

from __future__ import annotations

from pathlib import Path

from orchestrator.checkpoints import CheckpointStore
from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.settings import Settings


def open_store(home: Path, *, offline: bool = False) -> CheckpointStore:
    settings = Settings(home=home, offline=offline)
    return CheckpointStore(settings, EnvironmentStore(settings), Catalog.default(settings))
