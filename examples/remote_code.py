"""What the code inside published checkpoints imports of transformers, and newer releases have dropped."""

# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "transformers==5.23.0"]
# ///

from __future__ import annotations

import importlib


def imports(names: list[str]) -> int:
    """Imports each `module:name` as remote code does; returns how many."""
    for entry in names:
        module, name = entry.split(":")
        if not hasattr(importlib.import_module(module), name):
            raise ImportError(f"cannot import name {name!r} from {module!r}")
    return len(names)
