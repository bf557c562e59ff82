"""`orchestrator env`: make, check and remove environments."""

from __future__ import annotations

import click

from orchestrator.cli import env_keep, env_make, env_show

__all__ = ["command"]


@click.group("env", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Make, check and remove environments.

    FAMILY is a name that `orchestrator family list` shows, or a label with overlays:
    'sentence-embedding[transformers==4.39.3]'. ENVIRONMENT is an id of `orchestrator env list`, or the beginning
    of one, or a FAMILY.
    """


for subcommand in (*env_show.COMMANDS, *env_make.COMMANDS, *env_keep.COMMANDS):
    command.add_command(subcommand)
