"""What cannot be resolved is not tried again and again: the reason is kept until something changes."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from orchestrator.environments.records import read_json, write_json
from orchestrator.errors import ResolutionError
from orchestrator.settings import Settings

__all__ = ["check", "commit", "release"]


def check(settings: Settings, key: str) -> None:
    """Raises the `ResolutionError` that is on record for `key`, if one is."""
    record = read_json(_path(settings, key))
    if record is not None:
        raise ResolutionError(
            f"{record['message']}\n(found on {record['when']}; not tried again while nothing has changed)",
            hint="change the requirements or the index, or ask for another try: `orchestrator env ensure --retry`",
            log=record["log"],
        )


def commit(settings: Settings, key: str, label: str, error: ResolutionError) -> None:
    """Puts an error on record."""
    when = dt.datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(
        _path(settings, key), {"family": label, "message": error.message, "log": error.log, "when": when}
    )


def release(settings: Settings, key: str) -> None:
    """Forgets what is on record."""
    _path(settings, key).unlink(missing_ok=True)


def _path(settings: Settings, key: str) -> Path:
    return settings.home / "state" / "quarantine" / f"{key}.json"
