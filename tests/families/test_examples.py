"""The examples of these families, run as they stand (retrieval on a smaller collection, with real weights)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.workflow import Workflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(orchestrator, name, out, **inputs):
    done = Workflow.read(EXAMPLES / name).run(orchestrator, inputs=inputs, out=out)
    assert done.exit_code == 0, done.report
    report = (out / "report.html").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((out / "summary.json").read_text()) if (out / "summary.json").is_file() else {}
    return rows, summary, report


def test_two_modelscope_pairs_rank_the_same_texts(orchestrator, tmp_path):
    rows, summary, report = run(orchestrator, "modelscope_clip_pair.yaml", tmp_path / "pair")
    assert len(rows) == 4
    for row in rows:
        assert {entry["label"] for entry in row["base"]} == {entry["label"] for entry in row["large"]}
        assert -1 <= row["agreement"]["spearman"] <= 1
        assert row["agreement"]["same_best"] == (row["base"][0]["label"] == row["large"][0]["label"])
    mean = sum(row["agreement"]["spearman"] for row in rows) / 4
    assert summary["mean_agreement"] == pytest.approx(mean)
    assert "一只猫的照片" in report


def test_what_clip_proposes_is_verified(orchestrator, tmp_path):
    rows, _, report = run(orchestrator, "clip_verify.yaml", tmp_path / "verify")
    assert len(rows) == 5
    for row in rows:
        assert len(row["proposed"]) == 3
        assert sum(entry["score"] for entry in row["verified"]) == pytest.approx(1, abs=1e-4)
    assert "data:image/" in report  # the pictures are in it


def test_real_weights_find_the_judged_abstracts_and_two_versions_agree(orchestrator, tmp_path):
    rows, summary, _ = run(orchestrator, "retrieval_eval.yaml", tmp_path / "eval", queries=12, documents=40)
    values = summary or rows[0]
    assert values["counts"]["queries"] == 12
    assert values["counts"]["documents"] < 60
    assert values["metrics"]["nDCG@10"] > 0.8  # 0.66 among all 5,183
    for row in values["compared"]:
        assert abs(row["difference"]) < 1e-3
    assert 0 < values["vectors"]["largest"] < 1e-5
