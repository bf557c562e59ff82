"""The workflow as a drawing."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from orchestrator.cli.graph import command
from orchestrator.workflow import Workflow
from orchestrator.workflow.drawing import mermaid, sketch, svg

TEXT = """
version: 1
name: w
inputs: {words: {type: list, default: []}, unused: {type: text, default: a}}
models: {m: {family: python}}
steps:
- {id: a, model: m, call: "f<b>\\"", for_each: "${words}", with: {x: "${item}"}}
- {id: b, model: m, call: g, for_each: "${words}", with: {x: "${a}", y: "${item}"}}
- {id: all, call: collect, with: {values: "${b}"}}
"""


def test_lines_say_what_waits_for_what_and_leave_out_detours() -> None:
    drawn = sketch(Workflow.parse(TEXT).graph)
    assert [box.name for box in drawn.boxes] == ["words", "a", "b", "all"]
    assert sorted(drawn.lines) == [("a", "b", False), ("b", "all", True), ("words", "a", False)]


def test_mermaid_escapes_and_dots_joins() -> None:
    text = mermaid(Workflow.parse(TEXT).graph)
    assert text.startswith("flowchart LR\n")
    assert "n2 -.-> n3" in text
    assert "f#lt;b#gt;#34;" in text


def test_svg_is_xml_with_every_box_apart() -> None:
    root = ET.fromstring(svg(Workflow.parse(TEXT).graph))
    boxes = [r.attrib for r in root.iter() if r.tag.endswith("rect")]
    assert len({(box["x"], box["y"]) for box in boxes}) == 4
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    assert all(float(box["x"]) + 200 <= width and float(box["y"]) + 66 <= height for box in boxes)
    columns = {text.text: box["x"] for text, box in zip(_names(root), boxes, strict=True)}
    assert float(columns["a"]) < float(columns["b"]) < float(columns["all"])
    assert "style" not in svg(Workflow.parse(TEXT).graph, style=False)


def _names(root: ET.Element) -> list[ET.Element]:
    return [text for text in root.iter() if text.tag.endswith("text") and "font-weight" in text.attrib]


@pytest.mark.parametrize(("out", "start"), [("g.svg", "<svg"), ("g.mmd", "flowchart")])
def test_the_command_writes_by_suffix(here: object, out: str, start: str) -> None:
    with open("w.yaml", "w") as file:
        file.write(TEXT)
    result = CliRunner().invoke(command, ["w.yaml", "--out", out])
    assert result.exit_code == 0, result.output
    with open(out) as file:
        assert file.read().startswith(start)
    shown = CliRunner().invoke(command, ["w.yaml"]).stdout
    assert re.match(r"flowchart LR\n", shown)
