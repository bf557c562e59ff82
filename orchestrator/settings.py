"""Settings: command line > environment (`ORCHESTRATOR_*`) > the project's pyproject.toml > default."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import platformdirs

from orchestrator.errors import ConfigError

__all__ = ["PREFIX", "Settings", "find_project", "load_settings"]

PREFIX = "ORCHESTRATOR_"
TRUE = {"1", "on", "yes", "true"}  # as huggingface_hub reads its own variables
FALSE = {"0", "off", "no", "false", ""}


@dataclass(frozen=True)
class Settings:
    """Every setting, its meaning and its default. `sources` says where each value came from."""

    home: Path = field(default_factory=lambda: Path(platformdirs.user_cache_dir("orchestrator")))
    """Environments, fetched checkpoints, logs and run-time files."""
    project: Path | None = None
    """The folder that holds the user's own `envs/` and `workers/`."""
    torch_backend: str = "auto"
    """`auto`, `cpu`, `cu126` … or a local version; which build of torch an environment gets."""
    offline: bool = False
    """Never ask an index or a hub; what is not cached is an error."""
    link_mode: str = "hardlink"
    """How uv puts files into environments: `hardlink`, `copy`, `clone` or `symlink`."""
    python_downloads: bool = False
    """Whether uv may download an interpreter that the machine does not have."""
    start_timeout: float = 120.0
    """Seconds that a worker has to say hello."""
    load_timeout: float = 3600.0
    """Seconds that a checkpoint has to load."""
    heartbeat_timeout: float = 60.0
    """Seconds without a sign of life after which a worker is taken for dead."""
    stop_grace: float = 5.0
    """Seconds between asking a worker to stop, SIGTERM and SIGKILL."""
    room_timeout: float = 60.0
    """Seconds that a model waits for busy ones to become idle when it needs their room, before `PlacementError`."""
    memory_limits: str = ""
    """What all models together may take of a device: `cpu=8GiB,0=20GiB`; a device that is not named is not limited."""
    queue_depth: int = 10_000
    """Calls that may wait for one deployment before `Overloaded`."""
    threads: int = 0
    """CPU threads of every worker; 0 shares the cores among the workers that run. More or fewer threads move the last
    bits of a result."""
    log_format: str = "text"
    """`text` or `json`: how the command line writes its talk to stderr, and what `orchestrator logs` prints."""
    transport: Literal["ipc", "tcp"] = "ipc"
    """How workers are spoken to: `ipc`, with large arrays in shared memory, or `tcp` on 127.0.0.1, encrypted (CURVE)."""
    results_limit: float = 10.0
    """GiB of cached results of workflows that are kept."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def logs(self) -> Path:
        """The folder of the workers' log files."""
        return self.home / "logs"


NAMES = tuple(f.name for f in fields(Settings) if f.name != "sources")


def find_project(start: Path | None = None) -> Path | None:
    """The nearest folder at or above `start` that has `envs/`, `workers/` or a `[tool.orchestrator]` table."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "envs").is_dir() or (folder / "workers").is_dir() or _table(folder):
            return folder
    return None


def load_settings(
    overrides: Mapping[str, Any] | None = None,
    *,
    project: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Reads the settings in force.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type; names the file or variable.
    """
    project = project.resolve() if project is not None else find_project()
    values: dict[str, Any] = {}
    sources: dict[str, str] = dict.fromkeys(NAMES, "default")
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if project is not None:
        layers.append((str(project / "pyproject.toml"), _table(project)))
    layers.append(("environment", _from_environment(environ)))
    layers.append(("command line", {k: v for k, v in (overrides or {}).items() if v is not None}))
    for source, table in layers:
        for key, value in table.items():
            name = key.replace("-", "_")
            values[name] = _convert(name, value, source)
            sources[name] = source
    values.setdefault("project", project)
    return Settings(**values, sources=sources)


def _table(folder: Path) -> Mapping[str, Any]:
    path = folder / "pyproject.toml"
    if not path.is_file():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", path=str(path)) from None
    table = document.get("tool", {}).get("orchestrator", {})
    return table if isinstance(table, dict) else {}


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the variables say; an empty one says nothing, as a job's `NAME: ${{ … }}` leaves it."""
    known = {PREFIX + name.upper(): name for name in NAMES}
    return {name: environ[variable] for variable, name in known.items() if environ.get(variable)}


_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _convert(name: str, value: Any, source: str) -> Any:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        raise ConfigError(
            f"unknown setting {name!r} in {source}",
            hint=f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(NAMES)}",
        )
    kind = get_type_hints(Settings)[name]
    try:
        if get_origin(kind) is Literal:
            return _one_of(get_args(kind), value)
        if kind is bool:
            return _boolean(value)
        if kind in (int, float, str):
            return kind(value)
        return Path(value).expanduser().absolute()
    except (TypeError, ValueError):
        expected = " or ".join(get_args(kind)) if get_origin(kind) is Literal else _KINDS.get(kind, "a path")
        raise ConfigError(f"setting {name!r} in {source} cannot be {value!r}: expected {expected}") from None


def _one_of(choices: tuple[str, ...], value: Any) -> str:
    text = str(value).strip().lower()
    if text not in choices:
        raise ValueError(value)
    return text


def _boolean(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(value)
