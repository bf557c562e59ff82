"""`orchestrator checkpoint tiny`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    command = [sys.executable, "-m", "orchestrator", "checkpoint", "tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_checkpoint_in_the_published_layout(tmp_path: Path) -> None:
    code, out, err = run("minigemini-7b", str(tmp_path / "t"))
    assert (code, out.strip()) == (0, str(tmp_path / "t"))
    assert "random" in err
    index = json.loads((tmp_path / "t" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    for name in (
        "lm_head.weight",
        "model.vlm_uni_val_projector.1.bias",
        "model.vision_tower_aux.vision_stages.3.downsample.1.weight",
    ):
        assert name in index
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    assert config["model_type"] == "mini_gemini"
    assert (tmp_path / "t" / config["mm_vision_tower"] / "pytorch_model.bin").is_file()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run("minigemini-8x7b-hd", str(tmp_path / name), "--seed", seed)[0] == 0
    shards = [(tmp_path / name / "model-00001-of-00002.safetensors").read_bytes() for name in "abc"]
    assert shards[0] == shards[1] != shards[2]


def test_an_existing_folder_is_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine").write_text("x")
    code, _, err = run("minigemini-2b", str(tmp_path / "t"))
    assert code == 2
    assert "--force" in err
    assert (tmp_path / "t" / "mine").is_file()
    assert run("minigemini-2b", str(tmp_path / "t"), "--force")[0] == 0
    assert not (tmp_path / "t" / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_an_unknown_style_names_the_nearest(tmp_path: Path) -> None:
    code, _, err = run("minigemini-7c", str(tmp_path / "t"))
    assert code == 2
    assert "did you mean 'minigemini-7b'?" in err
    assert not (tmp_path / "t").exists()


def test_styles_are_listed() -> None:
    code, out, _ = run("--json")
    assert code == 0
    assert {"minigemini-34b-hd", "minigemini-8b", "minigemini-2b"} <= set(json.loads(out))
