"""report.html: one file, no script, nothing from the network; every word from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from orchestrator.workflow.charts import number, pair_matrix, timeline
from orchestrator.workflow.drawing import svg
from orchestrator.workflow.graph import Graph
from orchestrator.workflow.pictures import Pictures
from orchestrator.workflow.results import Results
from orchestrator.workflow.schema import WorkflowFile
from orchestrator.workflow.values import plain

__all__ = ["write_report"]

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
ROWS = 500  # of a table
LONG = 28  # characters of a word that may be broken
LANES = 40
SHOWN_PACKAGES = ("transformers", "torch", "numpy")
STATES = {"finished": "", "failed": "bad", "interrupted": "warn", "running": "warn"}


def write_report(path: Path, graph: Graph, record: Mapping[str, Any], results: Results) -> None:
    """Writes the page of a run, finished or not."""
    fresh = path.with_name(".report.html")
    fresh.write_text(_page(graph, record, results), encoding="utf-8")
    fresh.replace(path)


def _page(graph: Graph, record: Mapping[str, Any], results: Results) -> str:
    file = graph.file
    title = file.report.title or file.name
    style = (files("orchestrator.workflow") / "report.css").read_text(encoding="utf-8")
    sections = (
        _head(title, file, record, results),
        _figures(results),
        _cards(results),
        *(_table_section(table) for table in results.shown.get("tables", ())),
        _environments(record["models"]),
        _timings(record, results),
        _errors(record["errors"]),
        _workflow(record, svg(graph, style=False)),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def _head(title: str, file: WorkflowFile, record: Mapping[str, Any], results: Results) -> str:
    intro = results.shown.get("intro") or file.description
    state, mood = record["state"], STATES.get(record["state"], "")
    if state == "finished" and record["failed"]:
        state, mood = f"finished, {record['failed']} failed", "warn"
    error = f'<p class="error">{escape(str(record["error"]))}</p>' if record["error"] else ""
    return (
        f"<header><h1>{escape(title)}</h1><p>{escape(str(intro))}</p>{error}"
        f'<div class="meta"><span class="pill {mood}">{escape(state)}</span>'
        f"<span>{_when(record['started'])}</span><span>{_seconds(record['seconds'])}</span>"
        f"<span>{_count(record['rows'], 'item')}</span>"
        f"<span>{_count(len(record['models']), 'model')} in {_count(_environment_count(record), 'environment')}</span>"
        "</div></header>"
    )


def _when(started: str) -> str:
    """The start in the time zone of the machine that ran it."""
    moment = datetime.fromisoformat(started)
    return f"{moment.day} {moment:%B %Y, %H:%M} {escape(moment.tzname() or '')}".strip()


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"


def _environment_count(record: Mapping[str, Any]) -> int:
    return len({m["environment"]["id"] for m in record["models"].values() if m.get("environment")})


def _figures(results: Results) -> str:
    shown = [
        (entry["label"], entry["value"], entry.get("note", "")) for entry in results.shown.get("figures", ())
    ]
    if not shown:
        return ""
    cells = (
        f'<div class="figure"><span class="soft">{escape(str(label))}</span><b>{_value(value)}</b>'
        f"<small>{escape(str(note))}</small></div>"
        for label, value, note in shown
    )
    return f'<div class="figures">{"".join(cells)}</div>'


def _cards(results: Results) -> str:
    if not results.cards:
        return ""
    pictures = Pictures()
    cards = "".join(_card(card, pictures) for _, card in results.cards)
    wide = any(
        isinstance(card.get("answers"), dict) and len(card["answers"]) > 1 for _, card in results.cards
    )
    more = results.rows - len(results.cards)
    note = f'<p class="soft">{more} more items are in results.jsonl.</p>' if more > 0 else ""
    return f'<h2>Items</h2>{pictures.definitions()}<div class="cards{" wide" if wide else ""}">{cards}</div>{note}'


def _card(card: Mapping[str, Any], pictures: Pictures) -> str:
    title, text = _text(card.get("title")), _text(card.get("text"))
    parts = []
    if card.get("picture") is not None:
        name = pictures.name(card["picture"])
        inside = (
            f'<svg role="img" aria-label="{escape(title)}"><use href="#{name}"/></svg>'
            if name
            else f"<small>{escape(_text(getattr(card['picture'], 'name', 'picture not shown')))}</small>"
        )
        parts.append(f'<div class="photo">{inside}</div>')
    body = [
        f"<h3>{escape(title)}</h3>" if title else "",
        f'<p class="text">{escape(text)}</p>' if text else "",
    ]
    body.append(_answers(plain(card.get("answers"))))
    body.append(_bars(plain(card.get("bars"))))
    body.append(_scores(plain(card.get("scores"))))
    body += [
        f'<div class="error"><b>{escape(s)}</b>: {escape(e)}</div>' for s, e in card.get("errors", {}).items()
    ]
    return f'<article class="card">{"".join(parts)}<div class="body">{"".join(body)}</div></article>'


def _answers(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    shown = "".join(
        f"<div><b>{escape(str(name))}</b><p>{escape(_text(text)) or '<i>nothing</i>'}</p></div>"
        for name, text in value.items()
    )
    return f'<div class="answers">{shown}</div>'


def _bars(value: Any) -> str:
    found: list[tuple[str, float]] = []
    pairs: Iterable[Any] = (
        value.items() if isinstance(value, dict) else value if isinstance(value, list) else ()
    )
    for entry in pairs:
        if isinstance(entry, dict):
            label = entry.get("label", entry.get("name", ""))
            share = entry.get("probability", entry.get("score"))
        else:
            label, share = entry if isinstance(entry, tuple) else ("", None)
        if isinstance(share, (int, float)):
            found.append((str(label), float(share)))
    if not found:
        return ""
    lines = (
        f'<span class="name">{escape(label)}</span><span class="track"><i style="width:{_percent(share):.1f}%"></i>'
        f'</span><span class="number">{_share(share)}</span>'
        for label, share in found[:10]
    )
    return f'<div class="bars">{"".join(lines)}</div>'


def _share(share: float) -> str:
    return "&lt;1%" if 0 < share < 0.005 else f"{_percent(share):.0f}%"


def _percent(share: float) -> float:
    return min(100.0, max(0.0, share * 100))


def _scores(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    shown = "".join(
        f'<span class="score">{escape(str(name))} <b>{_value(score)}</b></span>'
        for name, score in value.items()
    )
    return f'<div class="scores">{shown}</div>'


def _table_section(table: Mapping[str, Any]) -> str:
    rows = list(_flat(table["rows"]))
    rows = [row if isinstance(row, dict) else {"value": row} for row in rows if row is not None]
    if not rows:
        return ""
    note = f'<p class="soft">{escape(str(table.get("note", "")))}</p>' if table.get("note") else ""
    body = f'<div class="scroll">{_table(rows)}</div>'
    if all({"a", "b", "largest"} <= set(row) for row in rows):
        body = f'<div class="pairs"><div class="scroll" style="flex:0 1 auto">{pair_matrix(rows)}</div>{body}</div>'
    return f"<h2>{escape(str(table['title']))}</h2>{note}{body}"


def _flat(value: Any) -> Iterator[Any]:
    """Rows of nested loops, one after the other."""
    if isinstance(value, list):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _table(rows: Sequence[Mapping[str, Any]], right: tuple[str, ...] = ()) -> str:
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    numeric = {c for c in columns if all(_is_number(row.get(c)) or row.get(c) is None for row in rows)}
    numeric |= set(right)
    head = "".join(f"<th{_n(c in numeric)}>{escape(c)}</th>" for c in columns)
    lines = (
        "<tr>" + "".join(_cell(row.get(c), numeric=c in numeric) for c in columns) + "</tr>"
        for row in rows[:ROWS]
    )
    more = f'<tr><td colspan="{len(columns)}">… {len(rows) - ROWS} more</td></tr>' if len(rows) > ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}{more}</tbody></table>"


def _cell(value: Any, *, numeric: bool) -> str:
    long = isinstance(value, str) and any(len(word) > LONG for word in value.split())
    kind = ' class="long"' if long else _n(numeric)
    return f"<td{kind}>{_value(value)}</td>"


def _environments(models: Mapping[str, Mapping[str, Any]]) -> str:
    known = {name: model for name, model in models.items() if model.get("environment")}
    if not known:
        return ""
    head = "".join(
        f"<th>{c}</th>"
        for c in ("model", "family", *SHOWN_PACKAGES, "Python", "checkpoint", "environment", "loaded in")
    )
    lines = "".join(_environment_row(name, model) for name, model in known.items())
    every = "".join(
        f"<p><b>{escape(name)}</b> <span class='mono'>{escape(_packages(model))}</span></p>"
        for name, model in known.items()
    )
    return (
        f'<h2>Environments</h2><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
        f"</div><details><summary>Every package of every environment</summary>{every}</details>"
    )


def _environment_row(name: str, model: Mapping[str, Any]) -> str:
    environment, checkpoint = model["environment"], model["checkpoint"]
    versions = environment["versions"]
    where = checkpoint.get("id") or checkpoint.get("spec") or "–"
    revision = (
        f"<br><small>{escape(str(checkpoint['revision'])[:16])}</small>" if checkpoint.get("revision") else ""
    )
    seconds = _seconds(model["load_seconds"]) if model.get("load_seconds") else "–"
    cells = (
        f"<b>{escape(name)}</b>",
        escape(model["family"]),
        *(escape(versions.get(package, "–")) for package in SHOWN_PACKAGES),
        escape(str(environment.get("python_version", ""))),
        f"{escape(str(where))}{revision}",
        f"<code>{escape(str(environment['id']))}</code>",
        seconds,
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _packages(model: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name}=={version}" for name, version in sorted(model["environment"]["versions"].items())
    )


def _timings(record: Mapping[str, Any], results: Results) -> str:
    if not record["steps"]:
        return ""
    rows = [
        {
            "step": name,
            "calls": step["calls"],
            "cached": step.get("cached", 0),
            "failed": step.get("failed", 0),
            "skipped": step.get("skipped", 0),
            "in all": _spent(step["seconds"]),
            "mean": _spent(step["mean_seconds"]),
            "slowest": _spent(step["slowest_seconds"]),
        }
        for name, step in record["steps"].items()
    ]
    kept = [
        key for key in rows[0] if key not in ("cached", "failed", "skipped") or any(row[key] for row in rows)
    ]
    table = _table([{key: row[key] for key in kept} for row in rows], right=("in all", "mean", "slowest"))
    drawing = timeline(_lanes(record, results))
    drawn = f'<div class="scroll" style="margin-bottom:14px">{drawing}</div>' if drawing else ""
    return f'<h2>Timings</h2>{drawn}<div class="scroll">{table}</div>'


def _spent(seconds: float | None) -> str | None:
    return None if seconds is None else "< 1 ms" if seconds < 0.001 else _seconds(seconds)


def _lanes(
    record: Mapping[str, Any], results: Results
) -> list[tuple[str, int, list[tuple[float, float, str, str]]]]:
    """Loading of the models, then the calls of each step, in seconds since the run began."""
    zero = results.began
    lanes: list[tuple[str, int, list[tuple[float, float, str, str]]]] = []
    for color, (name, model) in enumerate(record["models"].items()):
        if model.get("load_seconds"):
            start = max(0.0, model["load_started"] - zero)
            words = f"{name}: ready after {_seconds(model['load_seconds'])}"
            lanes.append((f"load {name}", color, [(start, start + model["load_seconds"], "load", words)]))
    steps: dict[str, list[tuple[float, float, str, str]]] = {}
    for bar in results.bars:
        start = max(0.0, bar.started - zero)
        words = f"{bar.step}{list(bar.index) or ''}: {_seconds(bar.seconds)}"
        steps.setdefault(bar.step, []).append(
            (start, start + bar.seconds, "bad" if bar.failed else "", words)
        )
    colors = {name: number for number, name in enumerate(record["models"])}
    lanes += [
        (name, colors.get(step.get("model"), 7), steps[name])
        for name, step in record["steps"].items()
        if name in steps
    ]
    return lanes[:LANES]


def _errors(errors: Sequence[Mapping[str, Any]]) -> str:
    if not errors:
        return ""
    shown = "".join(
        f'<p class="error"><b>{escape(e["step"])}{escape(str(e["index"] or ""))}</b>: {escape(e["error"])}'
        + (f"<br>{escape(e['hint'])}" if e.get("hint") else "")
        + "</p>"
        + (
            f"<details><summary>traceback</summary><pre>{escape(e['traceback'])}</pre></details>"
            if e.get("traceback")
            else ""
        )
        for e in errors[:50]
    )
    return f"<h2>Errors</h2>{shown}"


def _workflow(record: Mapping[str, Any], drawing: str) -> str:
    host = record["host"]
    return (
        f'<h2>Workflow</h2><div class="scroll drawing">{drawing}</div>'
        f"<details><summary>The workflow file</summary><pre>{escape(record['workflow']['text'])}</pre></details>"
        f"<footer>compat-orchestrator {escape(host['orchestrator'])} · Python {escape(host['python'])} · "
        f"{escape(host['platform'])} · {host['cpus']} CPUs · all details are in run.json beside this page</footer>"
    )


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value[:12]) + (" …" if len(value) > 12 else "")
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(key))}: {_value(item)}" for key, item in list(value.items())[:12])
    return escape(str(value))


def _text(value: Any) -> str:
    return "" if value is None else str(plain(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _n(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{int(value // 60)} min {int(value % 60)} s"
