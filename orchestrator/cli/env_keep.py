"""`orchestrator env verify`, `repair` and `prune`: what is installed stays whole, and goes when nobody wants it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.cli.env_common import WITH, record, several, size_text
from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.events import Event

__all__ = ["COMMANDS"]

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
SIZES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@click.command("verify")
@click.argument("environments", metavar="[ENVIRONMENT]...", nargs=-1)
@WITH
@click.option("--all", "everything", is_flag=True, help="Every environment that is installed.")
@click.option("--no-probe", is_flag=True, help="Check the files only.")
@json_option
@pass_console
def verify(
    console: Console, environments: Sequence[str], with_: Sequence[str], everything: bool, no_probe: bool
) -> None:
    """Check every installed file against its hash, then import what the family needs. Exit 1 if anything is wrong."""
    store = EnvironmentStore(console.settings)
    results = []
    with console.progress() as listener:
        for environment in several(console, store, environments, everything, with_):
            results.append(store.verify(environment, listener, probe=not no_probe))
            listener(Event("environment", environment.family, "verified", finished=True))
    if console.json_output:
        console.json(results)
    for result in () if console.json_output else results:
        words = "ok" if result.ok else f"{len(result.faults)} damaged files"
        volume = f"{result.files} files, {size_text(result.bytes)}, {result.seconds:.1f} s"
        console.data(f"{result.environment.id}  {result.environment.family}: {words} ({volume})")
        for fault in result.faults:
            tail = " (a hard link: uv's cache has the same damage)" if fault.shared else ""
            console.data(f"  {fault.kind}: {fault.file} of {fault.distribution}{tail}")
        if result.probe_error:
            console.data(f"  {result.probe_error}")
    if not all(result.ok for result in results):
        console.talk("`orchestrator env repair` rebuilds")
        raise click.exceptions.Exit(1)


@click.command("repair")
@click.argument("environments", metavar="ENVIRONMENT...", nargs=-1)
@WITH
@click.option("--all", "everything", is_flag=True, help="Every environment that is installed.")
@json_option
@pass_console
def repair(console: Console, environments: Sequence[str], with_: Sequence[str], everything: bool) -> None:
    """Build environments again, from fresh files where the cached ones are damaged."""
    store = EnvironmentStore(console.settings)
    with console.progress() as listener:
        done = [store.repair(e, listener) for e in several(console, store, environments, everything, with_)]
    if console.json_output:
        console.json([record(store, environment) for environment in done])
    else:
        for environment in done:
            console.data(environment.id)


@click.command("prune")
@click.option("--older-than", metavar="TIME", help="Not used for so long: 30d, 12h.")
@click.option(
    "--max-size", metavar="SIZE", help="The least recently used beyond so much disk of their own: 20G."
)
@click.option("--unwanted", is_flag=True, help="Those that no family of the catalog would choose today.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and what that frees.")
@json_option
@pass_console
def prune(
    console: Console, older_than: str | None, max_size: str | None, unwanted: bool, dry_run: bool
) -> None:
    """Remove environments. Without an option: what killed builds left behind.

    What processes run in stays. Files that uv's cache has too are not counted as freed.
    """
    pruned = EnvironmentStore(console.settings).prune(
        Catalog.default(console.settings) if unwanted else None,
        older_than=_measure(older_than, UNITS, "--older-than", "30d"),
        max_bytes=_whole(_measure(max_size, SIZES, "--max-size", "20G")),
        dry_run=dry_run,
    )
    if console.json_output:
        console.json(pruned)
        return
    rows = [
        (
            c.environment.id,
            c.environment.family,
            size_text(c.size.own),
            f"kept: in use by {', '.join(map(str, c.held_by))}" if c.held_by else c.reason,
        )
        for c in pruned.candidates
    ]
    if rows:
        console.table(("id", "family", "own", "reason"), rows)
    verb = "would free" if dry_run else "freed"
    console.talk(f"{verb} {size_text(pruned.freed)}; unfinished builds: {len(pruned.leftovers)}")


def _measure(
    text: str | None, units: dict[str, float] | dict[str, int], option: str, example: str
) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]?)i?B?\s*", text)
    unit = found[2] if found else "?"
    for known in (unit, unit.upper(), unit.lower()):
        if found and (known in units or float(found[1]) == 0):
            return float(found[1]) * units.get(known, 0)
    raise click.BadParameter(f"{text!r} cannot be read; write for example {example}", param_hint=option)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


COMMANDS = (verify, repair, prune)
