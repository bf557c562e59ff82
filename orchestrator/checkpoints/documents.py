"""The JSON files of a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointError

__all__ = ["Json", "read_object"]

Json = dict[str, Any]


def read_object(path: Path) -> Json:
    """The object in a JSON file; {} where there is no such file, or something else in it.

    Raises:
        CheckpointError: it cannot be read, or is not JSON; names the file.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="fetch the checkpoint again") from None
    return value if isinstance(value, dict) else {}
