"""A matrix's result for people and machines: table, JSON, JUnit XML, GitHub's summary and annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

from orchestrator.matrix.compare import Difference
from orchestrator.matrix.run import CellResult, MatrixResult

__all__ = [
    "SIGNS",
    "as_json",
    "as_junit",
    "as_markdown",
    "cell_json",
    "columns",
    "github_annotations",
    "rows",
]

SIGNS = {"pass": "✓", "differs": "≠", "fails": "✗", "cannot install": "–"}


def columns(result: MatrixResult) -> list[str]:
    """The table's headings: the axes, then what came of it."""
    return [*result.file.axes, "outcome", "largest difference", "seconds", "what"]


def rows(result: MatrixResult) -> list[list[str]]:
    """The table's cells as texts."""
    return [
        [
            *(cell.shown(axis) for axis in result.file.axes),
            f"{SIGNS[cell.outcome]} {cell.outcome}"
            + (" (reference)" if cell.cell == result.reference else ""),
            "" if cell.largest is None else f"{cell.largest:.3g}",
            f"{cell.seconds:.1f}",
            (cell.message.splitlines() or [""])[0],
        ]
        for cell in result.cells
    ]


def as_json(result: MatrixResult) -> dict[str, Any]:
    """Everything but the answers' arrays."""
    return {
        "version": 1,
        "name": result.file.name,
        "reference": dict(result.reference.values),
        "ok": result.ok,
        "seconds": round(result.seconds, 2),
        "cells": [cell_json(cell) for cell in result.cells],
    }


def cell_json(cell: CellResult) -> dict[str, Any]:
    """One cell as JSON-like values; infinite differences are null."""
    return {
        "values": dict(cell.cell.values),
        "outcome": cell.outcome,
        "largest": _finite(cell.largest),
        "message": cell.message,
        "hint": cell.hint,
        "differences": [_difference(difference) for difference in cell.differences],
        "environment": cell.environment,
        "versions": dict(cell.versions),
        "checkpoint": cell.checkpoint,
        "seconds": round(cell.seconds, 2),
        "log": cell.log,
    }


def as_markdown(result: MatrixResult) -> str:
    """A heading and a table, for a step summary or a document."""
    good = sum(cell.outcome == "pass" for cell in result.cells)
    head = [f"### {result.file.name or 'Matrix'}: {good} of {len(result.cells)} cells pass", ""]
    return "\n".join([*head, *_table(columns(result), rows(result))]) + "\n"


def as_junit(result: MatrixResult) -> str:
    """JUnit XML (xunit2): a suite for the matrix, a case for each cell."""
    count = {kind: sum(cell.outcome == kind for cell in result.cells) for kind in SIGNS}
    name = result.file.name or "matrix"
    suite = ET.Element(
        "testsuite",
        name=name,
        tests=str(len(result.cells)),
        failures=str(count["differs"]),
        errors=str(count["fails"] + count["cannot install"]),
        skipped="0",
        time=f"{result.seconds:.3f}",
    )
    for cell in result.cells:
        case = ET.SubElement(
            suite, "testcase", classname=name, name=cell.cell.name, time=f"{cell.seconds:.3f}"
        )
        if cell.outcome != "pass":
            kind = "failure" if cell.outcome == "differs" else "error"
            told = ET.SubElement(case, kind, message=_xml(cell.message), type=cell.outcome)
            places = [f"{d.path}: {d.what}" for d in cell.differences]
            told.text = _xml("\n".join(filter(None, [cell.hint, cell.log, *places])))
    root = ET.Element("testsuites")
    root.append(suite)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def github_annotations(result: MatrixResult, path: str) -> list[str]:
    """GitHub's workflow commands, one for each cell that did not pass."""
    return [
        f"::error file={_property(path)},title={_property(f'{cell.cell.name}: {cell.outcome}')}::"
        + _data("\n".join(filter(None, [cell.message, cell.hint and f"hint: {cell.hint}"])))
        for cell in result.cells
        if cell.outcome != "pass"
    ]


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "path": difference.path,
        "kind": difference.kind,
        "what": difference.what,
        "amount": _finite(difference.amount),
        "allowed": difference.allowed,
        "reference": difference.reference,
        "value": difference.value,
    }


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("<", "&lt;") for text in texts) + " |"

    return [line(head), "|---" * len(head) + "|", *(line(row) for row in body)]


def _xml(text: str) -> str:
    """Without the control characters that XML cannot hold (colours in a worker's last lines)."""
    return "".join(c if c in "\t\n\r" or ord(c) >= 32 else "\N{REPLACEMENT CHARACTER}" for c in text)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
