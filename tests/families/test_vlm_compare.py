"""The example that the project exists for: three vision-language families in one workflow, out of the box."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from orchestrator import Orchestrator, Settings
from orchestrator.workflow import Workflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "vlm_compare.yaml"
FAMILIES = {"minigemini": "4.36.2", "minigemini-2b": "4.39.3", "qwen2-vl": "5.23.0"}


def png(path: Path, seed: int) -> Path:
    """A picture file of noise, 60 x 80."""
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 80, 60, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(rows)
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    return path


def test_three_families_answer_the_same_questions_about_the_same_pictures(
    settings: Settings, tmp_path: Path
) -> None:
    pictures = [str(png(tmp_path / f"{name}.png", seed)) for seed, name in enumerate(("left", "right"))]
    with Orchestrator(settings=settings) as orc:
        run = Workflow.read(EXAMPLE).run(
            orc, inputs={"pictures": pictures, "max_new_tokens": 6}, out=tmp_path / "out"
        )
    assert run.exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {(row["picture"], row["question"]) for row in rows} == {
        (name, question)
        for name in ("left.png", "right.png")
        for question in ("What is in this picture?", "Which colours do you see?")
    }
    assert all(isinstance(row[family], str) for row in rows for family in FAMILIES)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    used = {
        name: model["environment"]["versions"]["transformers"] for name, model in record["models"].items()
    }
    assert used == FAMILIES
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<image id=") == 2  # each picture once, shown with each question
    assert page.count("<use href=") == 4
    assert page.count('<div class="answers">') == 4
    assert "weights are random" in page
    assert "tiny:minigemini-7b" in page
