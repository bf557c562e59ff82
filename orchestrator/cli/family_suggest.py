"""`orchestrator family suggest`: the environment that a checkpoint needs, and why."""

from __future__ import annotations

from dataclasses import replace

import click

from orchestrator.checkpoints import CheckpointStore
from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.errors import CheckpointError
from orchestrator.pins import Suggestion
from orchestrator.pins import suggest as suggestion_for
from orchestrator.settings import Settings

__all__ = ["suggest"]


@click.command("suggest", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", metavar="ID_OR_FOLDER")
@json_option
@pass_console
def suggest(console: Console, checkpoint: str) -> None:
    """Say which family or pins a checkpoint needs, and why.

    Knows a checkpoint by its id (org/name) or, better, by its folder: config.json says what it is. Nothing is fetched
    and nothing is loaded; `tiny:STYLE` is made.
    """
    found = _found(checkpoint, console.settings)
    if console.json_output:
        console.json(found)
    elif console.quiet:
        console.data(found.label or " ".join(found.requirements))
    else:
        for line in _lines(found):
            console.data(line)


def _found(checkpoint: str, settings: Settings) -> Suggestion:
    """By the id's words, else by the files of what is on this machine."""
    catalog = Catalog.default(settings)
    try:
        return suggestion_for(checkpoint, catalog)
    except CheckpointError as unknown:
        store = CheckpointStore(replace(settings, offline=True), EnvironmentStore(settings), catalog)
        try:
            folder = store.resolve(checkpoint).path
        except CheckpointError as error:
            raise (error if checkpoint.startswith(("tiny:", ".", "/", "~")) else unknown) from None
        return replace(suggestion_for(folder, catalog), checkpoint=checkpoint)


def _lines(found: Suggestion) -> list[str]:
    lines = [f"family        {found.family or 'none of the families here'}"]
    if found.model_type:
        lines.append(f"model type    {found.model_type}")
    if found.environment:
        lines.append(f"environment   {', '.join(found.environment)}")
    elif found.requirements:
        lines.append(f"requirements  {' '.join(found.requirements)}")
    lines += [f"why           {reason}" for reason in found.why]
    lines.append(f"learned from  {found.source}")
    lines += [f"note          {note}" for note in found.notes]
    lines.append(f"use           {_use(found)}")
    return lines


def _use(found: Suggestion) -> str:
    """The command that follows from it."""
    overlay = "".join(f" --with '{requirement}'" for requirement in found.requirements)
    if found.family is None:
        return f"orchestrator call ./your_model.py:Class.method{overlay} …"
    trust = " --trust-remote-code" if found.own_code else ""
    return f"orchestrator call {found.family} METHOD --checkpoint {found.checkpoint}{overlay}{trust}"
