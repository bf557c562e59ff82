"""Families at work: one orchestrator for the tests of a file, and tiny checkpoints made once."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.client import Orchestrator
from orchestrator.environments import Environment
from orchestrator.worker.tiny import load_styles

MAKERS = Path(__file__).parents[2] / "workers" / "tiny_checkpoints"


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    """The client; what a file's tests loaded ends with them."""
    with Orchestrator() as running:
        yield running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny("clip", "clip")`: the folder of a tiny checkpoint, made by a module and style, with a name if asked for."""

    def make(makers: str, style: str, name: str = "", seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("tiny") / (name or style)
        folder.mkdir()
        load_styles(MAKERS / f"{makers}.py")[style](folder, seed)
        return folder

    return make


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Five drawn pictures of several sizes, (height, width, 3) uint8."""

    def draw(height: int, width: int, phase: int) -> np.ndarray:
        rows, columns = np.mgrid[0:height, 0:width]
        return np.stack([rows * 5 + phase, columns * 4, (rows + columns) * (phase + 1)], -1).astype(np.uint8)

    sizes = [(32, 32), (50, 60), (45, 33), (64, 40), (33, 57)]
    return [draw(height, width, 30 * index) for index, (height, width) in enumerate(sizes)]


@pytest.fixture(scope="session")
def python_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script with an environment's own interpreter, as somebody without this project would."""

    def run(environment: Environment, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("script")
        file = folder / "script.py"
        file.write_text(script, encoding="utf-8")
        return subprocess.run(
            [str(environment.python), "-I", str(file), *arguments],
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run
