"""Hugging Face and ModelScope: their own caches, their own variables, and clear words without a network."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from opening import open_store
from tiny.models import make

from orchestrator.checkpoints import CheckpointStore
from orchestrator.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(home: Path) -> Path:
    """org/na.me in Hugging Face's default cache, at `main`."""
    folder = home.parent / ".cache" / "huggingface" / "hub" / "models--org--na.me"
    make("llama", folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


@pytest.mark.parametrize(
    "spec", ["hf:org/na.me", "org/na.me", f"org/na.me@{COMMIT}", "org/na.me@0123456", "org/na.me@main"]
)
def test_a_cached_snapshot_needs_neither_library_nor_network(
    checkpoints: CheckpointStore, cached: Path, home: Path, spec: str
) -> None:
    found = checkpoints.resolve(spec)
    assert (found.hub, found.id, found.revision) == ("hf", "org/na.me", COMMIT)
    assert found.path == home / "checkpoints" / "names" / "org_na_me__0123456789ab"
    assert found.path.resolve() == cached / "snapshots" / COMMIT
    assert found.pinned == ("@" in spec)
    assert bool(found.notes) == ("@" not in spec)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}'])
def test_a_snapshot_whose_index_was_cut_short_is_not_taken_for_whole(
    checkpoints: CheckpointStore, cached: Path, index: str
) -> None:
    (cached / "snapshots" / COMMIT / "model.safetensors.index.json").write_text(index)
    checkpoints.settings = replace(checkpoints.settings, offline=True)
    with pytest.raises(CheckpointError, match="is not in the cache"):
        checkpoints.resolve("hf:org/na.me")


@pytest.mark.parametrize(
    ("variable", "value", "where"),
    [
        ("HF_HUB_CACHE", "{}/own", "own"),
        ("HUGGINGFACE_HUB_CACHE", "{}/own", "own"),
        ("HF_HOME", "{}/own", "own/hub"),
        ("XDG_CACHE_HOME", "{}/own", "own/huggingface/hub"),
    ],
)
def test_the_librarys_variables_say_where(
    checkpoints: CheckpointStore,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    where: str,
) -> None:
    monkeypatch.setenv(variable, value.format(home.parent))
    make("llama", home.parent / where / "models--a--b" / "snapshots" / COMMIT)
    assert checkpoints.resolve(f"a/b@{COMMIT}").revision == COMMIT


def test_a_half_fetched_snapshot_is_not_taken(checkpoints: CheckpointStore, cached: Path) -> None:
    (cached / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is not in the cache"):
        checkpoints.resolve("org/na.me")


def test_a_missing_shard_makes_it_half_fetched(checkpoints: CheckpointStore, cached: Path) -> None:
    index = cached / "snapshots" / COMMIT / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')
    with pytest.raises(CheckpointError, match="is not in the cache"):
        checkpoints.resolve("org/na.me")
    (index.parent / "model-2.safetensors").touch()
    assert checkpoints.resolve("org/na.me").revision == COMMIT


def test_a_running_download_is_not_taken(checkpoints: CheckpointStore, cached: Path) -> None:
    (cached / "blobs").mkdir()
    (cached / "blobs" / "abc.incomplete").touch()
    with pytest.raises(CheckpointError, match="is not in the cache"):
        checkpoints.resolve("org/na.me")


@pytest.mark.parametrize(
    ("spec", "variable", "words"),
    [
        ("hf:org/x@v1", "HF_HUB_OFFLINE", "org/x at v1 is not in the cache"),
        ("hf:org/x", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_OFFLINE is set"),
        ("hf:org/x", "", "huggingface_hub is not installed"),
        ("modelscope:org/x", "", "modelscope is not installed"),
    ],
)
def test_what_cannot_be_had_says_where_and_why(
    checkpoints: CheckpointStore, monkeypatch: pytest.MonkeyPatch, spec: str, variable: str, words: str
) -> None:
    for library in ("huggingface_hub", "modelscope"):
        monkeypatch.setitem(sys.modules, library, None)
    if variable:
        monkeypatch.setenv(variable, "Yes")
    with pytest.raises(CheckpointError, match=words) as caught:
        checkpoints.resolve(spec)
    assert "/.cache/" in caught.value.message
    assert "give the path of a folder" in str(caught.value.hint)


def test_offline_is_ours_too(home: Path, cached: Path) -> None:
    offline = open_store(home, offline=True)
    assert offline.resolve("org/na.me").revision == COMMIT
    for spec in ("org/other", "modelscope:org/other"):
        with pytest.raises(CheckpointError, match="ORCHESTRATOR_OFFLINE"):
            offline.resolve(spec)


class FakeHub(ModuleType):
    """huggingface_hub with one repository, or with a network that fails."""

    def __init__(self, root: Path, files: tuple[str, ...], fails: bool = False) -> None:
        super().__init__("huggingface_hub")
        self.root, self.files, self.fails = root, files, fails
        self.asked: dict[str, Any] = {}

    def HfApi(self) -> Any:
        return SimpleNamespace(model_info=self._info)

    def _info(self, _: str, revision: str | None) -> Any:
        if self.fails:
            raise ConnectionError("no route to hub")
        self.asked["revision"] = revision
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, name: str, **options: Any) -> str:
        self.asked.update(name=name, **{key: value for key, value in options.items() if key != "revision"})
        return str(make("llama", self.root / options["revision"]))


def test_the_library_fetches_one_format_only(
    checkpoints: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("colbert_linear.pt", "2_Dense/pytorch_model.bin")  # of the model, and nowhere else
    copies = ("pytorch_model.bin", "optimizer.pt")
    hub = FakeHub(tmp_path / "hub", ("model.safetensors", *copies, *parts, "onnx/model.onnx"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = checkpoints.resolve("hf:org/x@main")
    assert (found.revision, hub.asked["revision"], hub.asked["name"]) == (COMMIT, "main", "org/x")
    assert {*copies, "onnx/*"} <= set(hub.asked["ignore_patterns"])
    assert not {*parts, "*.bin", "*.pt"} & set(hub.asked["ignore_patterns"])


def test_torch_files_are_fetched_where_there_is_nothing_else(
    checkpoints: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "hub", ("pytorch_model.bin",))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    checkpoints.resolve("hf:org/x")
    assert "pytorch_model.bin" not in hub.asked["ignore_patterns"]


def test_a_network_that_fails_is_told_with_the_mirrors_variable(
    checkpoints: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(tmp_path, (), fails=True))
    with pytest.raises(CheckpointError, match="no route to hub") as caught:
        checkpoints.resolve("hf:org/x")
    assert "HF_ENDPOINT" in str(caught.value.hint)


def test_refresh_asks_and_falls_back_to_what_is_here(
    checkpoints: CheckpointStore, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(tmp_path, (), fails=True))
    assert checkpoints.resolve("org/na.me", refresh=True).revision == COMMIT


@pytest.fixture
def scope(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ModelScope's cache."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(home.parent / "scope"))
    monkeypatch.setitem(sys.modules, "modelscope", None)
    return home.parent / "scope"


@pytest.mark.parametrize("spec", ["modelscope:damo/clip", "modelscope:damo/clip@v1.0.1"])
def test_modelscopes_cache_is_read(checkpoints: CheckpointStore, scope: Path, spec: str) -> None:
    folder = make("llama", scope / "models" / "damo--clip" / "snapshots" / "v1.0.1")
    (scope / "models" / "damo--clip" / "snapshots" / "master").mkdir()  # a failed try leaves it empty
    found = checkpoints.resolve(spec)
    assert (found.hub, found.revision, found.path.resolve()) == ("modelscope", "v1.0.1", folder)


def test_an_unknown_revision_is_not_replaced_by_another(checkpoints: CheckpointStore, scope: Path) -> None:
    make("llama", scope / "models" / "damo--clip" / "snapshots" / "v1.0.1")
    with pytest.raises(CheckpointError, match=r"damo/clip at v2 is not in the cache"):
        checkpoints.resolve("modelscope:damo/clip@v2")


@pytest.mark.parametrize("root", ["hub", "models", "hub/models"])
def test_an_old_layout_is_trusted_only_for_the_revision_it_records(
    checkpoints: CheckpointStore, scope: Path, root: str
) -> None:
    folder = make("llama", scope / root / "damo" / "clip-v1___5")
    with pytest.raises(CheckpointError):
        checkpoints.resolve("modelscope:damo/clip-v1.5@v1.0.0")
    (folder / ".mv").write_text("Revision:v1.0.0,CreatedAt:1690000000")
    assert checkpoints.resolve("modelscope:damo/clip-v1.5@v1.0.0").path.resolve() == folder
    with pytest.raises(CheckpointError):
        checkpoints.resolve("modelscope:damo/clip-v1.5@v2")
