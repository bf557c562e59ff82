"""How soon a worker that died is started again, and when it no longer is."""

from __future__ import annotations

import time
from collections import deque

__all__ = ["Backoff"]

DEATHS_ALLOWED = 5
DEATHS_WINDOW = 300.0  # seconds
FIRST_PAUSE = 0.25  # seconds, doubled for each death in the window


class Backoff:
    """The deaths of one replica within the last `DEATHS_WINDOW` seconds."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def note(self, *, counts: bool) -> None:
        """A life ended, or did not begin; it counts unless it was we who ended it."""
        now = time.monotonic()
        if counts:
            self._deaths.append(now)
        while self._deaths and self._deaths[0] < now - DEATHS_WINDOW:
            self._deaths.popleft()

    @property
    def exhausted(self) -> bool:
        """Whether there were too many to start it once more."""
        return len(self._deaths) > DEATHS_ALLOWED

    @property
    def pause(self) -> float:
        """Seconds before the next start."""
        return FIRST_PAUSE * float(2 ** max(0, len(self._deaths) - 1))
