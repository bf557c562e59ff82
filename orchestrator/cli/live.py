"""Live progress on a terminal: a line per subject, drawn by rich."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from orchestrator.cli.console import TROUBLE
from orchestrator.events import Event

__all__ = ["LiveProgress"]


WIDE = 110  # columns of a terminal that has room for bars


class LiveProgress:
    """A listener that keeps one line for each thing under way; finished things scroll away above."""

    def __init__(self, *, color: bool) -> None:
        console = RichConsole(stderr=True, no_color=not color, highlight=False)
        wide = console.width >= WIDE
        bars = [BarColumn(bar_width=20), TimeRemainingColumn()] if wide else []
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]} {task.fields[subject]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
            *bars,
            TimeElapsedColumn(),
            TextColumn(
                "[dim]{task.fields[message]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=console,
            transient=True,
            expand=True,
        )
        self.lines: dict[tuple[str, str], TaskID] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Takes the lines away for good; things that finish later are still told. Safe to call twice."""
        self.progress.stop()

    def say(self, text: str) -> None:
        """Writes a line above the lines, as it is: no markup, no wrapping."""
        self.progress.console.print(text, markup=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        if event.stage == "state":
            if event.state in TROUBLE:
                self.progress.console.print(f"[yellow]![/] {_escape(f'{event.subject}: {event.message}')}")
            return
        key = (event.stage, event.subject)
        with self.lock:
            line = self.lines.get(key)
            if event.finished:
                if line is not None:
                    self.progress.remove_task(self.lines.pop(key))
                self.progress.console.print(
                    f"[green]✓[/] {event.stage} {event.subject} [dim]{_escape(event.message)}"
                )
                return
            fields: dict[str, Any] = {
                "stage": event.stage,
                "subject": _escape(event.subject),
                "message": _escape(event.message),
                "count": _count(event),
            }
            if line is None:
                line = self.lines[key] = self.progress.add_task("", total=event.total, **fields)
            self.progress.update(line, completed=event.done or 0, total=event.total, **fields)


def _count(event: Event) -> str:
    if event.done is None:
        return ""
    if event.total is None:
        return f"{event.done:g} {event.unit}".rstrip()
    return f"{event.done:g}/{event.total:g} {event.unit}".rstrip()


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
