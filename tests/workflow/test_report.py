"""The page: nothing from outside becomes markup, nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_models import FakeModels

from orchestrator.workflow import Workflow
from orchestrator.workflow.charts import number, pair_matrix, timeline
from orchestrator.workflow.pictures import Pictures, png
from orchestrator.workflow.values import File

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
TEXT = """
version: 1
name: w
on_error: skip
inputs: {photos: {type: images, default: "*.png"}, title: {type: text}}
models: {m: {family: python}}
steps:
- {id: labels, model: m, call: labels, for_each: "${photos}", with: {x: "${title}"}}
- {id: bad, model: m, call: bad, for_each: "${photos}", with: {x: "${title}"}}
- {id: versions, call: differences, with: {values: {"<b>1</b>": [1.0], "2": [1.5], "3": [1.0]}}}
report:
  title: T <i>
  intro: "Intro ${title}"
  item: {title: "${title}", picture: "${item}", text: "${labels.0.label}", bars: "${labels}", scores: {"<s>": "${labels.0.probability}"}}
  figures: [{label: "<u>", value: "${title}", note: "<n>"}, {label: k, value: "${versions.largest}"}]
  tables: [{title: "<h>", rows: "${versions.pairs}"}, {title: d, rows: [{"<c>": "${title}", b: true}, {"<c>": null, b: 1}]}]
"""


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(here: Path) -> str:
    (here / "a.png").write_bytes(png(np.full((4, 6, 3), 200, np.uint8)))

    def bad(x: str) -> None:
        raise ValueError(EVIL)

    models = FakeModels(python={"labels": lambda x: [{"label": x, "probability": 0.25}], "bad": bad})
    done = Workflow.parse(TEXT).run(models, inputs={"title": [EVIL]})
    return done.report.read_text()


def test_every_word_is_escaped_and_every_tag_closed(here: Path) -> None:
    text = page(here)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert {tag for tag, _ in tags.found} <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "p", "div", "span", "b",
        "small", "article", "image", "use", "defs", "i", "table", "thead", "tbody", "tr", "th", "td", "svg", "g", "path", "line", "text", "rect",
        "details", "summary", "pre", "code", "footer", "br",
    }  # fmt: skip
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6


def test_nothing_is_loaded_from_outside(here: Path) -> None:
    text = page(here)
    assert not re.search(r"(src|href)=\"(?!data:|#picture-\d)", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "data:image/png;base64," in text


def test_the_page_shows_what_matters(here: Path) -> None:
    text = page(here)
    for words in (
        "25%",
        "4.36.2",
        "env-python",
        "largest",
        "0.5",
        "finished, 1 failed",
        "Time line",
    ):
        assert words in text
    assert ">equal<" in text
    assert "prefers-color-scheme: dark" in text


def test_png_is_a_png() -> None:
    for shape in ((3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4), (1500, 20, 3)):
        data = png(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        assert data.startswith(b"\x89PNG")
        width, height, depth, _ = struct.unpack(">IIBB", data[16:26])
        assert depth == 8
        assert max(width, height) <= 640
        start = data.index(b"IDAT")
        length = struct.unpack(">I", data[start - 4 : start])[0]
        channels = 1 if len(shape) == 2 else shape[2]
        assert len(zlib.decompress(data[start + 4 : start + 4 + length])) == height * (1 + width * channels)


def test_only_pictures_get_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures()
    (tmp_path / "x.png").write_text("<svg onload=alert(1)>")
    (tmp_path / "real.bin").write_bytes(b"\xff\xd8\xff" + b"0" * 10)
    assert pictures.name(File(tmp_path / "x.png")) is None
    assert pictures.name(File(tmp_path / "none.png")) is None
    assert pictures.name("") is None
    assert pictures.name(np.zeros((2, 2), np.float32)) is None
    assert pictures.definitions() == ""
    assert pictures.name(File(tmp_path / "real.bin")) == "picture-0"
    (address,) = re.findall(r'href="data:image/jpeg;base64,([^"]*)"', pictures.definitions())
    assert base64.b64decode(address).startswith(b"\xff\xd8\xff")
    pictures.room = 5
    (tmp_path / "other.bin").write_bytes(b"\xff\xd8\xff" + b"1" * 10)
    assert pictures.name(File(tmp_path / "other.bin")) is None
    assert pictures.name(File(tmp_path / "real.bin")) == "picture-0"


def test_a_picture_that_many_cards_show_is_in_the_page_once(here: Path) -> None:
    for name, shade in (("a", 200), ("copy-of-a", 200), ("b", 100)):
        (here / f"{name}.png").write_bytes(png(np.full((4, 6, 3), shade, np.uint8)))
    workflow = Workflow.parse(
        """
version: 1
name: w
inputs: {photos: {type: images, default: "*.png"}, versions: {type: list, default: [x, y, z]}}
steps: [{id: v, for_each: {photo: "${photos}", version: "${versions}"}, call: collect, with: {values: "${version}"}}]
report: {item: {title: "${photo.name}", picture: "${photo}"}}
"""
    )
    text = workflow.run(FakeModels()).report.read_text()
    uses = re.findall(r'<use href="#(picture-\d)"/>', text)
    assert uses == ["picture-0"] * 3 + ["picture-1"] * 3 + ["picture-0"] * 3
    assert re.findall(r'<image id="(picture-\d)"', text) == ["picture-0", "picture-1"]
    assert text.count("data:image/png;base64,") == 2


def test_numbers_for_people() -> None:
    assert [number(x) for x in (0, 1.0, 0.66666, 5.9e-8, 12345.678, 1e20, -0.5, float("inf"))] == [
        "0", "1", "0.6667", "5.90e-08", "1.235e+04", "1.00e+20", "-0.5", "inf",
    ]  # fmt: skip


def test_drawings_hold_together() -> None:
    assert timeline([]) == ""
    drawing = timeline([("a<b>", 0, [(0.0, 0.0003, "bad", "w<")])])
    assert "<b>" not in drawing
    assert drawing.count("<rect") == 1
    pairs = [
        {"a": "x", "b": "y", "largest": 0},
        {"a": "x", "b": "z", "largest": None},
        {"a": "y", "b": "z", "largest": 1e-7},
    ]
    assert pair_matrix(pairs).count("<td") == 9
