"""Conditions as data: `when: ${flag}`, or a value with what it is compared to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.workflow.schema import Condition

__all__ = ["TESTS", "Incomparable", "holds"]

TESTS = tuple(name for name in Condition.__struct_fields__ if name != "value")


class Incomparable(Exception):
    """A value is of a type that a test cannot be made with."""


def holds(condition: Any) -> bool:
    """Whether an evaluated condition holds: every test of a comparison, or the value's truth.

    Empty texts, lists, mappings and arrays, 0, false and null are false, as in Python.

    Raises:
        Incomparable: the value is text, say, and the test is for numbers.
    """
    if isinstance(condition, Mapping) and "value" in condition and any(test in condition for test in TESTS):
        return all(_checked(name, condition["value"], condition[name]) for name in TESTS if name in condition)
    size = getattr(condition, "size", None)
    if size is not None and getattr(condition, "shape", ()) != ():
        return bool(size)
    return bool(condition)


def _checked(name: str, value: Any, other: Any) -> bool:
    try:
        return _test(name, value, other)
    except (TypeError, ValueError):
        raise Incomparable(f"when: {name} {_told(other)} cannot be asked of {_told(value)}") from None


def _told(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 40 else f"a text of {len(value)} characters"
    return str(value) if isinstance(value, (int, float)) else f"a {type(value).__name__}"


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
