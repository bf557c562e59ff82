"""Models that misbehave, on real workers, and the means to see what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator import Model, Orchestrator, Settings
from orchestrator.events import Event

FAULTY = f"{Path(__file__).with_name('faulty_model.py')}:Faulty"
NUMPY = ["numpy==2.2.6"]


def lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


class House:
    """Makes orchestrators whose events are kept, and loads faulty models."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.events: list[Event] = []
        self.orchestrators: list[Orchestrator] = []

    def open(self, **changes: Any) -> Orchestrator:
        orc = Orchestrator(settings=replace(self.settings, **changes), listener=self.events.append)
        self.orchestrators.append(orc)
        return orc

    def load(self, orc: Orchestrator | None = None, **options: Any) -> Model:
        return (orc or self.open()).load(FAULTY, with_=NUMPY, **options)

    def states(self, name: str) -> list[str]:
        """The states that a replica has gone through."""
        return [event.state for event in self.events if event.stage == "state" and event.subject == name]
