"""A house for each test: what it opens is closed afterwards, and no process may be left."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
from conditions import gone, until
from house import House

from orchestrator import Settings


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    """Everything that it made is closed after the test, and no worker is left."""
    made = House(settings)
    mine = psutil.Process()
    before = {child.pid for child in mine.children(recursive=True)}
    yield made
    for orc in made.orchestrators:
        orc.close()
    until(lambda: {c.pid for c in mine.children(recursive=True) if not gone(c.pid)} <= before)
