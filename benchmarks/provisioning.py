"""Three environments that cannot be one (transformers 4.36.2, 4.39.3, 5.x, each with torch), built from a warm cache.

    python benchmarks/provisioning.py [--rounds 3]

In each round, one after the other: bare `uv venv` and `uv pip sync` of the same locks; this project into an empty
store, installed and checked but not imported, as bare uv does not import either; and the same with the import probe,
which leaves byte code behind, first into a store that has compiled nothing, then into one that has. Steps are shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import describe

from orchestrator.environments import Catalog, EnvironmentStore, Family
from orchestrator.environments.indexes import read_indexes
from orchestrator.environments.recipe import Recipe, recipe_for
from orchestrator.environments.uv import find_uv, uv_environment
from orchestrator.settings import Settings, load_settings

FAMILIES = (
    ("sentence-embedding", ()),
    ("sentence-embedding", ("transformers==4.39.3",)),
    ("causal-lm", ()),
)


def bare(settings: Settings, recipes: Sequence[Recipe], folder: Path) -> float:
    """Seconds that uv alone takes for the same locks."""
    environ = uv_environment(settings, read_indexes().variables)
    uv = [find_uv(), "--no-progress", "-q", "--offline"]
    start = time.perf_counter()
    for number, recipe in enumerate(recipes):
        requirements = folder / f"{number}.txt"
        requirements.write_text(recipe.requirements)
        target = folder / str(number)
        subprocess.run(
            [*uv, "venv", "--python", str(recipe.interpreter.path), str(target)], env=environ, check=True
        )
        python = str(target / "bin" / "python")
        subprocess.run([*uv, "pip", "sync", "--python", python, str(requirements)], env=environ, check=True)
    return time.perf_counter() - start


def product(
    settings: Settings, families: Sequence[Family], *, probe: bool
) -> tuple[float, list[dict[str, float]]]:
    """Seconds that this project takes, all at once, and those of each build's steps."""
    store = EnvironmentStore(settings)
    start = time.perf_counter()
    built = store.ensure_all(families, probe=probe)
    seconds = time.perf_counter() - start
    for environment in built:
        if isinstance(environment, Exception):
            raise environment
    return seconds, [dict(environment.timings) for environment in store.list()]


def emptied(settings: Settings) -> None:
    """Removes the environments and leaves the byte code."""
    for environment in EnvironmentStore(settings).list():
        shutil.rmtree(environment.path)


def found(settings: Settings, families: Sequence[Family]) -> float:
    """Median seconds to find an environment that is there."""
    store, seconds = EnvironmentStore(settings), []
    for family in families * 20:
        start = time.perf_counter()
        assert store.find(family) is not None
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def disk(folders: Sequence[Path]) -> tuple[int, int]:
    """Bytes of the folders as if each stood alone, and bytes that no other link holds (byte code, scripts)."""
    apparent = own = 0
    for folder in folders:
        for path in folder.rglob("*"):
            status = path.lstat()
            apparent += status.st_size
            own += status.st_size if status.st_nlink == 1 else 0
    return apparent, own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    settings = load_settings()
    catalog = Catalog.default(settings)
    families = [catalog.get(name, with_) for name, with_ in FAMILIES]
    EnvironmentStore(settings).ensure_all(families)  # locks resolved, uv's cache warm
    recipes = [recipe for family in families if (recipe := recipe_for(settings, family, make=True))]
    times: dict[str, list[float]] = {"bare": [], "plain": [], "first": [], "again": []}
    steps: list[dict[str, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=settings.home) as scratch:
            times["bare"].append(bare(settings, recipes, Path(scratch)))
        with tempfile.TemporaryDirectory(dir=settings.home) as scratch:
            home = dataclasses.replace(settings, home=Path(scratch))
            shutil.copytree(settings.home / "state", home.home / "state")  # the variants' locks
            times["plain"].append(product(home, families, probe=False)[0])
            apparent, own = disk([environment.path for environment in EnvironmentStore(home).list()])
            emptied(home)
            times["first"].append(product(home, families, probe=True)[0])
            emptied(home)
            seconds, steps = product(home, families, probe=True)
            times["again"].append(seconds)
            hit = found(home, families)
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(describe())
    print(f"\nMedian of {rounds} rounds, three environments:\n")
    print("| | seconds | against bare uv |\n|---|---|---|")
    print(f"| bare uv venv + uv pip sync, in series | {medians['bare']:.2f} | 1 |")
    for key, label in (
        ("plain", "this project, installed and checked"),
        ("again", "and imported, byte code known"),
        ("first", "and imported, no byte code known yet"),
    ):
        print(f"| {label} | {medians[key]:.2f} | ×{medians[key] / medians['bare']:.2f} |")
    print("\nSteps of the last builds, seconds: " + "; ".join(str(step) for step in steps))
    print(f"\nAn environment that is there is found in {hit * 1e3:.1f} ms (median).")
    print(
        f"Disk: {own / 2**20:.0f} MiB of their own beside uv's cache; "
        f"{apparent / 2**20:.0f} MiB if each were a copy."
    )


if __name__ == "__main__":
    main()
