"""What the store remembers about its environments beside them: who asked, when, and whether imports have worked."""

from __future__ import annotations

import os
import time
from pathlib import Path

from orchestrator.environments.records import read_json, write_json

__all__ = ["Usage"]

STAMP_EVERY = 60.0
"""Seconds; a use within them is not written down again."""


class Usage:
    """The records in `state/used` and `state/confirmed`. Environments themselves are never written to."""

    def __init__(self, home: Path) -> None:
        self.used = home / "state" / "used"
        self.confirmations = home / "state" / "confirmed"

    def last_used(self, environment_id: str) -> float:
        """When it was last asked for, in seconds since the epoch; 0 if that is not on record."""
        try:
            return self._record(environment_id).stat().st_mtime
        except OSError:
            return 0.0

    def families_of(self, environment_id: str) -> tuple[str, ...]:
        """The labels of the families that have asked for it."""
        return tuple((read_json(self._record(environment_id)) or {}).get("families", ()))

    def stamp(self, environment_id: str, label: str) -> None:
        """Writes down that a family has asked for it now."""
        families = self.families_of(environment_id)
        try:
            if label not in families:
                write_json(self._record(environment_id), {"families": sorted({*families, label})})
            elif time.time() - self.last_used(environment_id) > STAMP_EVERY:
                os.utime(self._record(environment_id))
        except OSError:
            pass  # a read-only store is still of use

    def confirmed(self, environment_id: str) -> bool:
        """Whether what it is for has been imported from it."""
        return (self.confirmations / environment_id).exists()

    def confirm(self, environment_id: str) -> None:
        """Writes down that importing from it has worked."""
        self.confirmations.mkdir(parents=True, exist_ok=True)
        (self.confirmations / environment_id).touch()

    def doubt(self, environment_id: str) -> None:
        """Takes `confirm` back."""
        (self.confirmations / environment_id).unlink(missing_ok=True)

    def forget(self, environment_id: str) -> None:
        """Removes all that is on record about it."""
        self._record(environment_id).unlink(missing_ok=True)
        self.doubt(environment_id)

    def _record(self, environment_id: str) -> Path:
        return self.used / f"{environment_id}.json"
