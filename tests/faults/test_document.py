"""docs/faults.md names a test for each fault: they must exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "faults.md"
SHORT = ("policies", "clients", "workers", "answers", "logs", "soak")


def test_every_test_that_the_list_names_exists() -> None:
    """`place::test_name…` is a test whose name begins so; `…end` one of the same file; `place` alone a whole file."""
    text = DOCUMENT.read_text()
    rows = [line for line in text[text.index("| fault |") :].splitlines() if line.startswith("| ")][1:]
    checked = 0
    for row in rows:
        fault, _, proof = (cell.strip() for cell in row.strip("|").rsplit("|", 2))
        tests = ""
        for reference in re.findall(r"`([^`]+)`", proof):
            place, _, name = reference.partition("::")
            if not reference.startswith("…"):
                tests = file(place).read_text()
            if name or reference.startswith("…"):
                parts = map(re.escape, (name or reference).split("…"))
                pattern = "def " + r"\w*".join(parts) + r"\("
                assert re.search(pattern, tests), f"{fault}: {reference}"
            checked += 1
    assert checked > 50


def file(place: str) -> Path:
    return TESTS / (f"faults/test_{place}.py" if place in SHORT else f"{place}.py")
