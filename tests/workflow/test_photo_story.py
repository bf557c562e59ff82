"""The main job with real photos, real weights and three versions of transformers, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STORY = Path(__file__).parents[2] / "examples" / "photo_story.yaml"
PHOTOS = [f"photos=pypi:scikit-image==0.26.0#skimage/data/{name}" for name in ("chelsea.png", "coffee.png")]


def orchestrator(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    inputs = [word for photo in PHOTOS for word in ("--input", photo)]
    orchestrator(folder, "run", str(STORY), *inputs, "--out", "story", "--fresh")
    return folder / "story"


def test_photos_get_labels_sentences_and_scores(story: Path) -> None:
    rows = [json.loads(line) for line in (story / "results.jsonl").read_text().splitlines()]
    assert [row["labels"][0]["label"] for row in rows] == ["Egyptian cat", "espresso"]
    for row in rows:
        assert "errors" not in row
        assert len(row["sentence"].split()) > 3
        assert 0.1 < row["match"] <= 1.0
    with np.load(story / "arrays" / "vectors_5.npz") as vectors:
        assert vectors["0"].shape == (2, 384)
        assert np.allclose(np.linalg.norm(vectors["1"], axis=1), 1.0, atol=1e-5)


def test_three_versions_agree_and_the_run_says_how_much(story: Path) -> None:
    versions = json.loads((story / "summary.json").read_text())["versions"]
    assert len(versions["pairs"]) == 3
    assert 0.0 <= versions["largest"] < 1e-5


def test_environments_that_cannot_be_one_were_at_work(story: Path) -> None:
    record = json.loads((story / "run.json").read_text())
    environments = {name: model["environment"]["versions"] for name, model in record["models"].items()}
    assert "transformers" not in environments["classifier"]
    assert environments["checker-4.36.2"]["transformers"] == "4.36.2"
    assert environments["checker-4.36.2"]["numpy"].startswith("1.")
    assert environments["writer"]["numpy"].startswith("2.")
    assert record["models"]["writer"]["checkpoint"]["revision"] == "0.1.2"


def test_the_report_holds_pictures_and_needs_no_network(story: Path) -> None:
    page = (story / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    for words in ("Egyptian cat", "espresso", "4.36.2", "4.39.3", "5.23.0"):
        assert words in page


def test_going_on_with_it_computes_nothing(story: Path) -> None:
    before = (story / "results.jsonl").read_bytes()
    done = orchestrator(story.parent, "run", "--resume", "story", "--json")
    steps = json.loads(done.stdout)["steps"]
    assert {step["cached"] for step in steps.values() if step["model"]} == {2}
    assert (story / "results.jsonl").read_bytes() == before
