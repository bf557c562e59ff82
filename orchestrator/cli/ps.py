"""`orchestrator ps`: what runs on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.running import RunningCoordinator, running

__all__ = ["command"]

COLUMNS = (
    "name",
    "family",
    "environment",
    "state",
    "pid",
    "device",
    "memory",
    "queue",
    "restarts",
    "idle",
    "error",
)


@click.command("ps")
@click.option("--watch", is_flag=True, help="Refresh every two seconds until Ctrl-C.")
@json_option
@pass_console
def command(console: Console, watch: bool) -> None:
    """List the running models of every orchestrator process of this user.

    With --json --watch: one JSON value a line.
    """
    if not watch:
        _show(console, running(console.settings))
        return
    try:
        while True:
            if not console.json_output:
                click.clear()  # does nothing where stdout is no terminal
            _show(console, running(console.settings), indent=None)
            time.sleep(2)
    except KeyboardInterrupt:  # the way to end a watch
        return


def _show(console: Console, coordinators: list[RunningCoordinator], indent: int | None = 2) -> None:
    if console.json_output:
        records = [{"pid": c.pid, "command": c.command, "deployments": c.deployments} for c in coordinators]
        console.json(records, indent=indent)
    elif console.quiet:
        for coordinator in coordinators:
            for deployment in coordinator.deployments:
                console.data(deployment["name"])
    else:
        console.table(COLUMNS, [row for coordinator in coordinators for row in _rows(coordinator)])


def _rows(coordinator: RunningCoordinator) -> list[list[Any]]:
    return [
        _row(deployment, replica)
        for deployment in coordinator.deployments
        for replica in deployment["replicas"]
    ]


def _row(deployment: Mapping[str, Any], replica: Mapping[str, Any]) -> list[Any]:
    memory = replica["memory"]
    return [
        replica["name"],
        deployment["family"],
        deployment["environment"],
        replica["state"],
        replica["pid"] or "-",
        replica["device"] or "-",
        "-" if memory is None else f"{memory / 2**20:.0f} MiB",
        deployment["queued"] + replica["in_flight"],
        replica["restarts"],
        f"{deployment['idle_seconds']:.0f} s",
        replica["last_error"] or "",
    ]
