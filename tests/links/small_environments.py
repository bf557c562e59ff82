"""Small environments for the tests of links: an interpreter and the wire's own needs, kept in the user's cache."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import platformdirs
from filelock import FileLock

from orchestrator.environments import Environment
from orchestrator.environments.interpreters import find_interpreter
from orchestrator.environments.uv import run_uv
from orchestrator.settings import Settings

CACHE = Path(platformdirs.user_cache_dir("orchestrator-tests"))
WIRE = ("pyzmq", "msgpack")


def small_environment(python: str, *requirements: str) -> Environment:
    """An environment with `requirements`; built once per machine. `LookupError` if there is no such interpreter."""
    settings = Settings(home=CACHE / "home")
    wanted = (*WIRE, *requirements)
    key = hashlib.sha256("\n".join((python, *wanted)).encode()).hexdigest()[:16]
    path = CACHE / f"venv-{python}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not (path / "ready").exists():
            shutil.rmtree(path, ignore_errors=True)
            _build(settings, python, wanted, path)
            (path / "ready").touch()
    versions = dict(
        entry.name[: -len(".dist-info")].split("-")[:2]
        for entry in path.glob("lib/python*/site-packages/*.dist-info")
    )
    return Environment(
        id=f"test-{key}",
        family="toy",
        path=path,
        python=path / "bin" / "python",
        python_version=python,
        versions=versions,
        modules_cache=CACHE / "modules",
    )


def _build(settings: Settings, python: str, wanted: tuple[str, ...], path: Path) -> None:
    interpreter = find_interpreter(settings, f"=={python}.*")
    for args in (
        ["venv", "--no-project", "--python", str(interpreter.path), str(path)],
        ["pip", "install", "--python", str(path / "bin" / "python"), *wanted],
    ):
        done = run_uv(settings, args, timeout=600)
        if done.returncode:
            raise RuntimeError(done.stderr)
