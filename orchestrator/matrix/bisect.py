"""The first version at which a call changes or breaks, found by halving: only the versions asked for are built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.errors import ConfigError
from orchestrator.matrix.run import CellResult

__all__ = ["Bisection", "bisect"]


@dataclass(frozen=True)
class Bisection:
    """The last version that answers as the first one does, the first that does not, and what was tried."""

    good: CellResult
    bad: CellResult
    tried: tuple[CellResult, ...]
    """In the order in which they were run."""
    between: tuple[str, ...] = ()
    """Versions between the two that cannot be installed: the change may be in one of these."""


def bisect(
    versions: Sequence[str], run: Callable[[str], CellResult], judge: Callable[[CellResult, CellResult], None]
) -> Bisection:
    """Halves `versions` (oldest first) between its first, which is good, and its last, which is bad.

    `run` runs one version; `judge(result, reference)` sets its outcome. A version that cannot be installed is
    passed over: it says nothing about the call.

    Raises:
        ConfigError: the first version gives no answer, or the last one answers as the first.
    """
    good = run(versions[0])
    judge(good, good)
    if good.outcome != "pass":
        raise ConfigError(
            f"{versions[0]} gives no answer to hold others against: {good.message}", hint=good.hint or None
        )
    reference = good
    results: list[CellResult] = [good]

    def tried(version: str) -> CellResult:
        result = run(version)
        judge(result, reference)
        results.append(result)
        return result

    bad = tried(versions[-1])
    if bad.outcome == "cannot install":
        raise ConfigError(f"{versions[-1]} cannot be installed: {bad.message}", hint="choose another end")
    if bad.outcome == "pass":
        raise ConfigError(f"{versions[-1]} answers as {versions[0]} does: there is nothing to find")
    left = list(versions[1:-1])
    passed_over: list[str] = []
    low, high = versions[0], versions[-1]
    while left:
        middle = len(left) // 2
        version = left[middle]
        result = tried(version)
        if result.outcome == "cannot install":
            del left[middle]
            passed_over.append(version)
        elif result.outcome == "pass":
            good, low, left = result, version, left[middle + 1 :]
        else:
            bad, high, left = result, version, left[:middle]
    inside = versions[versions.index(low) + 1 : versions.index(high)]
    return Bisection(good, bad, tuple(results), tuple(v for v in inside if v in passed_over))
