"""Importing: folders of any writer, and GGUF by a script in another environment (a stand-in for it here)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from conditions import until
from tiny import models
from tiny.models import make

from orchestrator.checkpoints import CheckpointStore, check_readable
from orchestrator.checkpoints import store as store_module
from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.errors import CheckpointError
from orchestrator.events import Event
from orchestrator.settings import Settings

OLD = {"transformers": "4.36.2", "tokenizers": "0.15.2"}

SCRIPT = """
import json, os, sys, time
source, destination = sys.argv[1:3]
print(json.dumps({"message": "reading"}), file=sys.stderr, flush=True)
print("Loading weights:  50%|#####     | 136/272 [00:00<00:00, 70.64it/s]", file=sys.stderr, flush=True)
text = open(source).read()
if text == "broken":
    print("ValueError: not a GGUF file", file=sys.stderr)
    sys.exit(1)
if text == "slow":
    open(os.path.join(destination, "half"), "w").close()
    time.sleep(600)
open(os.path.join(destination, "config.json"), "w").write(json.dumps({"rope_theta": 1.0, "from": text}))
open(os.path.join(destination, "model.safetensors"), "w").close()
open(source + ".runs", "a").write("x")
"""


@dataclass
class StandIn:
    """An environment store and a catalog whose `checkpoint-import` is a script for this interpreter."""

    worker_file: Path
    python: Path = Path(sys.executable)
    asked: list[str] = field(default_factory=list)

    def get(self, name: str) -> StandIn:
        self.asked.append(name)
        return self

    def ensure(self, _: Any, __: Any) -> StandIn:
        return self


@pytest.fixture
def converting(home: Path) -> CheckpointStore:
    return open_converting(home)


def open_converting(home: Path) -> CheckpointStore:
    script = home.parent / "script.py"
    script.write_text(SCRIPT)
    stand_in = StandIn(script)
    return CheckpointStore(Settings(home=home), cast("EnvironmentStore", stand_in), cast("Catalog", stand_in))


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")] if folder.exists() else []


def test_a_gguf_is_converted_once_and_made_neutral(
    converting: CheckpointStore, tmp_path: Path, events: list[Event]
) -> None:
    file = tmp_path / "Model-1.5B.Q4.gguf"
    file.write_text("numbers")
    found = converting.resolve(file, events.append)
    assert found.path.name.startswith("Model_1_5B_Q4_")
    assert found.path.name.isidentifier()
    assert '"rope_parameters"' in (found.path / "config.json").read_text()
    assert found.notes == ("converted from Model-1.5B.Q4.gguf",)
    assert converting.resolve(tmp_path / "Model-1.5B.Q4.gguf").path == found.path
    assert Path(f"{file}.runs").read_text() == "x"
    assert [(e.message, e.done, e.total) for e in events][1:3] == [
        ("reading", None, None),
        ("Loading weights", 136, 272),
    ]
    assert events[-1].finished


def test_the_same_content_is_the_same_checkpoint_and_new_content_a_new_one(
    converting: CheckpointStore, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    file, copy = tmp_path / "m.gguf", tmp_path / "elsewhere" / "m.gguf"
    file.write_text("numbers")
    copy.write_text("numbers")
    first = converting.resolve(file).path
    assert converting.resolve(copy).path == first
    file.write_text("others")
    assert converting.resolve(file).path != first


def test_a_folder_with_one_gguf_is_that_gguf(converting: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w.gguf").write_text("numbers")
    assert (converting.resolve(tmp_path / "m").path / "config.json").is_file()
    assert converting.resolve(tmp_path / "m", convert=False).path == tmp_path / "m"


def test_a_failed_conversion_keeps_the_scripts_words_and_nothing_else(
    converting: CheckpointStore, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "m.gguf").write_text("broken")
    with pytest.raises(CheckpointError, match=r"(?s)exit code 1.*ValueError: not a GGUF file") as caught:
        converting.resolve(tmp_path / "m.gguf")
    assert "136/272" not in caught.value.message
    assert left(home / "checkpoints" / "converted") == []


BESIDE = """
import sys
from pathlib import Path
from test_checkpoint_import import open_converting
open_converting(Path(sys.argv[1])).resolve(Path(sys.argv[2]))
"""


@pytest.mark.parametrize(("number", "leaves"), [(signal.SIGINT, False), (signal.SIGKILL, True)])
def test_an_interrupted_conversion_is_never_taken_for_ready(
    tmp_path: Path, home: Path, number: signal.Signals, leaves: bool
) -> None:
    file = tmp_path / "m.gguf"
    file.write_text("slow")
    search = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-c", BESIDE, str(home), str(file)],
        env={**os.environ, "PYTHONPATH": search},
        stderr=subprocess.DEVNULL,
    )
    folder = home / "checkpoints" / "converted"
    until(lambda: list(folder.glob(".*.part/half")))
    process.send_signal(number)
    process.wait(60)
    assert bool(left(folder)) == leaves
    assert not [path for path in folder.glob("m_*") if path.is_dir()]
    file.write_text("numbers")
    os.utime(file, (1, 1))
    assert open_converting(home).resolve(file).path.is_dir()


def test_a_folder_is_imported_neutral_and_the_source_stays(
    checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    source = models.as_saved_by_5(make("llama", tmp_path / "m"))
    assert len(check_readable(source, OLD)) == 4
    changes = checkpoints.import_folder(source, tmp_path / "new" / "dest")
    assert len(changes) == 3
    assert check_readable(tmp_path / "new" / "dest", OLD) == []
    assert len(check_readable(source, OLD)) == 4
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["dest"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_folder_with_a_damaged_file_is_not_imported(
    checkpoints: CheckpointStore, tmp_path: Path, name: str
) -> None:
    make("llama", tmp_path / "plain")
    (tmp_path / "plain" / name).write_text("{")
    with pytest.raises(CheckpointError, match=f"plain/{name} cannot be read"):
        checkpoints.import_folder(tmp_path / "plain", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_gguf_is_imported_to_where_the_user_says(converting: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("numbers")
    (tmp_path / "dest").mkdir()
    assert converting.import_folder(tmp_path / "m.gguf", tmp_path / "dest") == ["converted from m.gguf"]
    assert (tmp_path / "dest" / "config.json").is_file()


def test_nothing_is_overwritten(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    source = make("llama", tmp_path / "m")
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "mine").touch()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        checkpoints.import_folder(source, tmp_path / "dest")
    assert [path.name for path in (tmp_path / "dest").iterdir()] == ["mine"]


def test_what_is_no_checkpoint_is_not_imported(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoints.import_folder(tmp_path / "empty", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_an_interrupted_import_leaves_nothing(
    checkpoints: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Path) -> list[str]:
        raise KeyboardInterrupt

    source = make("llama", tmp_path / "m")
    monkeypatch.setattr(store_module, "neutralise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.import_folder(source, tmp_path / "out" / "dest")
    assert list((tmp_path / "out").iterdir()) == []
