"""What the commands of `orchestrator env` share: which families and environments are meant, and how one is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from orchestrator.cli.console import Console
from orchestrator.environments import Catalog, Environment, EnvironmentStore, Family
from orchestrator.errors import ConfigError

__all__ = ["WITH", "families_of", "one", "record", "several", "size_text"]

WITH = click.option(
    "--with",
    "with_",
    multiple=True,
    metavar="REQUIREMENT",
    help="Replace or add a requirement, as pip writes it: transformers==4.39.3. Repeatable.",
)


def families_of(
    console: Console, names: Sequence[str], everything: bool, with_: Sequence[str] = ()
) -> list[Family]:
    """The families that a command is about.

    Raises:
        click.UsageError: none was named.
    """
    catalog = Catalog.default(console.settings)
    if everything:
        names = catalog.names()
    if not names:
        raise click.UsageError("name a FAMILY, or give --all")
    return [catalog.get(name, with_) for name in names]


def one(console: Console, store: EnvironmentStore, name: str, with_: Sequence[str]) -> Environment:
    """The installed environment with this id, or of this family.

    Raises:
        ConfigError: there is none.
    """
    if not with_:
        found = store.get(name)
        if found is not None:
            return found
        if same := [environment.id for environment in store.list() if environment.id.startswith(name)]:
            raise ConfigError(f"{name!r} is the beginning of {len(same)} ids", hint=", ".join(same))
    catalog = Catalog.default(console.settings)
    if re.fullmatch("[0-9a-f]{4,}", name) and name not in catalog.names():
        raise ConfigError(
            f"no environment's id begins with {name!r}", hint="`orchestrator env list` lists them"
        )
    family = catalog.get(name, with_)
    found = store.find(family)
    if found is None:
        raise ConfigError(
            f"{family.label} is not installed", hint=f"orchestrator env ensure '{family.label}'"
        )
    return found


def several(
    console: Console, store: EnvironmentStore, names: Sequence[str], everything: bool, with_: Sequence[str]
) -> list[Environment]:
    """The installed environments that a command is about.

    Raises:
        click.UsageError: none was named. ConfigError: one of them is not installed.
    """
    if everything:
        return store.list()
    if not names:
        raise click.UsageError("name an ENVIRONMENT, or give --all")
    return [one(console, store, name, with_) for name in names]


def record(store: EnvironmentStore, environment: Environment) -> dict[str, Any]:
    """An environment as JSON-like values."""
    return {
        "id": environment.id,
        "family": environment.family,
        "families": store.families_of(environment.id),
        "path": str(environment.path),
        "python": str(environment.python),
        "python_version": environment.python_version,
        "torch_backend": environment.torch_backend,
        "created": environment.created,
        "last_used": store.last_used(environment.id),
        "timings": dict(environment.timings),
        "versions": dict(environment.versions),
    }


def size_text(size: float) -> str:
    """`935 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
