"""The JSON files of a checkpoint's folder: its configurations, indexes and lists of parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointError

__all__ = ["Json", "read_json", "read_object"]

Json = dict[str, Any]


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no such file.

    Raises:
        CheckpointError: it cannot be read, or is not JSON; names the file and the place in it.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="fetch the checkpoint again") from None


def read_object(path: Path) -> Json:
    """The object in a JSON file; {} where there is no such file, or something else in it.

    Raises:
        CheckpointError: as `read_json`.
    """
    value = read_json(path)
    return value if isinstance(value, dict) else {}
