"""matrix.html: a heat map of the differences, each field opening its details; one file, no script, nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from orchestrator.matrix.compare import Difference, Tolerance, worst
from orchestrator.matrix.output import SIGNS
from orchestrator.matrix.run import SELF_TEST, CellResult, MatrixResult
from orchestrator.matrix.schema import LOADING

__all__ = ["as_html"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
MOODS = {"pass": "", "differs": "warn", "fails": "bad", "cannot install": "bad"}
PACKAGES = ("transformers", "tokenizers", "torch", "numpy", "accelerate", "safetensors")
LOG = 6000  # characters
LEGEND = (
    ("equal", "equal"), ("allowed", "within the tolerance"), ("differs", "beyond it"),
    ("fails", "fails"), ("cannot", "cannot be installed"),
)  # fmt: skip


def as_html(result: MatrixResult) -> str:
    """One page without anything from outside: figures, the heat map, every cell, and a panel for each."""
    title = escape(result.file.name or "Matrix")
    shared = (files("orchestrator.workflow") / "report.css").read_text(encoding="utf-8")
    own = (files("orchestrator.matrix") / "page.css").read_text(encoding="utf-8")
    panels = (_panel(number, cell, result) for number, cell in enumerate(result.cells))
    sections = (_head(title, result), _figures(result), _heat_map(result), _every_cell(result), *panels)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{title}</title>\n<style>\n{shared}{own}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _head(title: str, result: MatrixResult) -> str:
    good = sum(cell.outcome == "pass" for cell in result.cells)
    told = result.file.description
    what = result.file.family or "several families"
    of = f" · {result.file.checkpoint}" if result.file.checkpoint else ""
    return (
        f"<header><h1>{title}</h1>"
        + (f"<p>{escape(told)}</p>" if told else "")
        + f'<div class="meta"><span class="pill {"" if result.ok else "bad"}">{good} of {len(result.cells)} '
        f"cells pass</span><span>{escape(what + of)}</span></div></header>"
    )


def _figures(result: MatrixResult) -> str:
    numbers = [cell.largest for cell in result.cells if cell.largest is not None]
    largest = max(numbers, default=None)
    shown = [
        (
            "Largest difference",
            "–" if largest is None else _number(largest),
            "of any number, among the cells that answered",
        )
    ]
    if result.file.call:
        reference = next(cell for cell in result.cells if cell.cell == result.reference)
        name = ", ".join(reference.shown(axis) for axis in result.file.axes)
        shown.append(("Reference", name, "what every cell is held against"))
        shown.append(("Tolerance", f"{result.file.compare.max_abs:g}", _tolerance(result.file.compare)))
    else:
        shown.append(("Reference", "recorded numbers", "of each family's self-test, with its own tolerance"))
    environments = len({cell.environment for cell in result.cells if cell.environment})
    shown.append(
        ("Environments", str(environments), f"{len(result.cells)} cells, {result.seconds:.0f} s in all")
    )
    return (
        '<div class="figures">'
        + "".join(
            f'<div class="figure"><span class="soft">{label}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'
            for label, value, note in shown
        )
        + "</div>"
    )


def _tolerance(tolerance: Tolerance) -> str:
    parts = ["largest absolute difference"]
    if tolerance.cosine is not None:
        parts.append(f"cosine ≥ {tolerance.cosine:g}")
    parts.append("texts equal" if tolerance.text == "exact" else f"texts ≥ {tolerance.similarity:.0%} alike")
    return "; ".join(parts)


def _heat_map(result: MatrixResult) -> str:
    """The longest axis across; down the other axes, and for each of their values the calls."""
    axes = result.file.axes
    values = {axis: list(dict.fromkeys(cell.cell.get(axis) for cell in result.cells)) for axis in axes}
    across = max(axes, key=lambda axis: (len(values[axis]), axis not in LOADING))
    down = [axis for axis in axes if axis != across]
    groups: dict[tuple[str | None, ...], dict[str | None, int]] = {}
    for number, cell in enumerate(result.cells):
        groups.setdefault(tuple(cell.cell.get(axis) for axis in down), {})[cell.cell.get(across)] = number
    calls = [*([SELF_TEST] if result.file.self_test else []), *result.file.call]
    tops = [
        next(cell.shown(across) for cell in result.cells if cell.cell.get(across) == value)
        for value in values[across]
    ]
    head = "".join(f"<th>{escape(_last(top))}</th>" for top in tops)
    body = "".join(_group(group, row, values[across], calls, result) for group, row in groups.items())
    legend = "".join(f'<span><i class="{kind}"></i>{words}</span>' for kind, words in LEGEND)
    corner = "".join(f'<th class="axis">{escape(axis)}</th>' for axis in down)
    return (
        f'<h2>{escape(across)}</h2><div class="scroll"><table class="heat"><thead><tr>{corner}<th></th>{head}</tr>'
        f'</thead><tbody>{body}</tbody></table></div><div class="meta legend">{legend}</div>'
    )


def _group(
    group: Sequence[str | None],
    row: Mapping[str | None, int],
    across: Sequence[str | None],
    calls: Sequence[str],
    result: MatrixResult,
) -> str:
    names = "".join(f'<th rowspan="{len(calls)}">{escape(_last(value or ""))}</th>' for value in group)
    lines = []
    for position, call in enumerate(calls):
        fields = "".join(
            "<td></td>" if value not in row else _field(call, row[value], result) for value in across
        )
        lines.append(f"<tr>{names if not position else ''}<th>{escape(call)}</th>{fields}</tr>")
    return "".join(lines)


def _field(call: str, number: int, result: MatrixResult) -> str:
    cell = result.cells[number]
    differences = [d for d in cell.differences if d.path.split(".")[0].split("[")[0] == call]
    kind, heat = _kind(cell, differences)
    told = worst(differences)
    words = {"fails": "fails", "cannot": "–", "equal": "equal"}.get(kind) or (told.short if told else "")
    if cell.cell == result.reference and kind == "equal":
        words = "reference"
    title = f"{cell.cell.name}: {cell.outcome}. {cell.message.splitlines()[0] if cell.message else ''}"
    return (
        f'<td><button type="button" popovertarget="cell-{number}" class="{kind}" style="--heat:{heat:.0f}%" '
        f'title="{escape(title)}">{escape(words)}</button></td>'
    )


def _kind(cell: CellResult, differences: Sequence[Difference]) -> tuple[str, float]:
    """The field's class, and how warm it is in percent: nothing at 1e-8 and below, all of it at 1."""
    if cell.outcome in ("fails", "cannot install"):
        return cell.outcome.split()[0], 100.0
    amount = max((d.amount for d in differences), default=0.0)
    if not amount:
        return "equal", 0.0
    heat = 100.0 if math.isinf(amount) else max(0.0, min(1.0, (math.log10(amount) + 8) / 8)) * 100
    return ("allowed" if all(d.allowed for d in differences) else "differs"), heat


def _every_cell(result: MatrixResult) -> str:
    head = "".join(f"<th>{escape(axis)}</th>" for axis in result.file.axes)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(_last(cell.shown(axis)))}</td>" for axis in result.file.axes)
        + f'<td><button type="button" class="pill {MOODS[cell.outcome]}" popovertarget="cell-{number}">'
        f"{SIGNS[cell.outcome]} {cell.outcome}</button></td>"
        f'<td class="n">{"" if cell.largest is None else _number(cell.largest)}</td>'
        f'<td>{escape((cell.message.splitlines() or [""])[0])}</td><td class="n">{cell.seconds:.1f} s</td></tr>'
        for number, cell in enumerate(result.cells)
    )
    return (
        f'<h2>Every cell</h2><div class="scroll"><table class="cells"><thead><tr>{head}<th>outcome</th>'
        f'<th class="n">largest difference</th><th>what</th><th class="n">time</th></tr></thead><tbody>{body}'
        "</tbody></table></div>"
    )


def _panel(number: int, cell: CellResult, result: MatrixResult) -> str:
    """What opens when a field is clicked: the browser's own popover, which needs no script."""
    mood, words = MOODS[cell.outcome], f"{SIGNS[cell.outcome]} {cell.outcome}"
    parts = [
        f'<button type="button" class="close" popovertarget="cell-{number}" popovertargetaction="hide">Close</button>',
        f"<h3>{escape(cell.cell.name)}</h3>",
        f'<div class="meta"><span class="pill {mood}">{words}</span>'
        + ("<span>the reference</span>" if cell.cell == result.reference else "")
        + f"<span>{cell.seconds:.1f} s</span></div>",
        f'<p class="said">{escape(cell.message)}</p>' if cell.message and not cell.differences else "",
        f'<p class="remedy"><b>What to do.</b> {escape(cell.hint)}</p>' if cell.hint else "",
        _differences(cell.differences),
        _versions(cell),
        f"<details><summary>Its log</summary><pre>{escape(cell.log[-LOG:])}</pre></details>"
        if cell.log
        else "",
    ]
    return f'<section popover id="cell-{number}" class="panel">{"".join(parts)}</section>'


def _differences(differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(d.path)}</code></td><td>{escape(d.what)}{_pair(d)}</td>"
        f"<td>{'allowed' if d.allowed else '<b>no</b>'}</td></tr>"
        for d in differences
    )
    return (
        '<div class="scroll"><table><thead><tr><th>where</th><th>difference</th><th>allowed</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _pair(difference: Difference) -> str:
    if not difference.reference and not difference.value:
        return ""
    return (
        f'<div class="pair"><div><small>reference</small>{escape(difference.reference)}</div>'
        f"<div><small>this cell</small>{escape(difference.value)}</div></div>"
    )


def _versions(cell: CellResult) -> str:
    shown = [name for name in PACKAGES if name in cell.versions]
    shown += [axis for axis, _ in cell.cell.values if axis in cell.versions and axis not in shown]
    facts = [
        ("environment", cell.environment),
        ("checkpoint", cell.checkpoint),
        *((name, cell.versions[name]) for name in shown),
    ]
    body = "".join(f"<tr><th>{escape(k)}</th><td><code>{escape(v)}</code></td></tr>" for k, v in facts if v)
    return f'<table class="facts">{body}</table>' if body else ""


def _number(value: float) -> str:
    return f"{value:.3g}"


def _last(value: str) -> str:
    """A path's last part: the headings need no more."""
    return value.rsplit("/", 1)[-1] if "/" in value else value
