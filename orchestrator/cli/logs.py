"""`orchestrator logs NAME`: what was written about a worker, or about the making of an environment."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.errors import ConfigError
from orchestrator.logs import logs_of, parse, read_lines
from orchestrator.running import running

__all__ = ["command"]

PAUSE = 0.2  # seconds between two looks at a file that is followed


@click.command("logs")
@click.argument("name", required=False)
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many of the last lines."
)
@click.option(
    "-f", "--follow", is_flag=True, help="Go on as lines are written, restarts included, until Ctrl-C."
)
@click.option(
    "--source", type=click.Choice(["build", "runtime", "model"]), help="Only what this one has said."
)
@json_option
@pass_console
def command(console: Console, name: str | None, lines: int, follow: bool, source: str | None) -> None:
    """Show the log of NAME: a model or replica (`orchestrator ps`), or build-FAMILY. Without NAME, list the files.

    Each line has its time (UTC) and its source: `model` is what the model's process printed, `runtime` what became of
    it, `build` the making of an environment. With --json, or ORCHESTRATOR_LOG_FORMAT=json, each is a JSON object.
    """
    if name is None:
        _list(console)
        return
    path = _find(console, name)
    if not follow:
        _show_last(console, name, read_lines(path), lines, source)
        return
    file = _open(path)
    before = read_lines(path.with_name(path.name + ".1"))
    _show_last(console, name, itertools.chain(before, _whole_lines(file)), lines, source)
    for line in _follow(console, name, file):  # from where the last look ended: nothing falls in between
        if _wanted(line, source):
            _show(console, name, line)


def _show_last(console: Console, name: str, said: Iterable[str], count: int, source: str | None) -> None:
    for line in deque((line for line in said if _wanted(line, source)), maxlen=max(count, 0)):
        _show(console, name, line)


def _list(console: Console) -> None:
    files = sorted(console.settings.logs.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    if console.json_output:
        console.json([{"log": str(path), "bytes": path.stat().st_size} for path in files])
    else:
        console.table(("log", "bytes"), [(path.name, path.stat().st_size) for path in files])


def _wanted(line: str, source: str | None) -> bool:
    return source is None or parse(line).source == source


def _show(console: Console, name: str, line: str) -> None:
    if not (console.json_output or console.settings.log_format == "json"):
        click.echo(line)
        return
    found = parse(line)
    told = {"time": found.time, "worker": name, "source": found.source, "line": found.text}
    click.echo(json.dumps(told, ensure_ascii=False))


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8", errors="replace", newline="\n")


def _follow(console: Console, name: str, file: TextIO) -> Iterator[str]:
    """Lines as they are written: over a rotation, and in the file of the next life."""
    try:
        while True:
            yield from _whole_lines(file)
            newest = _find(console, name)
            if newest.exists() and newest.stat().st_ino != os.fstat(file.fileno()).st_ino:
                yield from _whole_lines(file)
                file.close()
                file = _open(newest)
            else:
                time.sleep(PAUSE)
    finally:
        file.close()


def _whole_lines(file: TextIO) -> Iterator[str]:
    """The lines that have their end; what has none yet is read again later."""
    while True:
        before = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(before)
            return
        yield line.removesuffix("\n")


def _find(console: Console, name: str) -> Path:
    """The log of a running deployment or replica, else the newest file of that name."""
    for coordinator in running(console.settings):
        for deployment in coordinator.deployments:
            for replica in deployment["replicas"]:
                if replica.get("log") and name in (deployment["name"], replica["name"]):
                    return Path(replica["log"])
    folder = console.settings.logs
    files = logs_of(folder, name) or sorted(
        folder.glob(f"{name}*.log"), key=lambda path: path.stat().st_mtime
    )
    if not files:
        raise ConfigError(f"no log of {name!r} in {folder}", hint="`orchestrator logs` lists them")
    return files[-1]
