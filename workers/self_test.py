"""Runs another family's self-test in that family's environment: a tiny seeded checkpoint, one forward, known numbers."""

from __future__ import annotations

from typing import Any, Dict

from orchestrator.worker.family import import_family


class SelfTest:
    """`run()` gives what the family's `self_test()` returns: `ok`, `max_abs`, `tolerance` and what else it tells."""

    def __init__(self, worker_file: str, worker_class: str) -> None:
        family = import_family(worker_file, worker_class)
        test = getattr(family, "self_test", None)
        if test is None:
            raise AttributeError(f"{worker_file}: {worker_class or 'the module'} has no self_test()")
        self._test = test

    def run(self) -> Dict[str, Any]:
        """Makes the tiny checkpoint, computes and compares. Raises TypeError for an answer that says nothing."""
        result = self._test()
        if not isinstance(result, dict) or "ok" not in result:
            raise TypeError(
                f"self_test() returned {result!r}, no dict with 'ok'; orchestrator.worker.inference.compare() makes one"
            )
        return {**result, "ok": bool(result["ok"])}
