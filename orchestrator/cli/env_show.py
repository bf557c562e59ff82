"""`orchestrator env list` and `show`: the environments that are installed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.cli.env_common import WITH, one, record, size_text
from orchestrator.environments import EnvironmentStore

__all__ = ["COMMANDS"]


@click.command("list")
@json_option
@pass_console
def list_(console: Console) -> None:
    """List the environments that are installed, the last used one first."""
    from orchestrator.environments.sizes import scan

    store = EnvironmentStore(console.settings)
    environments = store.list()
    if console.quiet:
        for environment in environments:
            console.data(environment.id)
        return
    sizes = {environment.id: scan([environment.path]).size() for environment in environments}
    if console.json_output:
        console.json(
            [
                {**record(store, e), "bytes": sizes[e.id].total, "own_bytes": sizes[e.id].own}
                for e in environments
            ]
        )
        return
    console.table(
        ("id", "families", "python", "torch", "size", "own", "last used"),
        [
            (
                e.id,
                ", ".join(store.families_of(e.id)) or e.family,
                e.python_version,
                e.versions.get("torch", "-"),
                size_text(sizes[e.id].total),
                size_text(sizes[e.id].own),
                _ago(store.last_used(e.id)),
            )
            for e in environments
        ],
    )


@click.command("show")
@click.argument("environment")
@WITH
@json_option
@pass_console
def show(console: Console, environment: str, with_: Sequence[str]) -> None:
    """Show what is in an environment: versions, where it is, how its build went."""
    from orchestrator.environments.sizes import scan

    store = EnvironmentStore(console.settings)
    found = one(console, store, environment, with_)
    size = scan([found.path]).size()
    facts = {**record(store, found), "bytes": size.total, "own_bytes": size.own}
    if console.json_output:
        console.json(facts)
        return
    for key in ("id", "families", "path", "python", "python_version", "torch_backend", "created"):
        value = facts[key]
        console.data(f"{key.replace('_', ' '):<15} {', '.join(value) if isinstance(value, tuple) else value}")
    console.data(
        f"{'size':<15} {size_text(size.total)}, of it {size_text(size.own)} its own, the rest shared"
    )
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in found.timings.items())
    console.data(f"{'build':<15} {steps}")
    console.data("")
    console.table(("package", "version"), list(found.versions.items()))


def _ago(moment: float) -> str:
    seconds = time.time() - moment
    if not moment:
        return "never"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


COMMANDS = (list_, show)
