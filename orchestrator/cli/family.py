"""`orchestrator family`: which families there are and what each declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.cli.family_suggest import suggest
from orchestrator.cli.self_tests import COLUMNS, cells, self_tests
from orchestrator.environments import Catalog, EnvironmentStore, Family
from orchestrator.environments.catalog import builtin_root
from orchestrator.environments.lock import is_stale
from orchestrator.errors import ConfigError
from orchestrator.worker.masking import is_secret

__all__ = ["command"]


@click.group("family", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List and show the families.

    A family is a folder envs/NAME (what it needs) and a file workers/NAME.py (what it does); those of the current
    project go before the built-in ones.
    """


command.add_command(suggest)


@command.command("list")
@json_option
@pass_console
def list_(console: Console) -> None:
    """List every family that can be loaded here."""
    catalog = Catalog.default(console.settings)
    broken: list[ConfigError] = []
    families: list[Family] = []
    for name in catalog.names():
        try:
            families.append(catalog.get(name))
        except ConfigError as error:
            broken.append(error)
    if console.json_output:
        console.json([_record(family) for family in families])
    elif console.quiet:
        for family in families:
            console.data(family.name)
    else:
        console.table(
            ("family", "from", "python", "description"),
            [(f.name, _origin(f), f.requires_python, f.description) for f in families],
        )
    for wrong in broken[:-1]:
        console.failure(wrong)
    if broken:
        raise broken[-1]


@command.command("show")
@click.argument("name", metavar="FAMILY")
@click.option("--with", "with_", multiple=True, metavar="REQUIREMENT", help="As for `env ensure`.")
@json_option
@pass_console
def show(console: Console, name: str, with_: Sequence[str]) -> None:
    """Show what a family declares, and whether it is locked and installed."""
    family = Catalog.default(console.settings).get(name, with_)
    installed = EnvironmentStore(console.settings).find(family)
    record = {
        **_record(family),
        "lock": _lock(family),
        "environment": installed.id if installed else None,
    }
    if console.json_output:
        console.json(record)
        return
    for key, value in record.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{k} = {v!r}" for k, v in value.items())
        if shown not in ("", None):
            console.data(f"{key.replace('_', ' '):<20} {shown}")


@command.command("check")
@click.argument("names", nargs=-1, metavar="FAMILY...")
@click.option("--with", "with_", multiple=True, metavar="REQUIREMENT", help="As for `env ensure`.")
@click.option("--all", "everything", is_flag=True, help="Check every family.")
@json_option
@pass_console
def check(console: Console, names: Sequence[str], with_: Sequence[str], everything: bool) -> None:
    """Run families' self-tests: a tiny seeded checkpoint, one forward, numbers held against recorded ones.

    An environment that resolves can still fail at import or answer wrongly. Exit code 1 when a test fails.
    """
    catalog = Catalog.default(console.settings)
    wanted = catalog.names() if everything else [catalog.get(name, with_).label for name in names]
    if not wanted:
        raise ConfigError(
            "no FAMILY given", hint="name families, or --all; `orchestrator family list` lists them"
        )
    results = self_tests(console, wanted, with_)
    if console.json_output:
        console.json(results)
    else:
        console.table(COLUMNS, [cells(result) for result in results])
    raise click.exceptions.Exit(0 if all(result["ok"] for result in results) else 1)


def _lock(family: Family) -> str:
    if family.is_variant or family.name != family.folder.name:  # or a file of the user's
        return "its own, in the store: `env ensure` makes it"
    return is_stale(family) or "up to date"


def _record(family: Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "label": family.label,
        "description": family.description,
        "from": _origin(family),
        "folder": str(family.folder),
        "worker": f"{family.worker_file}:{family.worker_class}".rstrip(":"),
        "requires_python": family.requires_python,
        "requirements": list(family.direct),
        "constraints": list(family.all_constraints),
        "extras": {name: list(texts) for name, texts in family.optional_dependencies.items()},
        "checkpoints": list(family.checkpoints),
        "defaults": dict(family.defaults),
        "environment_variables": {
            name: "****" if is_secret(name) and not value.startswith("${") else value
            for name, value in family.environment.items()
        },
        "trust_remote_code": family.trust_remote_code,
        "sandbox": family.sandbox,
    }


def _origin(family: Family) -> str:
    return "built-in" if family.folder.is_relative_to(builtin_root()) else str(family.folder.parent.parent)
