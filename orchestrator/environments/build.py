"""Building one environment in a folder beside its place: made, filled, checked, marked."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.utils import canonicalize_name

from orchestrator.environments import bytecode
from orchestrator.environments.borrow import take
from orchestrator.environments.environment import MARKER, site_packages
from orchestrator.environments.recipe import Recipe
from orchestrator.environments.records import write_json
from orchestrator.environments.uv import refusal, run_uv, uv_version
from orchestrator.events import Event, Listener
from orchestrator.settings import Settings

__all__ = ["build", "installed_versions", "timed"]

CLASH = re.compile(r"requires `([A-Za-z0-9._-]+)")
"""The distribution that a line of `uv pip check` is about."""


def build(settings: Settings, recipe: Recipe, folder: Path, listener: Listener) -> None:
    """Fills `folder` with the recipe's environment; its marker is written last.

    What was half done is left for the caller to remove. The import probe comes later.

    Raises:
        InstallError: a step failed; uv's own explanation is in its message and `log`.
    """
    timings: dict[str, float] = {}
    with timed(timings, "venv"):
        _make(settings, recipe, folder, listener)
    with timed(timings, "install"):
        listener(Event("environment", recipe.label, f"installing {recipe.requirements.count('==')} packages"))
        _install(settings, recipe, folder, listener)
        take(folder, recipe.borrowed)
    with timed(timings, "check"):
        _check(settings, recipe, folder, listener)
    with timed(timings, "bytecode"):
        bytecode.reuse(folder, settings.home / "bytecode")
    _mark(recipe, folder, timings)


def installed_versions(site: Path) -> dict[str, str]:
    """Distribution -> version, of everything in a `site-packages` folder."""
    parts = (info.name.removesuffix(".dist-info").rpartition("-") for info in site.glob("*.dist-info"))
    return dict(sorted((canonicalize_name(name), version) for name, _, version in parts))


def _make(settings: Settings, recipe: Recipe, folder: Path, listener: Listener) -> None:
    python = str(recipe.interpreter.path)
    done = run_uv(
        settings,
        ["venv", "--no-project", "--relocatable", "--python", python, str(folder)],
        listener=listener,
        subject=recipe.label,
    )
    if done.returncode != 0:
        raise refusal(f"{recipe.label}: no environment can be made with {python}", done)


def _install(settings: Settings, recipe: Recipe, folder: Path, listener: Listener) -> None:
    """From the cache alone first, which is quicker and asks nobody; from the indexes on a miss."""
    requirements = folder / "requirements.lock"
    requirements.write_text(recipe.requirements, encoding="utf-8")
    command = [
        "pip", "sync", "--require-hashes", f"--link-mode={recipe.link_mode}",
        "--python", str(folder / "bin" / "python"), str(requirements),
    ]  # fmt: skip
    for offline in (True, False):
        done = run_uv(
            settings,
            [*command, "--quiet"] if offline and not settings.offline else command,
            offline=offline,
            listener=listener,
            subject=recipe.label,
        )
        if done.returncode == 0:
            return
        if settings.offline:
            break
    raise refusal(f"{recipe.label} cannot be installed", done)


def _check(settings: Settings, recipe: Recipe, folder: Path, listener: Listener) -> None:
    done = run_uv(
        settings,
        ["pip", "check", "--python", str(folder / "bin" / "python")],
        listener=listener,
        subject=recipe.label,
    )
    clashes = CLASH.findall(done.stderr + done.stdout)
    if done.returncode != 0 and not (
        clashes and {canonicalize_name(name) for name in clashes} <= set(recipe.overridden)
    ):
        raise refusal(f"{recipe.label}: what was installed does not fit together", done)


def _mark(recipe: Recipe, folder: Path, timings: dict[str, float]) -> None:
    record = {
        "id": recipe.id,
        "versions": installed_versions(site_packages(folder)),
        "created": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        "uv": uv_version(),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        "recipe": recipe.record(),
    }
    write_json(folder / MARKER, record)


@contextmanager
def timed(timings: dict[str, float], step: str) -> Iterator[None]:
    """Writes down the seconds that the block takes."""
    started = time.perf_counter()
    yield
    timings[step] = time.perf_counter() - started
