"""`orchestrator stop NAME…`: ends running models."""

from __future__ import annotations

import time

import click

from orchestrator.cli.console import Console, pass_console
from orchestrator.errors import ConfigError, WorkerError
from orchestrator.running import running

__all__ = ["command"]


@click.command("stop")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Stop every running model.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait until they are gone.")
@pass_console
def command(console: Console, names: tuple[str, ...], everything: bool, timeout: float) -> None:
    """Stop running models by NAME (see `orchestrator ps`).

    Queued calls are refused, running ones may finish for as long as the setting `stop_grace` says.
    """
    known = {deployment["name"] for c in running(console.settings) for deployment in c.deployments}
    wanted = known if everything else set(names)
    if not everything and not names:
        raise ConfigError("no NAME given", hint="name models, or --all; `orchestrator ps` lists them")
    if missing := sorted(wanted - known):
        raise ConfigError(f"no running model is named {missing[0]!r}", hint="`orchestrator ps` lists them")
    for coordinator in running(console.settings):
        for deployment in coordinator.deployments:
            if deployment["name"] in wanted:
                coordinator.request_stop(deployment["name"])
    end = time.monotonic() + timeout
    while left := wanted & {d["name"] for c in running(console.settings) for d in c.deployments}:
        if time.monotonic() > end:
            raise WorkerError(f"still running after {timeout:g} s: {', '.join(sorted(left))}")
        time.sleep(0.1)
    for name in sorted(wanted):
        console.talk(f"stopped {name}")
