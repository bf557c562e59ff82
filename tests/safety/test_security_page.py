"""SECURITY.md names a test for each claim: those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:[a-z]+/)?test_\w+(?:::\w+)?|…\w+…?)`", TEXT)))


def functions(pattern: str) -> set[str]:
    return {
        name
        for file in TESTS.glob(pattern)
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }


@pytest.mark.parametrize("named", NAMED)
def test_what_is_named_is_there(named: str) -> None:
    file, _, function = named.partition("::")
    if file.startswith("…"):
        assert any(file.strip("…") in name for name in functions("*/test_*.py"))
    elif "/" not in file:
        assert file in functions("links/test_sandbox.py")
    else:
        assert (TESTS / f"{file}.py").is_file()
        assert not function or function in functions(f"{file}.py")


def test_there_are_many() -> None:
    assert len(NAMED) > 25
