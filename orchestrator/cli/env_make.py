"""`orchestrator env plan`, `lock` and `ensure`: from what families declare to environments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.cli.env_common import WITH, families_of, record
from orchestrator.cli.self_tests import COLUMNS, cells, self_tests
from orchestrator.environments import Environment, EnvironmentStore, Family
from orchestrator.environments.script import script_target
from orchestrator.errors import ConfigError, ProvisioningError
from orchestrator.events import Event, Listener

__all__ = ["COMMANDS"]


@click.command("plan")
@click.argument("names", metavar="FAMILY...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every family of the catalog.")
@click.option("--refresh", is_flag=True, help="Ask the index again; its answers are remembered for a day.")
@json_option
@pass_console
def plan(console: Console, names: Sequence[str], everything: bool, refresh: bool) -> None:
    """Say which families can share an environment, before anything is installed.

    Prints the smallest set of environments that serves all, and for each clash the two chains of requirements.
    """
    from orchestrator.environments.plan import make_plan

    families = families_of(console, names, everything)
    with console.progress() as listener:
        made = make_plan(console.settings, families, listener, refresh=refresh)
    if console.json_output:
        console.json(made)
        return
    smallest = "" if made.exact else " (a good split; with so many families not proven to be the smallest)"
    served = f"{len(families)} {'family' if len(families) == 1 else 'families'}"
    several = "" if len(made.environments) == 1 else "s"
    console.data(f"{served}, {len(made.environments)} environment{several}{smallest}")
    for number, environment in enumerate(made.environments, 1):
        console.data(f"  {number}. Python {environment.python}: {', '.join(environment.families)}")
    for clash in made.clashes:
        console.data(f"\n{clash}")
        if console.verbose and clash.chains:
            console.data(clash.words)
    if made.clashes and not console.verbose:
        console.talk("(`orchestrator -v env plan …` adds uv's own words)")


@click.command("lock")
@click.argument("names", metavar="[FAMILY]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every family of the catalog.")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a lock is stale.")
@click.option("--upgrade", is_flag=True, help="Do not keep the versions that the present lock has.")
@json_option
@pass_console
def lock(console: Console, names: Sequence[str], everything: bool, check: bool, upgrade: bool) -> None:
    """Resolve families and write their requirements.lock.

    The lock holds everything but torch's own packages, pinned and with hashes, and names no index or folder, so
    that it is valid on other machines.
    """
    if file := next((name for name in names if script_target(name)), None):
        raise ConfigError(
            f"{file} is a file, not a family: its lock is made by `env ensure` and kept in the store",
            hint=f"orchestrator env ensure {file}",
        )
    families = families_of(console, names, everything)
    if check:
        _check_locks(console, families)
        return
    for family in families:
        if not os.access(family.lock_file.parent, os.W_OK):
            raise ConfigError(
                f"{family.lock_file} cannot be written",
                hint="copy the family into envs/ of a project of yours, or get the rights to its folder",
            )
    with console.progress() as listener:
        written = [_lock(console, family, upgrade, listener) for family in families]
    if console.json_output:
        console.json(written)
    else:
        for path in written:
            console.data(str(path))


@click.command("ensure")
@click.argument("names", metavar="FAMILY...", nargs=-1)
@WITH
@click.option("--all", "everything", is_flag=True, help="Every family of the catalog.")
@click.option("--retry", is_flag=True, help="Try again what is on record as impossible.")
@click.option(
    "--print-python", is_flag=True, help="Print the path of each environment's Python, and nothing else."
)
@click.option(
    "--check",
    is_flag=True,
    help="Then run the families' self-tests: an environment can resolve and be wrong.",
)
@json_option
@pass_console
def ensure(
    console: Console,
    names: Sequence[str],
    with_: Sequence[str],
    everything: bool,
    retry: bool,
    print_python: bool,
    check: bool,
) -> None:
    """Build the environments of families, several at once; those that are there already cost nothing."""
    families = families_of(console, names, everything, with_)
    store = EnvironmentStore(console.settings)
    with console.progress() as listener:
        results = store.ensure_all(families, listener, retry=retry)
    ready = [result for result in results if isinstance(result, Environment)]
    failed = [result for result in results if isinstance(result, ProvisioningError)]
    names = [f.name for f, result in zip(families, results, strict=True) if isinstance(result, Environment)]
    tested = self_tests(console, names, with_) if check else []
    if console.json_output:
        records = [record(store, environment) for environment in ready]
        for told, test in zip(records, tested, strict=check):
            told["self_test"] = test
        console.json(records)
    elif print_python or console.quiet:
        for environment in ready:
            console.data(str(environment.python))
    elif ready:
        console.table(
            ("family", "id", "python", "path"), [(e.family, e.id, e.python_version, e.path) for e in ready]
        )
        if check:
            console.table(COLUMNS, [cells(test) for test in tested])
    for error in failed[:-1]:
        console.failure(error)
    if failed:
        raise failed[-1]
    if not all(test["ok"] for test in tested):
        raise click.exceptions.Exit(1)


def _lock(console: Console, family: Family, upgrade: bool, listener: Listener) -> Path:
    from orchestrator.environments.interpreters import find_interpreter
    from orchestrator.environments.lock import make_lock, read_lock
    from orchestrator.environments.records import write_text

    if family.is_variant:
        raise ConfigError(
            f"{family.label} is a variant: its lock is made by `env ensure` and kept in the store",
            hint=f"to lock the plain family: orchestrator env lock {family.name}",
        )
    known = read_lock(family.lock_file)
    interpreter = find_interpreter(
        console.settings, family.requires_python, minor=known.minor if known else None, subject=family.label
    )
    preferred = None if upgrade else known
    made = make_lock(
        console.settings, family, interpreter, preferred=preferred, portable=True, listener=listener
    )
    write_text(family.lock_file, made.text)
    words = f"locked {len(made.blocks)} packages for Python {made.minor}"
    listener(Event("environment", family.label, words, finished=True))
    return family.lock_file


def _check_locks(console: Console, families: Sequence[Family]) -> None:
    from orchestrator.environments.lock import is_stale

    reasons = {family.name: is_stale(family) for family in families}
    if console.json_output:
        console.json(
            [
                {"family": name, "stale": reason is not None, "reason": reason}
                for name, reason in reasons.items()
            ]
        )
    else:
        for name, reason in reasons.items():
            console.data(f"{name}: {'stale: ' + reason if reason else 'up to date'}")
    if any(reasons.values()):
        console.talk("`orchestrator env lock FAMILY` makes it anew")
        raise click.exceptions.Exit(1)


COMMANDS = (plan, lock, ensure)
