"""A store of its own for each test, an index that is a folder of wheels, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from opening import open_store

from orchestrator.checkpoints import CheckpointStore
from orchestrator.events import Event

CLEARED = ("PIP_", "UV_", "ORCHESTRATOR_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "MODELSCOPE_", "XDG_CACHE")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store's folder; the wheels of `tmp_path/wheels` are the whole index."""
    for name in list(os.environ):
        if name.startswith(CLEARED):
            monkeypatch.delenv(name)
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "home"


@pytest.fixture
def wheels(home: Path) -> Path:
    """The folder of wheels."""
    return home.parent / "wheels"


@pytest.fixture
def checkpoints(home: Path) -> CheckpointStore:
    """A store with nothing in it."""
    return open_store(home)


@pytest.fixture
def events() -> list[Event]:
    """What a listener heard: pass `events.append`."""
    return []
