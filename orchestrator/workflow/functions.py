"""What a step can call without a model: a handful of functions over results, run in the coordinator with numpy.

They exist so that a workflow can compare and reduce what models answered. Anything more is a Python step: a class or
function of the user's own in the `python` family.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from orchestrator.workflow.yaml_source import Place, YamlSource, nearest

__all__ = ["FUNCTIONS", "check"]


def collect(values: Any) -> Any:
    """What it is given: a join under a name of its own."""
    return values


def cosine(a: Any, b: Any) -> Any:
    """The cosine of two vectors: a number; of two (n, d) arrays: n numbers, row by row."""
    left, right = _floats(a, "a"), _floats(b, "b")
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {left.shape} and {right.shape}")
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.sum(left * right, axis=-1) / lengths
    return value.tolist()


def mean(values: Any) -> float | None:
    """The mean of all numbers; items that failed (null) are left out. Of no numbers it is null."""
    numbers = _floats(_present(values), "values")
    return float(np.mean(numbers)) if numbers.size else None


def differences(values: Any) -> dict[str, Any]:
    """Compares results that should be equal, pair by pair.

    Args:
        values: a mapping of names (versions, say) to numbers, arrays or lists of them; all of one shape.

    Returns:
        `largest` (the largest absolute difference of all), `between` (its two names), `equal` (bit for bit) and
        `pairs`: a list of {a, b, largest, mean, at, equal}. An item that is null for one is left out for all.
    """
    if not isinstance(values, Mapping) or len(values) < 2:
        raise ValueError("needs a mapping with two names or more")
    arrays = _aligned(values)
    pairs = [_compare(a, b, arrays[a], arrays[b]) for a, b in combinations(arrays, 2)]
    worst = max(pairs, key=lambda pair: float("inf") if pair["largest"] is None else pair["largest"])
    return {
        "largest": worst["largest"],
        "between": [worst["a"], worst["b"]],
        "equal": all(pair["equal"] for pair in pairs),
        "pairs": pairs,
    }


def _aligned(values: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    if not all(isinstance(value, list) for value in values.values()):
        return {str(name): _floats(value, str(name)) for name, value in values.items()}
    if len({len(value) for value in values.values()}) > 1:
        raise ValueError("the lists have different lengths")
    kept = [row for row in zip(*values.values(), strict=True) if all(item is not None for item in row)]
    columns = list(zip(*kept, strict=True)) or [()] * len(values)
    return {str(name): _floats(list(column), str(name)) for name, column in zip(values, columns, strict=True)}


def _compare(a: str, b: str, left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> dict[str, Any]:
    if left.shape != right.shape:
        raise ValueError(f"{a} and {b} have different shapes: {left.shape} and {right.shape}")
    if not left.size:
        return {"a": a, "b": b, "largest": 0.0, "mean": 0.0, "at": [], "equal": True}
    gap = np.abs(left - right)
    gap[np.isnan(left) & np.isnan(right)] = 0.0
    largest = float(np.max(gap))
    at = [int(i) for i in np.unravel_index(int(np.argmax(gap)), gap.shape)]
    return {
        "a": a,
        "b": b,
        "largest": None if np.isnan(largest) else largest,
        "mean": float(np.mean(gap)),
        "at": at,
        "equal": not bool(np.any(gap)),
    }


def _present(values: Any) -> Any:
    return [value for value in values if value is not None] if isinstance(values, list) else values


def _floats(value: Any, name: str) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name!r} must be numbers, all rows of one length") from None


FUNCTIONS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (collect, cosine, differences, mean)}


def check(source: YamlSource, place: Place, call: str, arguments: Mapping[str, Any]) -> None:
    """Refuses an unknown function and unknown or missing arguments."""
    function = FUNCTIONS.get(call)
    if function is None:
        raise source.error(
            f"no built-in function {call!r} (a call of a model needs 'model')",
            (*place, "call"),
            hint=nearest(call, FUNCTIONS),
        )
    known = inspect.signature(function).parameters
    for name in arguments:
        if name not in known:
            raise source.error(
                f"{call} has no argument {name!r}",
                (*place, "with", name),
                hint=nearest(name, known),
                key=True,
            )
    for name in known:
        if name not in arguments:
            raise source.error(f"{call} needs the argument {name!r}", (*place, "call"))
