"""Workers for tests: started in a small environment, ended after the test whatever happened in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conditions import gone, until
from small_environments import small_environment

from orchestrator.environments import Environment
from orchestrator.errors import InterpreterNotFound
from orchestrator.links import WorkerLink
from orchestrator.processes import WorkerProcess
from orchestrator.settings import Settings

FAMILIES = Path(__file__).with_name("families")
Start = Callable[..., SimpleNamespace]


@pytest.fixture(scope="session")
def numpy1() -> Environment:
    """Python 3.11 with numpy 1.26.4 (the tests themselves run on numpy 2) and Pillow."""
    return small_environment("3.11", "numpy==1.26.4", "pillow==10.4.0")


@pytest.fixture(scope="session")
def environment_of() -> Callable[[str], Environment]:
    """An environment for a Python version, with the newest numpy for it; skips where there is none."""

    def make(version: str) -> Environment:
        try:
            return small_environment(version, "numpy")
        except InterpreterNotFound:
            pytest.skip(f"no Python {version} on this machine")

    return make


@pytest.fixture
def spawn(numpy1: Environment, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts a worker's process, without saying hello."""
    started: list[WorkerProcess] = []

    def start(
        file: str = "toy.py", name: str = "Toy", *, environment: Environment = numpy1, **more: Any
    ) -> WorkerProcess:
        process = WorkerProcess.spawn(
            environment,
            worker_file=FAMILIES / file,
            worker_class=name,
            name=more.pop("called", "toy"),
            settings=Settings(home=tmp_path / "home", transport=more.pop("transport", "ipc")),
            variables=more.pop("variables", {}),
            **more,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        tree = _tree(process.pid)
        process.stop(0)
        until(lambda tree=tree: all(map(gone, tree)))


@pytest.fixture
def start(spawn: Callable[..., WorkerProcess]) -> Iterator[Start]:
    """Starts a worker and loads its family: `.process`, `.link`, `.info`, `.report`."""
    links: list[WorkerLink] = []

    def begin(
        file: str = "toy.py", name: str = "Toy", *, options: dict[str, Any] | None = None, **more: Any
    ) -> SimpleNamespace:
        process = spawn(file, name, **more)
        link = WorkerLink(process)
        links.append(link)
        info = link.hello(60)
        report = link.load(
            None, {"device": "cpu", "devices": ["cpu"], "threads": 1}, options or {}, timeout=60
        )
        return SimpleNamespace(process=process, link=link, info=info, report=report)

    yield begin
    for link in links:
        link.close(0)


@pytest.fixture
def toy(start: Start) -> SimpleNamespace:
    """A loaded toy worker of this test alone."""
    return start()


@pytest.fixture(scope="module")
def shared(numpy1: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerLink]:
    """The link of a loaded toy worker that the tests of a module share; they must not end it."""
    process = WorkerProcess.spawn(
        numpy1,
        worker_file=FAMILIES / "toy.py",
        worker_class="Toy",
        name="shared",
        settings=Settings(home=tmp_path_factory.mktemp("home")),
        variables={},
    )
    link = WorkerLink(process)
    link.hello(60)
    link.load(None, {}, {}, timeout=60)
    yield link
    link.close(2)


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []
