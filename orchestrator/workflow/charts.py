"""The report's drawings: a time line of the calls, and a matrix of differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["number", "pair_matrix", "timeline"]

WIDTH, LEFT, LANE, BAR = 1100, 190, 26, 16


def number(value: float) -> str:
    """A number for people: four digits that count."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value)}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}"
    return f"{value:.2e}"


def timeline(lanes: Sequence[tuple[str, int, Sequence[tuple[float, float, str, str]]]]) -> str:
    """An SVG: for each lane its name, its colour's number, and bars (from, to, class, words) in seconds from 0."""
    end = max((bar[1] for _, _, bars in lanes for bar in bars), default=0.0)
    if end <= 0:
        return ""
    height = LANE * len(lanes) + 34
    scale = (WIDTH - LEFT - 16) / end
    parts = [
        f'<svg class="gantt" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Time line of the calls">'
    ]
    for tick in _ticks(end):
        x = LEFT + tick * scale
        parts.append(f'<line x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{height - 24}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{number(tick)} s</text>')
    for row, (name, color, bars) in enumerate(lanes):
        y = 6 + row * LANE
        parts.append(
            f'<text class="lane" x="{LEFT - 12}" y="{y + 13}" text-anchor="end">{escape(_short(name))}</text>'
        )
        for start, stop, kind, words in bars:
            width = max(1.5, (stop - start) * scale)
            parts.append(
                f'<rect class="k{color % 8} {kind}" x="{LEFT + start * scale:.1f}" y="{y}" width="{width:.1f}" '
                f'height="{BAR}" rx="3"><title>{escape(words)}</title></rect>'
            )
    return "".join(parts) + "</svg>"


def pair_matrix(pairs: Sequence[Mapping[str, Any]]) -> str:
    """A table of the largest difference between each two names, coloured by its order of magnitude."""
    names = list(dict.fromkeys(str(pair[side]) for side in ("a", "b") for pair in pairs))
    names.sort(key=[*(str(pair["a"]) for pair in pairs), *(str(pair["b"]) for pair in pairs)].index)
    found = {frozenset((str(pair["a"]), str(pair["b"]))): pair["largest"] for pair in pairs}
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for row in names:
        cells = "".join(
            _cell(None if row == column else found.get(frozenset((row, column)), "")) for column in names
        )
        rows.append(f"<tr><th>{escape(row)}</th>{cells}</tr>")
    return (
        f'<table class="matrix"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _cell(value: Any) -> str:
    if value is None:
        return '<td class="same">·</td>'
    if not isinstance(value, (int, float)):
        return "<td></td>"
    if value == 0:
        return '<td style="background:var(--good-soft);color:var(--good)">equal</td>'
    share = min(1.0, max(0.0, (math.log10(value) + 8) / 6))  # 1e-8 is rounding, 1e-2 is a fault
    color = f"color-mix(in srgb, var(--bad-soft) {share * 100:.0f}%, var(--good-soft))"
    return f'<td style="background:{color}">{number(value)}</td>'


def _ticks(end: float) -> list[float]:
    step = 10 ** math.floor(math.log10(end))
    step = next(s for s in (step / 10, step / 5, step / 2, step, step * 2) if end / s <= 10)
    return [round(i * step, 6) for i in range(int(end / step) + 1)]


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"
