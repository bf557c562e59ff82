"""The entry point: a group that imports a subcommand's module only when it is asked for."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from typing import Any

import click

from orchestrator import __version__
from orchestrator.cli.console import Console, ConsoleHandler, JsonRecords
from orchestrator.errors import OrchestratorError

__all__ = ["cli", "main"]

COMMANDS = {
    "bisect": "Find the first version at which a call changes or breaks.",
    "call": "Call one method of one model.",
    "checkpoint": "Fetch, import, inspect and make checkpoints.",
    "devices": "Show the devices and their memory.",
    "doctor": "Show interpreters, indexes, hubs, devices and what is wrong with them.",
    "env": "Make, check and remove environments.",
    "family": "List and show the families.",
    "graph": "Draw a workflow.",
    "matrix": "Run the same calls over versions and compare.",
    "logs": "Show what a worker wrote.",
    "place": "Show where a model would be placed.",
    "ps": "List running models.",
    "run": "Run a workflow.",
    "schema": "Print the JSON Schema of a file format.",
    "stop": "Stop running models.",
}


class LazyGroup(click.Group):
    """Subcommands by name; `orchestrator/cli/<name>.py` exports `command`."""

    # ruff: noqa: ARG002 - click hands its context to every hook

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"orchestrator.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            tail = f" Did you mean {near[0]!r}?" if near else " See 'orchestrator --help'."
            raise click.UsageError(f"no command {args[0]!r}.{tail}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="orchestrator")
@click.option("-q", "--quiet", is_flag=True, help="No talk, no progress: data only.")
@click.option("-v", "--verbose", count=True, help="More words; twice for debug records.")
@click.option("--home", type=click.Path(), help="Where environments and checkpoints are kept.")
@click.option(
    "--project", type=click.Path(exists=True, file_okay=False), help="The folder with envs/ and workers/."
)
@click.option("--offline", is_flag=True, default=None, help="Never ask an index or a hub.")
@click.pass_context
def cli(ctx: click.Context, /, quiet: bool, verbose: int, **overrides: Any) -> None:
    """Run models whose dependencies cannot share an environment in one program."""
    ctx.obj = Console(quiet=quiet, verbose=verbose, overrides=overrides)
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    handler = ConsoleHandler(ctx.obj)
    if os.environ.get("ORCHESTRATOR_LOG_FORMAT") == "json":
        handler.setFormatter(JsonRecords())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def main() -> None:
    """Runs the command line and ends the process with the documented exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _terminate)
    try:
        # Without standalone mode click returns the code of `Exit` instead of raising it.
        result = cli.main(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:  # `orchestrator … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _failure(error)
    sys.exit(code)


def _failure(error: Exception) -> int:
    """Says what went wrong, in words; the traceback is for those who ask for it."""
    logging.getLogger(__name__).debug("the traceback", exc_info=error)
    if isinstance(error, OrchestratorError):
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    if isinstance(error, OSError):
        click.echo(f"error: {error}", err=True)
        return 1
    click.echo(f"error: {type(error).__name__}: {error}", err=True)
    click.echo(
        "hint: this is a fault of the orchestrator; 'orchestrator -vv …' shows where it happened", err=True
    )
    return 1


def _terminate(signum: int, _: object) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    main()
