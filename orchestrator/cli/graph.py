"""`orchestrator graph WORKFLOW`: the workflow as a drawing."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.console import Console, OutFile, pass_console

__all__ = ["command"]

KINDS = {".svg": "svg", ".mmd": "mermaid", ".md": "mermaid"}


@click.command("graph")
@click.argument("workflow", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["mermaid", "svg"]), help="Default: by --out, else mermaid."
)
@click.option("-o", "--out", type=OutFile(KINDS), help="Write it to a file: .svg, .mmd or .md.")
@pass_console
def command(console: Console, workflow: Path, kind: str | None, out: Path | None) -> None:
    """Draw WORKFLOW: mermaid text (GitHub shows it in Markdown), or an SVG.

    \b
      orchestrator graph examples/photo_story.yaml
      orchestrator graph examples/photo_story.yaml --out story.svg
    """
    from orchestrator.workflow import Workflow
    from orchestrator.workflow.drawing import mermaid, svg

    checked = Workflow.read(workflow)
    kind = kind or ("mermaid" if out is None else KINDS[out.suffix])
    text = svg(checked.graph) if kind == "svg" else mermaid(checked.graph)
    if out is None:
        console.data(text.rstrip())
    else:
        out.write_text(text, encoding="utf-8")
        console.talk(f"written to {out}")
