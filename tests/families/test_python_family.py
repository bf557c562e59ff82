"""The family `python`: a user's class or function, in whatever environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator import Orchestrator, Settings
from orchestrator.errors import LoadError

SOURCE = """
import numpy as np
from beside import SIX

class Scaler:
    def __init__(self, factor=2, checkpoint=None):
        self.factor, self.checkpoint = factor, checkpoint

    def scale(self, values):
        return np.asarray(values) * self.factor

    def count(self, n):
        yield from range(n)

    def where(self):
        return self.checkpoint

class Greedy:
    def __init__(self, **options):
        self.options = sorted(options)

    def seen(self):
        return self.options

def double(x):
    return 2 * x

def six():
    return SIX

def _hidden():
    return None

VALUE = 3
"""


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "beside.py").write_text("SIX = 6\n")
    (folder / "mine.py").write_text(SOURCE)
    return folder / "mine.py"


def test_a_class_gets_the_options_that_it_takes(orc: Orchestrator, file: Path, tmp_path: Path) -> None:
    with orc.load("python", target=f"{file}:Scaler", factor=3, checkpoint=tmp_path) as model:
        np.testing.assert_array_equal(model.scale(np.arange(3)), [0, 3, 6])
        assert list(model.stream("count", 3)) == [0, 1, 2]
        assert model.where() == str(tmp_path)


def test_a_class_that_takes_anything_gets_everything(orc: Orchestrator, file: Path) -> None:
    with orc.load("python", target=f"{file}:Greedy", a=1) as model:
        assert model.seen() == ["a", "checkpoint", "placement"]


def test_a_function_is_called_by_its_name(orc: Orchestrator, file: Path) -> None:
    with orc.load("python", target=f"{file}:double") as model:
        assert (model.double(4), list(model.methods)) == (8, ["double"])


def test_a_file_gives_its_public_functions(orc: Orchestrator, file: Path) -> None:
    with orc.load("python", target=str(file)) as model:
        assert sorted(model.methods) == ["double", "six"]
        assert model.six() == 6


def test_a_relative_target_starts_where_the_client_is(
    orc: Orchestrator, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    with orc.load("python", target="mine.py:double") as model:
        assert model.double(1) == 2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (":Nothing", {}, "has no class or function 'Nothing'; it has .*Scaler"),
        (":VALUE", {}, "has no class or function 'VALUE'"),
        (":Scaler", {"facter": 1}, "Scaler takes no option facter; it takes factor"),
        (":double", {"x": 1}, "takes no option x; it takes none"),
    ],
)
def test_what_does_not_fit_is_said(
    orc: Orchestrator, file: Path, name: str, options: dict[str, int], words: str
) -> None:
    with pytest.raises(LoadError, match=words):
        orc.load("python", target=f"{file}{name}", **options)


def test_any_environment_by_with(orc: Orchestrator, file: Path) -> None:
    with orc.load("python", target=f"{file}:double", with_=["numpy==1.26.4"]) as model:
        assert model.environment.versions["numpy"] == "1.26.4"
        assert model.double(np.float32(1.5)) == 3
