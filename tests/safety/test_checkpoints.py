"""A checkpoint is data: what hides in a `.bin` does not run, whichever library reads it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny.models import make

from orchestrator import Orchestrator, Settings
from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.errors import LoadError, RemoteError
from orchestrator.links import WorkerLink
from orchestrator.processes import WorkerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A checkpoint's file, and what shows that it was unpickled."""
    file, marker = tmp_path / "pytorch_model.bin", tmp_path / "unpickled"
    file.write_bytes(pickle.dumps({"a": Evil(marker)}))
    return file, marker


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "without the guard"])
def test_a_library_that_asks_for_more_than_weights_does_not_get_it(
    evil: tuple[Path, Path],
    settings: Settings,
    catalog: Catalog,
    store: EnvironmentStore,
    tmp_path: Path,
    guarded: bool,
) -> None:
    file, marker = evil
    process = WorkerProcess.spawn(
        store.ensure(catalog.get("image-classification")),
        worker_file=Path(__file__).with_name("loading_model.py"), worker_class="Careless", name="careless",
        settings=Settings(home=tmp_path / "home"), variables={} if guarded else {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0"},
    )  # fmt: skip
    link = WorkerLink(process)
    try:
        link.hello(120)
        link.load(None, {}, {}, timeout=120)
        with pytest.raises(RemoteError) as caught:
            link.call("read", [str(file)], timeout=300)
    finally:
        link.close(0)
    assert marker.exists() is not guarded  # the file is one that would
    if guarded:
        assert "eights only" in caught.value.message


def test_a_family_refuses_it_too(evil: tuple[Path, Path], settings: Settings, tmp_path: Path) -> None:
    file, marker = evil
    folder = make("llama", tmp_path / "model")
    for weights in folder.glob("*.safetensors*"):
        weights.unlink()
    file.rename(folder / file.name)
    with Orchestrator(settings=settings) as orc, pytest.raises((LoadError, RemoteError)):
        orc.load("causal-lm", checkpoint=folder, with_=["transformers==4.36.2"])
    assert not marker.exists()
