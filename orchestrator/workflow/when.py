"""Conditions as data: `when: ${flag}`, or a value with what it is compared to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.workflow.schema import Condition

__all__ = ["holds"]

_TESTS = tuple(name for name in Condition.__struct_fields__ if name != "value")


def holds(condition: Any) -> bool:
    """Whether an evaluated condition holds: every test of a comparison, or the value's truth.

    Empty texts, lists, mappings and arrays, 0, false and null are false, as in Python.
    """
    if isinstance(condition, Mapping) and "value" in condition and any(test in condition for test in _TESTS):
        return all(_test(name, condition["value"], condition[name]) for name in _TESTS if name in condition)
    if isinstance(condition, Mapping) and set(condition) == {"value"}:
        return holds(condition["value"])
    size = getattr(condition, "size", None)
    if size is not None and getattr(condition, "shape", ()) != ():
        return bool(size)
    return bool(condition)


def _test(name: str, value: Any, other: Any) -> bool:
    match name:
        case "equals":
            return bool(value == other)
        case "not_equals":
            return bool(value != other)
        case "one_of":
            return value in other
    if value is None:
        return False
    match name:
        case "at_least":
            return bool(value >= other)
        case "at_most":
            return bool(value <= other)
        case "above":
            return bool(value > other)
        case _:
            return bool(value < other)
