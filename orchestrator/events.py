"""What long work tells whoever watches: one small value, passed to one callable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Event", "Listener", "Stage", "ignore"]

Stage = Literal["environment", "checkpoint", "worker", "load", "call", "workflow", "state"]


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of news.

    `subject` names the thing (an environment, a checkpoint, a deployment, a step), `message` is for people.
    `done` of `total`, in `unit`s, where they are known. `finished` closes the subject's line. Of the stage `state`
    there is one event for each change of a worker's health; `state` is the new one (`ready`, `backoff` …).
    """

    stage: Stage
    subject: str
    message: str = ""
    done: float | None = None
    total: float | None = None
    unit: str = ""
    finished: bool = False
    state: str = ""


Listener = Callable[[Event], None]


def ignore(_: Event) -> None:
    """The listener of those who do not watch."""
