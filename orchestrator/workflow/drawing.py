"""A workflow as a drawing: mermaid text, or an SVG with the steps in layers from left to right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.workflow.graph import Graph
from orchestrator.workflow.references import references_in

__all__ = ["Box", "Sketch", "mermaid", "sketch", "svg"]

WIDTH, HEIGHT, GAP, ROW = 200, 66, 64, 20
MARGIN = 12
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1a1d23}.s{font-size:11.5px;fill:#5b6472}"
    "rect{fill:#fff;stroke:#9aa7b8}.input{fill:#e8f1e9}.function{fill:#f3eefb}path{fill:none;stroke:#8b97a8;stroke-width:1.4}"
    ".join{stroke-dasharray:5 4}"
    "@media(prefers-color-scheme:dark){text{fill:#e7eaf0}.s{fill:#9aa4b2}rect{fill:#1b2027;stroke:#4b5666}"
    ".input{fill:#1b2a20}.function{fill:#272036}}"
)


@dataclass(frozen=True)
class Box:
    """An input or a step. `kind`: input, call or function."""

    name: str
    words: str
    kind: str
    loops: str = ""


@dataclass(frozen=True)
class Sketch:
    """Boxes, and lines between them: (from, to, whether `to` waits for all items of `from`)."""

    boxes: Sequence[Box]
    lines: Sequence[tuple[str, str, bool]]


def sketch(graph: Graph) -> Sketch:
    """What is drawn of a workflow."""
    boxes = [Box(name, spec.type, "input") for name, spec in graph.file.inputs.items()]
    lines: dict[tuple[str, str], bool] = {}
    for step in graph.file.steps:
        node = graph.nodes[step.id]
        words = f"{step.model}.{step.call}" if step.model else step.call
        kind = "call" if step.model else "function"
        boxes.append(Box(step.id, words, kind, " × ".join(node.axes)))
        given = [reference.name for reference, _ in references_in([node.arguments, node.when])]
        given += [graph.axes[axis].reference.name for axis in node.axes]
        for name in given:
            if name in graph.file.inputs:
                lines[name, step.id] = False
        for use in node.uses:
            lines[use.step, step.id] = bool(use.missing)
    used = {name for line in lines for name in line}
    kept = [box for box in boxes if box.kind != "input" or box.name in used]
    return Sketch(
        kept, [(*line, join) for line, join in lines.items() if join or not _detour(line, set(lines))]
    )


def _detour(line: tuple[str, str], lines: set[tuple[str, str]]) -> bool:
    """Whether another way leads from the one to the other, so that this line says nothing new."""
    start, end = line
    reached = {b for a, b in lines if a == start and b != end}
    todo = list(reached)
    while todo:
        here = todo.pop()
        for a, b in lines:
            if a == here and b not in reached:
                reached.add(b)
                todo.append(b)
    return end in reached


def mermaid(graph: Graph) -> str:
    """The workflow as mermaid's `flowchart`; a dotted line waits for all items."""
    drawn = sketch(graph)
    ids = {box.name: f"n{number}" for number, box in enumerate(drawn.boxes)}
    shapes = {"input": ('(["', '"])'), "call": ('["', '"]'), "function": ('{{"', '"}}')}
    lines = ["flowchart LR"]
    for box in drawn.boxes:
        left, right = shapes[box.kind]
        loops = f"<br/>for each of {box.loops}" if box.loops else ""
        lines.append(
            f"  {ids[box.name]}{left}<b>{_safe(box.name)}</b><br/>{_safe(box.words)}{_safe(loops, tags=True)}{right}"
        )
    lines += [f"  {ids[a]} {'-.->' if join else '-->'} {ids[b]}" for a, b, join in drawn.lines]
    return "\n".join(lines) + "\n"


def svg(graph: Graph, *, style: bool = True) -> str:
    """The workflow as an SVG without scripts, fonts or anything from outside.

    Without `style`, for a page that has rules of its own for it.
    """
    drawn = sketch(graph)
    layers = _layers(drawn)
    tallest = max(map(len, layers), default=1)
    places = {
        name: (
            MARGIN + column * (WIDTH + GAP),
            MARGIN + (2 * row + tallest - len(names)) * (HEIGHT + ROW) // 2,
        )
        for column, names in enumerate(layers)
        for row, name in enumerate(names)
    }
    width = 2 * MARGIN + len(layers) * (WIDTH + GAP) - GAP
    height = 2 * MARGIN + tallest * (HEIGHT + ROW) - ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(graph.file.name)}">' + (f"<style>{STYLE}</style>" if style else "")
    ]
    parts += [_line(places[a], places[b], join) for a, b, join in drawn.lines]
    parts += [_box(box, *places[box.name]) for box in drawn.boxes]
    return "".join(parts) + "</svg>\n"


def _layers(drawn: Sketch) -> list[list[str]]:
    """Names by column: each box one column after the last that it needs, near what it needs."""
    before: dict[str, list[str]] = {box.name: [] for box in drawn.boxes}
    for a, b, _ in drawn.lines:
        before[b].append(a)
    depth: dict[str, int] = {}

    def find(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((find(other) for other in before[name]), default=-1)
        return depth[name]

    columns: dict[int, list[str]] = {}
    for box in drawn.boxes:
        columns.setdefault(find(box.name), []).append(box.name)
    layers = [columns[number] for number in sorted(columns)]
    for number, names in enumerate(layers[1:], 1):
        rows = {name: row for layer in layers[:number] for row, name in enumerate(layer)}
        names.sort(key=lambda name: _mean(before[name], rows))
    return layers


def _mean(names: Sequence[str], rows: Mapping[str, int]) -> float:
    return sum(rows[name] for name in names) / len(names) if names else 0.0


def _line(start: tuple[int, int], end: tuple[int, int], join: bool) -> str:
    x1, y1 = start[0] + WIDTH, start[1] + HEIGHT / 2
    x2, y2 = end[0], end[1] + HEIGHT / 2
    bend = max(24.0, (x2 - x1) / 2)
    kind = ' class="join"' if join else ""
    return f'<path{kind} d="M{x1} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2} {y2:g}"/>'


def _box(box: Box, x: int, y: int) -> str:
    loops = f"for each of {box.loops}" if box.loops else ""
    radius = HEIGHT // 2 if box.kind == "input" else 8
    drop = 0 if loops else 8
    lines = [(box.name, 24, ' font-weight="600"'), (box.words, 28, ' class="s"'), (loops, 28, ' class="s"')]
    text = "".join(
        f'<text{kind} x="{x + 16}" y="{y + drop + 21 + 17 * number}">{escape(_cut(words, length))}</text>'
        for number, (words, length, kind) in enumerate(lines)
        if words
    )
    return (
        f"<g><title>{escape(' · '.join(filter(None, (box.name, box.words, loops))))}</title>"
        f'<rect class="{box.kind}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="{radius}"/>{text}</g>'
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _safe(text: str, *, tags: bool = False) -> str:
    """Mermaid reads quotes and entities inside a label: `#quot;` and friends stand for them."""
    cleaned = re.sub(r'[#"]', lambda match: f"#{ord(match[0])};", text)
    return cleaned if tags else cleaned.replace("<", "#lt;").replace(">", "#gt;")
