"""`orchestrator devices`: what the machine has, what is free and who holds the rest."""

from __future__ import annotations

import time
from typing import Any

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.devices import Device, Inventory, format_size
from orchestrator.placement import Ledger

__all__ = ["command"]


@click.command("devices")
@click.option("--watch", is_flag=True, help="Show again every few seconds, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds.")
@json_option
@pass_console
def command(console: Console, watch: bool, interval: float) -> None:
    """Show the devices and their memory: accelerators first, then the CPU with its RAM.

    FREE is what a new model may count on: what other processes use and what running deployments have
    reserved is taken off. With --json --watch: one JSON value a line.
    """
    ledger = Ledger(console.settings)
    if not watch:
        _show(console, ledger.free(Inventory.detect()))
        return
    try:
        while True:
            inventory = ledger.free(Inventory.detect())
            if console.json_output:
                console.json(_described(inventory), indent=None)
            else:
                click.clear()  # does nothing where stdout is no terminal
                _show(console, inventory)
            time.sleep(interval)
    except KeyboardInterrupt:  # the way to end a watch
        return


def _show(console: Console, inventory: Inventory) -> None:
    if console.json_output:
        console.json(_described(inventory))
        return
    console.table(
        ("device", "name", "free", "total", "held by", "uuid"),
        (
            (d.label, d.name, format_size(d.free), format_size(d.total), _holders(d), d.uuid)
            for d in inventory.devices
        ),
    )
    for note in inventory.notes:
        console.talk(note)


def _holders(device: Device) -> str:
    return ", ".join(f"{h.name} {format_size(h.size) if h.size else '?'}" for h in device.holders)


def _described(inventory: Inventory) -> dict[str, Any]:
    return {
        "devices": [
            {"label": d.label, **vars(d), "holders": [vars(h) for h in d.holders]} for d in inventory.devices
        ],
        "cores": inventory.cores,
        "notes": list(inventory.notes),
    }
