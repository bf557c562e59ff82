"""How commands talk: data to stdout, talk and progress to stderr."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.errors import OrchestratorError
from orchestrator.events import Event, Listener
from orchestrator.settings import Settings, load_settings

if TYPE_CHECKING:
    from orchestrator.cli.live import LiveProgress

__all__ = ["TROUBLE", "Console", "ConsoleHandler", "JsonRecords", "OutFile", "json_option", "pass_console"]

TROUBLE = ("backoff", "quarantined")
"""The states of a worker that are shown without `-v`; of the others the stages `worker` and `load` tell."""


class Console:
    """One per invocation of the command line; commands get it by `@pass_console`."""

    def __init__(self, overrides: Mapping[str, Any] | None = None) -> None:
        self.quiet = False
        self.verbose = 0
        self.overrides = dict(overrides or {})
        self.json_output = False
        self.command: click.Command | None = None
        self._live: LiveProgress | None = None

    def set(self, option: str, value: Any) -> None:
        """Takes one of the options that every command has; `home`, `project` and `offline` before `settings` is read."""
        if option == "quiet":
            self.quiet = True
        elif option == "verbose":
            self.verbose += value
            logging.getLogger().setLevel(logging.INFO if self.verbose == 1 else logging.DEBUG)
        else:
            self.overrides[option] = value

    @cached_property
    def settings(self) -> Settings:
        """The settings in force, read when first asked for."""
        project = self.overrides.get("project")
        return load_settings(
            {k: v for k, v in self.overrides.items() if k != "project"},
            project=Path(project) if project else None,
        )

    def data(self, text: str, *, end: str = "\n") -> None:
        """Writes to stdout. Live progress ends with the first word: its redrawing would wipe out what follows."""
        if self._live is not None:
            self._live.end()
        click.echo(text + end, nl=False)

    def json(self, value: Any, *, indent: int | None = 2) -> None:
        """Writes a value as JSON to stdout; dataclasses, paths, dates and numpy values are converted, NaN and infinity
        are null."""
        try:
            text = json.dumps(value, indent=indent, ensure_ascii=False, default=_plain, allow_nan=False)
        except ValueError:
            plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
            text = json.dumps(plain, indent=indent, ensure_ascii=False)
        self.data(text)

    def talk(self, text: str) -> None:
        """Writes a line for people to stderr, unless `-q`."""
        if not self.quiet:
            self.error(text)

    def in_its_words(self, hint: str) -> str:
        """A hint with the keywords of Python as what the command that runs takes in their place."""
        from orchestrator.cli.wording import in_words_of

        return in_words_of(self.command, hint)

    def failure(self, error: OrchestratorError) -> None:
        """Writes an error to stderr, its hint in the words of the command line."""
        if error.hint:
            error.hint = self.in_its_words(error.hint)
        self.error(f"error: {error}")

    def error(self, text: str) -> None:
        """Writes a line to stderr, above live progress if there is any."""
        if self._live is not None:
            self._live.say(text)
        else:
            click.echo(text, err=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Writes a table to stdout: columns aligned by spaces, widths from the content, safe for pipes."""
        body = [["" if cell is None else str(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *body, strict=True)]
        for row in ([c.upper() for c in columns], *body):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.data("  ".join(cells).rstrip())

    @contextmanager
    def progress(self) -> Iterator[Listener]:
        """Shows events while the block runs: live lines on a terminal, one line a change elsewhere."""
        if self.quiet:
            yield lambda _: None
        elif self.settings.log_format == "json":
            yield tell_json
        elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from orchestrator.cli.live import LiveProgress

            with LiveProgress(color="NO_COLOR" not in os.environ) as live:
                self._live = live
                try:
                    yield live
                finally:
                    self._live = None
        else:
            yield PlainProgress(self.talk, verbose=self.verbose > 0)


class PlainProgress:
    """Progress for logs: one line when a subject starts, changes its words (with `-v`) or ends."""

    def __init__(self, talk: Callable[[str], None], *, verbose: bool) -> None:
        self.talk, self.verbose = talk, verbose
        self.seen: dict[tuple[str, str], str] = {}

    def __call__(self, event: Event) -> None:
        if event.stage == "state" and event.state not in TROUBLE and not self.verbose:
            return
        key = (event.stage, event.subject)
        if event.finished:
            self.seen.pop(key, None)
        elif key in self.seen and not (self.verbose and event.message != self.seen[key]):
            return
        else:
            self.seen[key] = event.message
        self.talk(f"{event.stage} {event.subject}: {event.message}".rstrip(": "))


def tell_json(event: Event) -> None:
    """An event as one line of JSON on stderr; fields that are empty are left out."""
    fields = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
    told = {name: value for name, value in fields.items() if value not in ("", None, False)}
    click.echo(json.dumps({"time": timestamp(time.time()), **told}, ensure_ascii=False), err=True)


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as in the log files: UTC, to the millisecond."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class ConsoleHandler(logging.Handler):
    """Log records to a console's stderr, above its live progress."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        try:
            self.console.error(self.format(record))
        except Exception:  # as logging's own handlers: a record that cannot be written stops nothing
            self.handleError(record)


class JsonRecords(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger and message, and the traceback where there is one."""
        told = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


class OutFile(click.Path):
    """A file to be written. A folder that is not there is told before the work, not after it."""

    def __init__(self, suffixes: Collection[str] = ()) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The file's path; a usage error if it cannot be written, or has none of the suffixes."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{path}: there is no folder {path.parent}", param, ctx)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            self.fail(f"{path} cannot be written", param, ctx)
        if self.suffixes and path.suffix not in self.suffixes:
            self.fail(f"{path}: write a name that ends in {' or '.join(self.suffixes)}", param, ctx)
        return path


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`; the command asks `console.json_output`."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.ensure_object(Console).json_output = value

    return click.option(
        "--json", is_flag=True, expose_value=False, callback=remember, help="Print JSON to stdout."
    )(command)


def pass_console(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command its console as the first argument, and tells the console which command it is."""

    @functools.wraps(function)
    def with_console(*arguments: Any, **options: Any) -> Any:
        context = click.get_current_context()
        console = context.ensure_object(Console)
        console.command = context.command
        return function(console, *arguments, **options)

    return with_console


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, (Path, date)):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "items"):
        return dict(value.items())
    return str(value)
