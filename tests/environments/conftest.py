"""A machine of its own for each test: a store, a project, a folder of wheels, and no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_wheels import make_wheel, make_wire

from orchestrator.environments import Catalog, EnvironmentStore, Family
from orchestrator.environments import recipe as recipe_module
from orchestrator.environments import torch_layer as torch_layer_module
from orchestrator.environments.interpreters import installed_interpreters
from orchestrator.events import Event
from orchestrator.settings import Settings

PLAIN = f">={sys.version_info.major}.{sys.version_info.minor}"
CLEARED = ("PIP_", "UV_", "ORCHESTRATOR_", "HF_")


@dataclass
class Machine:
    """What a test needs to make families and environments."""

    root: Path
    settings: Settings
    events: list[Event] = field(default_factory=list)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def wheels(self) -> Path:
        return self.root / "wheels"

    @property
    def project(self) -> Path:
        return self.root / "project"

    @property
    def home(self) -> Path:
        return self.settings.home

    @property
    def store(self) -> EnvironmentStore:
        return EnvironmentStore(self.settings)

    @property
    def catalog(self) -> Catalog:
        return Catalog((self.project,))

    def wheel(self, name: str, version: str, **options: Any) -> Path:
        return make_wheel(self.wheels, name, version, **options)

    def declare(
        self,
        name: str,
        dependencies: Sequence[str] = (),
        *,
        python: str = PLAIN,
        project: str = "",
        uv: str = "",
        orchestrator: str = "",
    ) -> Family:
        """Writes `envs/<name>` and `workers/<name>.py`, and reads them back."""
        folder = self.project / "envs" / name
        folder.mkdir(parents=True, exist_ok=True)
        workers = self.project / "workers"
        workers.mkdir(exist_ok=True)
        (workers / f"{name}.py").touch()
        listed = ", ".join(f'"{text}"' for text in dependencies)
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nrequires-python = "{python}"\ndependencies = [{listed}]\n{project}\n'
            f'[tool.uv]\n{uv}\n[tool.orchestrator]\nworker = "{name}.py:Worker"\n{orchestrator}\n'
        )
        return self.catalog.get(name)

    def ensure(self, family: Family, **options: Any) -> Any:
        return self.store.ensure(family, self.events.append, **options)

    def with_settings(self, **changes: Any) -> Machine:
        return Machine(self.root, replace(self.settings, **changes))

    def leftovers(self) -> list[str]:
        """Everything in the store that is neither finished nor a record."""
        folder = self.home / "environments"
        hidden = [path.name for path in folder.glob(".*")] if folder.is_dir() else []
        work = self.home / "work"
        return hidden + ([path.name for path in work.iterdir()] if work.is_dir() else [])

    def start(self, code: str) -> subprocess.Popen[str]:
        """Runs `code` in another process, with `machine`, `family(name)` and `store` at hand."""
        prologue = (
            "import sys, time, os\nfrom pathlib import Path\n"
            "from orchestrator.settings import Settings\n"
            "from orchestrator.environments import Catalog, EnvironmentStore\n"
            f"settings = Settings(home=Path({str(self.home)!r}), project=Path({str(self.project)!r}))\n"
            f"family = Catalog((Path({str(self.project)!r}),)).get\n"
            "store = EnvironmentStore(settings)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", prologue + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process


@pytest.fixture(scope="session")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of the installed interpreters, which takes uv a moment to make."""
    home = tmp_path_factory.mktemp("interpreters")
    installed_interpreters(Settings(home=home))
    return home / "state" / "interpreters.json"


@pytest.fixture
def machine(tmp_path: Path, interpreters: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """No index, one folder of wheels, uv's cache apart from the user's."""
    for name in list(os.environ):
        if name.startswith(CLEARED):
            monkeypatch.delenv(name)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (tmp_path / "project").mkdir()
    make_wire(wheels)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setattr(torch_layer_module, "cuda_driver", lambda: None)
    monkeypatch.setattr(recipe_module, "cuda_driver", lambda: None)
    (tmp_path / "home" / "state").mkdir(parents=True)
    shutil.copy(interpreters, tmp_path / "home" / "state")
    machine = Machine(tmp_path, Settings(home=tmp_path / "home", project=tmp_path / "project"))
    yield machine
    for process in machine.started:  # a test that failed must not fail others by what it left
        with process:
            process.kill()
