"""The one place that runs uv."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from subprocess import CompletedProcess

from orchestrator.environments.commands import run_command
from orchestrator.environments.indexes import mask, read_indexes
from orchestrator.errors import ConfigError, InstallError, ProvisioningError, ResolutionError
from orchestrator.events import Event, Listener, ignore
from orchestrator.settings import Settings

__all__ = ["find_uv", "refusal", "run_uv", "search_path", "uv_environment", "uv_version"]

PATIENCE = 1.5
"""Seconds after which uv's own words are passed on."""
finding = threading.Lock()
INDEXED = {"compile", "sync", "install"}
QUIET_LINE = re.compile(r"^(Using Python|Using CPython|Activate with|Creating virtual|Audited|Checked)\b")

UNREACHABLE = (
    "error sending request", "Request failed after", "dns error", "tcp connect error", "Could not connect",
    "connection closed", "Failed to fetch", "operation timed out", "Failed to read from the distribution cache",
    "HTTP status server error", "HTTP status client error",
)  # fmt: skip
OFFLINE = ("Network connectivity is disabled", "network was disabled")
FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "File too large", "os error 27")


def find_uv() -> str:
    """The path of uv: the one that came with us, else `$UV`, else the one on PATH.

    Raises:
        InstallError: there is none.
    """
    with finding:  # sysconfig, which uv's package asks, fills its table without a lock
        return _find_uv()


@lru_cache(maxsize=1)
def _find_uv() -> str:
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        found = os.environ.get("UV") or shutil.which("uv")
    if not found:
        raise InstallError("uv is not installed", hint="python -m pip install uv")
    return found


def run_uv(
    settings: Settings,
    args: Sequence[str],
    *,
    listener: Listener = ignore,
    subject: str = "",
    cwd: Path | None = None,
    offline: bool = False,
    variables: Mapping[str, str] | None = None,
    flags: Sequence[str] | None = None,
    timeout: float | None = None,
) -> CompletedProcess[str]:
    """Runs uv and returns what it said, whatever its exit code (`refusal` makes an error of one).

    pip's settings are translated unless `variables` (and `flags`) are given instead. `cwd` is by default the
    store, so that no project's configuration is picked up. The listener hears uv's own words once it takes
    longer than a moment. Ctrl-C ends uv and everything that it started.
    """
    indexes = read_indexes()
    command = [find_uv(), *args, "--no-progress", "--color", "never"]
    if args[0] == "pip" and len(args) > 1 and args[1] in INDEXED:
        command += indexes.flags if flags is None else flags
    if offline or settings.offline:
        command.append("--offline")
    derived = indexes.variables if variables is None else variables
    cwd = cwd or prepare_home(settings)
    try:
        return run_command(
            command,
            environ=uv_environment(settings, derived),
            cwd=cwd,
            say=_narrator(listener, subject),
            timeout=timeout,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise InstallError(
            f"uv cannot be run: {error}", hint="python -m pip install --force-reinstall uv"
        ) from None


def uv_environment(settings: Settings, derived: Mapping[str, str]) -> dict[str, str]:
    """The variables that uv gets: the user's own, the derived ones beneath them, and a usable PATH."""
    dropped = {
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "PYTHONHOME",
        "CONDA_PREFIX",
        "UV_PROJECT",
        "UV_WORKING_DIRECTORY",
    }
    environ = {name: value for name, value in os.environ.items() if name not in dropped}
    result = {**derived, **environ}
    for name in derived:
        if not environ.get(name):  # set but empty counts as not set
            result[name] = derived[name]
    result.setdefault("UV_PYTHON_DOWNLOADS", "automatic" if settings.python_downloads else "never")
    result["PATH"] = search_path(environ)
    return result


def search_path(environ: Mapping[str, str] = os.environ) -> str:
    """PATH for uv, without pyenv's shims (uv gives up at one of a version that is not activated) and with the
    interpreters behind them."""
    parts = [part for part in environ.get("PATH", os.defpath).split(os.pathsep) if part]
    home = Path(environ.get("HOME") or Path.home())
    roots = dict.fromkeys(Path(root) for root in (environ.get("PYENV_ROOT"), home / ".pyenv") if root)
    found = [str(folder) for root in roots for folder in sorted(root.glob("versions/3.*/bin"), reverse=True)]
    kept = [part for part in parts if Path(part).name != "shims"]
    return os.pathsep.join(dict.fromkeys([*kept, *found]))


def prepare_home(settings: Settings) -> Path:
    """Makes the store's folder. The empty `uv.toml` in it ends uv's search for a project's configuration."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o755)
        barrier = settings.home / "uv.toml"
        if not barrier.exists():
            barrier.write_text(
                "# Ends uv's search for configuration: environments do not depend on where the store is.\n"
            )
        everybodys = settings.home.stat().st_mode & 0o002
    except OSError as error:
        raise InstallError(
            f"the store {settings.home} cannot be written: {error.strerror}",
            hint="set ORCHESTRATOR_HOME to a folder that you own, on a disk with room",
        ) from None
    if everybodys:
        raise ConfigError(
            f"everybody can write the store {settings.home}: what anybody puts there would run as you",
            hint=f"chmod o-w {settings.home}, or set ORCHESTRATOR_HOME to a folder of your own",
        )
    return settings.home


@lru_cache(maxsize=1)
def uv_version() -> str:
    """uv's version, for `doctor` and for the records of environments."""
    import subprocess

    done = subprocess.run([find_uv(), "--version"], capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.split()[1] if done.returncode == 0 else "unknown"


def refusal(
    doing: str, process: CompletedProcess[str], otherwise: type[ProvisioningError] = InstallError
) -> ProvisioningError:
    """The error that an unsuccessful run of uv means; uv's own words are in its message and its `log`."""
    log = mask((process.stderr or "") + (process.stdout if not process.stderr else "")).strip()
    words = explanation(log) or f"uv ended with {process.returncode}"
    if any(mark in log for mark in FULL):
        return InstallError(
            f"{doing}: the disk is full\n{words}", hint="`orchestrator env prune` frees room", log=log
        )
    if any(mark in log for mark in OFFLINE):
        return InstallError(
            f"{doing}: not in the cache, and the network may not be asked\n{words}",
            hint="go online once, or put the wheels into a folder named by PIP_FIND_LINKS",
            log=log,
        )
    if "No solution found" in log or "was not found in the package registry" in log:
        return ResolutionError(f"{doing}: the requirements cannot be met together\n{words}", log=log)
    if any(mark in log for mark in UNREACHABLE):
        return InstallError(
            f"{doing}: the index does not answer\n{words}",
            hint="`orchestrator doctor` shows the index in force; a mirror is set by pip's index-url",
            log=log,
        )
    return otherwise(f"{doing}:\n{words}", log=log)


def explanation(log: str) -> str:
    """uv's own explanation, from its first line that says `error`."""
    lines = [line.rstrip() for line in log.splitlines() if not QUIET_LINE.match(line)]
    start = next((i for i, line in enumerate(lines) if line.lstrip().startswith("error:")), 0)
    return "\n".join(f"  {line}" for line in lines[start:] if line)


def _narrator(listener: Listener, subject: str) -> Callable[[str], None]:
    started = time.monotonic()

    def say(line: str) -> None:
        words = line.strip()
        if words and time.monotonic() - started > PATIENCE and not QUIET_LINE.match(words):
            listener(Event("environment", subject, f"uv: {mask(words)}"))

    return say
