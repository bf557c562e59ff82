"""The entry point: a group that imports a subcommand's module only when it is asked for."""

from __future__ import annotations

import copy
import errno
import importlib
import io
import logging
import os
import select
import signal
import sys
from typing import Any

import click

from orchestrator import __version__
from orchestrator.cli.console import Console, ConsoleHandler, JsonRecords
from orchestrator.errors import OrchestratorError, RemoteError

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


_RIGHTS = "get the rights to it, or name another place; --home (ORCHESTRATOR_HOME) moves the store"
_ROOM = "make room there; `orchestrator env prune` removes environments that are not used"
REMEDIES = {
    errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS, errno.EROFS: _RIGHTS,
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM,
    errno.EMFILE: "raise `ulimit -n`",
}  # fmt: skip
"""What to do where the operating system refuses something."""


class LazyGroup(click.Group):
    """Subcommands by name; `orchestrator/cli/<name>.py` exports `command`."""

    # ruff: noqa: ARG002 - click hands its context to every hook

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"orchestrator.cli.{cmd_name}").command
        _take_general_options(command, ctx)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Click would make every broken pipe a silent exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if not _reader_is_gone(sys.stdout.fileno()):
                raise RuntimeError(f"a pipe broke: {error}") from error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0  # `orchestrator … | head` has what it wanted
        except OrchestratorError as error:
            if error.hint:
                error.hint = ctx.ensure_object(Console).in_its_words(error.hint)
            raise

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


GENERAL = (
    click.Option(["-q", "--quiet"], is_flag=True, help="No talk, no progress: data only."),
    click.Option(["-v", "--verbose"], count=True, help="More words; twice for debug records."),
    click.Option(["--home"], type=click.Path(), help="Where environments and checkpoints are kept."),
    click.Option(
        ["--project"],
        type=click.Path(exists=True, file_okay=False),
        help="The folder with envs/ and workers/.",
    ),
    click.Option(["--offline"], is_flag=True, help="Never ask an index or a hub."),
)
"""What every command takes, before its name and after it; help shows it once."""


def _take_general_options(command: click.Command, ctx: click.Context) -> None:
    if any(param.name == "quiet" for param in command.params):
        return  # a second invocation in one process
    for option in GENERAL:
        command.params.append(late := copy.copy(option))
        late.hidden, late.expose_value, late.callback = True, False, _set_late
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None
            _take_general_options(child, ctx)


def _set_late(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    if value:
        assert option.name is not None
        ctx.ensure_object(Console).set(option.name, value)


def _misplaced(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        raise click.UsageError("--json stands after the command: orchestrator ps --json", ctx)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, params=list(GENERAL))
@click.version_option(__version__, "-V", "--version", prog_name="orchestrator")
@click.option("--json", is_flag=True, hidden=True, expose_value=False, callback=_misplaced)
@click.pass_context
def cli(ctx: click.Context, /, **general: Any) -> None:
    """Run models whose dependencies cannot share an environment in one program.

    The options here may also stand after a command.
    """
    ctx.obj = Console()
    handler = ConsoleHandler(ctx.obj)
    if os.environ.get("ORCHESTRATOR_LOG_FORMAT") == "json":
        handler.setFormatter(JsonRecords())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name, value in general.items():
        if value:
            ctx.obj.set(name, value)


def main() -> None:
    """Runs the command line and ends the process with the documented exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _terminate)
    _mend_streams()
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
    except Exception as error:
        code = _failure(error)
    sys.exit(code)


def _mend_streams() -> None:
    """Standard streams that the caller closed become /dev/null, before a socket gets their number; characters that an
    encoding does not have are escaped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
        elif number and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _reader_is_gone(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _failure(error: Exception) -> int:
    """Says what went wrong, in words; the traceback is for those who ask for it."""
    logging.getLogger(__name__).debug("the traceback", exc_info=error)
    if isinstance(error, OrchestratorError):
        click.echo(f"error: {error}", err=True)
        if isinstance(error, RemoteError) and not logging.getLogger().isEnabledFor(logging.DEBUG):
            click.echo("(`orchestrator -vv …` shows where in the worker)", err=True)
        return error.exit_code
    if isinstance(error, FileNotFoundError) and _current_folder_is_gone():
        click.echo("error: the current folder has been removed; change to one that exists", err=True)
        return 2
    if isinstance(error, OSError):
        words = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part is not None)
        click.echo(f"error: {words}", err=True)
        if error.errno in REMEDIES:
            click.echo(f"hint: {REMEDIES[error.errno]}", err=True)
        return 1
    click.echo(f"error: {type(error).__name__}: {error}", err=True)
    click.echo(
        "hint: this is a fault of the orchestrator; 'orchestrator -vv …' shows where it happened", err=True
    )
    return 1


def _current_folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _terminate(signum: int, _: object) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    main()
