"""Self-tests of families for the commands that run them: `family check`, `env ensure --check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.cli.console import Console
from orchestrator.errors import OrchestratorError

__all__ = ["COLUMNS", "cells", "self_tests"]

COLUMNS = ("family", "ok", "off by", "tolerance", "error")


def self_tests(console: Console, families: Sequence[str], with_: Sequence[str]) -> list[dict[str, Any]]:
    """What each family's self-test tells: `family`, `ok`, `max_abs`, `tolerance` …, or `error` where it broke."""
    from orchestrator.client import Orchestrator

    results: list[dict[str, Any]] = []
    with console.progress() as listener, Orchestrator(settings=console.settings, listener=listener) as orc:
        for name in families:
            try:
                results.append({"family": name, **orc.self_test(name, with_=with_)})
            except OrchestratorError as error:
                results.append({"family": name, "ok": False, "error": str(error)})
    return results


def cells(result: dict[str, Any]) -> list[Any]:
    """A row for `COLUMNS`."""
    off = result.get("max_abs")
    error = str(result.get("error", "")).splitlines()
    return [
        result["family"],
        "yes" if result["ok"] else "NO",
        "" if off is None else f"{off:.2g}",
        result.get("tolerance", ""),
        error[0] if error else "",
    ]
