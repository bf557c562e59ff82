"""Which Python an environment is made from."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from orchestrator.environments.records import read_json, write_json
from orchestrator.environments.uv import refusal, run_uv
from orchestrator.errors import InterpreterNotFound
from orchestrator.events import Listener, ignore
from orchestrator.settings import Settings

__all__ = ["Interpreter", "choose", "find_interpreter", "installed_interpreters"]

MACHINE = f"{sys.platform}-{platform.machine()}"
OLDEST = "3.8"
RESCAN = 300.0
"""Seconds after which a preferred version that was missing is looked for again."""


@dataclass(frozen=True)
class Interpreter:
    """An installed CPython."""

    path: Path
    version: str
    """The full version: `3.11.7`."""
    libc: str = ""

    @property
    def minor(self) -> str:
        """`3.11`."""
        return ".".join(self.version.split(".")[:2])

    @property
    def identity(self) -> tuple[str, ...]:
        """What of it an environment depends on."""
        return (str(self.path), self.version, self.libc, MACHINE)


def installed_interpreters(settings: Settings, *, fresh: bool = False) -> list[Interpreter]:
    """Every CPython that uv finds here, newest first, the running one before its equals.

    The answer is kept in the store and asked for again when `fresh`, or when one of them has changed.
    """
    record = _record(settings)
    known = None if fresh else read_json(record)
    if known is not None and known.get("of") == _mine():
        interpreters = [_from_record(item) for item in known["interpreters"]]
        if all(
            _stamp(i.path) == item["stamp"]
            for i, item in zip(interpreters, known["interpreters"], strict=True)
        ):
            return interpreters
    interpreters = _ask_uv(settings)
    write_json(record, {"of": _mine(), "interpreters": [_to_record(item) for item in interpreters]})
    return interpreters


def find_interpreter(
    settings: Settings,
    requires_python: str,
    *,
    minor: str | None = None,
    listener: Listener = ignore,
    subject: str = "",
) -> Interpreter:
    """The interpreter for a range: of the `minor` version preferred, else like the running one, else the newest.

    Raises:
        InterpreterNotFound: none fits; the message names those that are installed.
    """
    found = choose(installed_interpreters(settings), requires_python, minor)
    if found is None or (minor is not None and found.minor != minor and _age(settings) > RESCAN):
        found = choose(installed_interpreters(settings, fresh=True), requires_python, minor)
    if found is None and settings.python_downloads:
        wanted = minor if minor and _allows(requires_python, minor) else requires_python
        done = run_uv(settings, ["python", "install", wanted], listener=listener, subject=subject)
        if done.returncode != 0:
            raise refusal(f"Python {wanted} could not be downloaded", done, InterpreterNotFound)
        found = choose(installed_interpreters(settings, fresh=True), requires_python, minor)
    if found is not None:
        return found
    raise _not_found(installed_interpreters(settings), requires_python, minor, subject)


def _not_found(
    installed: Sequence[Interpreter], requires_python: str, minor: str | None, subject: str
) -> InterpreterNotFound:
    whose = f" of {subject}" if subject else ""
    have = ", ".join(dict.fromkeys(i.version for i in installed)) or "none"
    here = choose(installed, f">={OLDEST}", minor)
    use = (
        f"take one that is here (python='{here.minor}', or the family's requires-python), or " if here else ""
    )
    usual = [f"3.{n}" for n in (*range(11, 30), 10, 9, 8)]
    version = next((v for v in ([minor] if minor else []) + usual if _allows(requires_python, v)), None)
    get = (
        f"install Python {version}: `uv python install {version}`, `pyenv install {version}` or your system's "
        "packages; ORCHESTRATOR_PYTHON_DOWNLOADS=1 lets uv fetch it"
        if version
        else f"see what can be installed: `uv python list`; workers run on {OLDEST} or later"
    )
    return InterpreterNotFound(
        f"no installed Python satisfies {requires_python!r}{whose}; installed: {have}", hint=use + get
    )


def _allows(requires_python: str, minor: str) -> bool:
    """Whether some release of the minor version is in the range."""
    allowed = SpecifierSet(requires_python, prereleases=True)
    return any(f"{minor}.{patch}" in allowed for patch in range(30))


def choose(
    interpreters: Sequence[Interpreter], requires_python: str, minor: str | None
) -> Interpreter | None:
    """The best of `interpreters` for a range: of the `minor` preferred, like the running one, or the first."""
    allowed = SpecifierSet(requires_python, prereleases=True)
    fitting = [i for i in interpreters if i.version in allowed]
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    for preferred in (minor, running):
        for interpreter in fitting:
            if interpreter.minor == preferred:
                return interpreter
    return fitting[0] if fitting else None


def _ask_uv(settings: Settings) -> list[Interpreter]:
    done = run_uv(settings, ["python", "list", "--only-installed", "--output-format", "json"], timeout=120)
    if done.returncode != 0:
        raise refusal("the installed interpreters could not be listed", done, InterpreterNotFound)
    found: dict[Path, Interpreter] = {}
    for item in json.loads(done.stdout or "[]"):
        usable = (
            item["implementation"] == "cpython"
            and item.get("variant", "default") == "default"
            and item["path"]
        )
        if usable and Version(item["version"]) >= Version(OLDEST):
            path = _base(Path(item["path"]))
            found.setdefault(path, Interpreter(path, item["version"], item.get("libc") or ""))
    base = _base(Path(getattr(sys, "_base_executable", sys.executable)))
    return sorted(
        found.values(), key=lambda i: (Version(i.version), i.path == base, str(i.path)), reverse=True
    )


def _base(path: Path) -> Path:
    """The one name of an interpreter that goes by several (`python`, `python3`, `python3.11`)."""
    real = path.resolve()
    return real if real.name.startswith("python") else path


def _record(settings: Settings) -> Path:
    return settings.home / "state" / "interpreters.json"


def _age(settings: Settings) -> float:
    try:
        return time.time() - _record(settings).stat().st_mtime
    except OSError:
        return RESCAN + 1


def _mine() -> list[str]:
    return [sys.version, MACHINE]


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _to_record(interpreter: Interpreter) -> dict[str, object]:
    return {**asdict(interpreter), "path": str(interpreter.path), "stamp": _stamp(interpreter.path)}


def _from_record(item: dict[str, str]) -> Interpreter:
    return Interpreter(Path(item["path"]), item["version"], item["libc"])
