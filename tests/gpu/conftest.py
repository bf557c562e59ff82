"""What these tests need of the machine.

`ORCHESTRATOR_GPU_PYTHON` names an interpreter whose torch sees the GPU: environments borrow its torch. On a machine
that reaches no index, `collect_wheels.py` says how the rest is carried there. Figures go to standard output (`-s`) as
lines of a table for `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import middling
import pytest

from orchestrator import Orchestrator, Settings
from orchestrator.devices import Device, Inventory
from orchestrator.events import Event


@pytest.fixture(scope="session")
def gpu_settings(settings: Settings) -> Settings:
    """The settings in force; torch borrowed where an interpreter that lends it is named."""
    lender = os.environ.get("ORCHESTRATOR_GPU_PYTHON")
    return replace(settings, torch_backend=f"borrow:{lender}", room_timeout=0.0) if lender else settings


@pytest.fixture(scope="session")
def card() -> Device:
    """The visible accelerator with the most room."""
    return max(Inventory.detect().accelerators, key=lambda device: device.free)


@pytest.fixture
def news() -> list[Event]:
    """What the listener of `orc` heard."""
    return []


@pytest.fixture
def orc(gpu_settings: Settings, news: list[Event]) -> Iterator[Orchestrator]:
    with Orchestrator(settings=gpu_settings, listener=news.append) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoints("llama")`: a middle-sized random checkpoint (or `tiny-clip` and the like), made once."""
    folder = tmp_path_factory.mktemp("middling")
    makers: dict[str, Callable[[Path], Path]] = {
        "llama": middling.llama,
        "bert": middling.bert,
        "tiny-clip": lambda path: middling.tiny("clip", "clip", path),
        "tiny-minigemini-7b": lambda path: middling.tiny("minigemini", "minigemini-7b", path),
        "tiny-qwen2-vl": lambda path: middling.tiny("qwen2_vl", "qwen2-vl", path),
        "tiny-llama": lambda path: middling.tiny("llama", "llama", path),
    }

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else makers[name](path)

    return make


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Prints a line of a Markdown table, whatever pytest captures."""

    def say(*cells: Any) -> None:
        with capsys.disabled():
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    return say
