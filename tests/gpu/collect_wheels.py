"""Wheels for a GPU machine that reaches no index: everything but torch, which is borrowed from what is there.

    python tests/gpu/collect_wheels.py wheels --python 3.11 sentence-embedding causal-lm clip minigemini qwen2-vl

fetches them into the folder `wheels`, together with what the orchestrator and its tests need. On the GPU machine:

    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/wheels
    python3 -m venv .venv && .venv/bin/pip install -q -e . pytest pytest-timeout hypothesis
    ORCHESTRATOR_GPU_PYTHON=$(which python3) .venv/bin/pytest -q -s tests/gpu

`--python` is the version of the interpreter there whose torch is borrowed (families that allow it run on it).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from orchestrator.environments import Catalog
from orchestrator.settings import load_settings

ROOT = Path(__file__).parents[2]
TESTS = ("pytest", "pytest-timeout", "hypothesis", "hatchling", "editables", "pip", "setuptools", "wheel")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="+")
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    fetch([*project["project"]["dependencies"], *TESTS], options.folder, options.python, resolve=True)
    catalog = Catalog.default(load_settings())
    for family in options.families:
        lock = catalog.get(family).folder / "requirements.lock"
        lines = [line for line in lock.read_text().splitlines() if line and not line.startswith(("#", " "))]
        fetch([*lines, "pyzmq", "msgpack", "numpy"], options.folder, options.python, resolve=False)


def fetch(requirements: list[str], folder: Path, python: str, *, resolve: bool) -> None:
    """Downloads wheels for Linux and that Python with pip, as it is configured here."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(line.rstrip(" \\") for line in requirements) + "\n")
        file.flush()
        command = [
            sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version", python,
            "--dest", str(folder), "-r", file.name, *([] if resolve else ["--no-deps"]),
        ]  # fmt: skip
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
