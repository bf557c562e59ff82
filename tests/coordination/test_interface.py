"""What somebody who explores meets: completion, representations, misspelt names, copies, arguments of a wrong kind."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conditions import LONG

from orchestrator import AsyncModel, AsyncOrchestrator, Model, Orchestrator, Settings
from orchestrator.environments import Catalog
from orchestrator.errors import ConfigError, LoadError, RemoteError

PROBE = f"{Path(__file__).with_name('probe_model.py')}:Probe"


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def model(orc: Orchestrator) -> Model:
    return orc.load(PROBE, with_=["numpy==2.2.6"], name="probe")


def test_completion_shows_what_the_model_can(model: Model) -> None:
    for face in (model, AsyncModel(model)):
        assert {"echo", "count", "call", "unload"} <= set(dir(face))
    assert model.echo.__qualname__ == "probe.echo"
    assert "timeout=" in (model.echo.__doc__ or "")


def test_representations_tell_what_it_is(orc: Orchestrator, model: Model, settings: Settings) -> None:
    assert repr(orc) == "<Orchestrator with probe>"
    assert repr(AsyncModel(model)).startswith("<AsyncModel 'probe' in ")
    assert repr(AsyncOrchestrator(settings=settings)) == "<AsyncOrchestrator with no models>"


def test_a_misspelt_method_is_answered_with_the_names(model: Model) -> None:
    for face in (model, AsyncModel(model)):
        with pytest.raises(AttributeError, match=r"no method 'ecko'; it has: .*echo") as caught:
            _ = face.ecko
        assert (caught.value.name, caught.value.obj) == ("ecko", model)  # for Python's "Did you mean"


def test_a_model_is_neither_copied_nor_pickled(model: Model) -> None:
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            attempt(model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"with_": "torch"}, "with_ is a list of texts, not 'torch'"),  # not t, o, r, c and h from the index
        ({"with_": [1.26]}, "with_ is a list of texts"),
        ({"with_": 3}, "with_ is a list of texts"),
        ({"python": 3.10}, "write python='3.10'"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(
    orc: Orchestrator, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        orc.load(PROBE, **arguments)


def test_a_text_is_no_list_of_requirements_anywhere(orc: Orchestrator, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="with_ is a list"):
        orc.self_test("python", with_="torch")
    with pytest.raises(ConfigError, match="with_ is a list"):
        Catalog.default(settings).get("python", "torch")


def test_a_family_may_be_a_path(orc: Orchestrator, tmp_path: Path) -> None:
    path = tmp_path / "doubling.py"
    path.write_text("def double(x):\n    return 2 * x\n")
    assert isinstance(path, os.PathLike)
    with orc.load(path) as doubling:
        assert doubling.double(21) == 42


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_block_that_a_forked_child_leaves_ends_nobodys_worker(orc: Orchestrator, model: Model) -> None:
    child = multiprocessing.get_context("fork").Process(target=model.unload)
    child.start()
    child.join(LONG)
    assert child.exitcode == 0
    assert model.echo(1) == 1
    assert [deployment.name for deployment in orc.status().deployments] == ["probe"]


NEEDY = """
class Needy:
    def __init__(self, checkpoint, *, placement):
        open(checkpoint)
"""


def test_a_checkpoint_that_was_forgotten_is_asked_for(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "envs" / "needy").mkdir(parents=True)
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "needy.py").write_text(NEEDY)
    declared = '[project]\nname = "needy"\ndependencies = ["numpy==2.2.6"]\n'
    (tmp_path / "envs" / "needy" / "pyproject.toml").write_text(
        f'{declared}[tool.orchestrator]\ncheckpoints = ["org/needy-*"]\n'
    )
    with Orchestrator(settings=replace(settings, project=tmp_path)) as orc:
        with pytest.raises(LoadError, match="no checkpoint was given"):
            orc.load("needy")
        with pytest.raises(LoadError) as caught:
            orc.load("needy", checkpoint=tmp_path)
    assert "no checkpoint was given" not in str(caught.value)


def test_python_prints_where_in_the_worker_it_happened(orc: Orchestrator, tmp_path: Path) -> None:
    path = tmp_path / "raising.py"
    path.write_text("def divide(x):\n    return 1 / x\n")
    with orc.load(path) as raising, pytest.raises(RemoteError) as caught:
        raising.divide(0)
    assert f'File "{path}", line 2, in divide' in "".join(traceback.format_exception(caught.value))


def test_a_project_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match="no folder /no/such"):
        Orchestrator(project="/no/such")
