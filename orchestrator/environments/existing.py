"""Interpreters that exist already: checked and recorded, never changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from orchestrator.environments.commands import run_command
from orchestrator.environments.environment import Environment
from orchestrator.environments.family import Family
from orchestrator.environments.records import digest, read_json, write_json
from orchestrator.environments.requirements import WIRE, name_of, parse
from orchestrator.environments.uv import prepare_home
from orchestrator.errors import InstallError, InterpreterNotFound
from orchestrator.settings import Settings

__all__ = ["Existing", "existing_environment", "look_into"]

SCRIPT = """
import importlib.metadata, json, sys, sysconfig
found = {}
for item in importlib.metadata.distributions():
    if item.metadata["Name"]:
        found.setdefault(item.metadata["Name"], item.version)
sites = list(dict.fromkeys([sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]))
paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
print(json.dumps({
    "version": sys.version.split()[0], "prefix": sys.prefix, "distributions": found,
    "sites": list(dict.fromkeys(sites + paths)),
}))
"""


@dataclass(frozen=True)
class Existing:
    """What an interpreter says about itself."""

    python: Path
    version: str
    prefix: Path
    sites: tuple[Path, ...]
    """The folders that its distributions may be in."""
    distributions: Mapping[str, str]
    """Normalised name -> version."""

    @property
    def minor(self) -> str:
        """`3.11`."""
        return ".".join(self.version.split(".")[:2])


def look_into(settings: Settings, python: Path) -> Existing:
    """Asks an interpreter; its answer is kept while neither it nor its folders of packages change.

    Raises:
        InterpreterNotFound: there is none, or it is not a Python 3.8 or later.
    """
    record = settings.home / "state" / "existing" / f"{digest([str(python)])[:32]}.json"
    known = read_json(record)
    if known is not None and known["stamp"] == _stamp(python, known["answer"]["sites"]):
        return _from_answer(python, known["answer"])
    if not python.is_file():
        raise InterpreterNotFound(
            f"there is no interpreter {python}", hint="correct `python` in [tool.orchestrator]"
        )
    done = run_command(
        [str(python), "-I", "-B", "-c", SCRIPT],
        environ=os.environ,
        cwd=prepare_home(settings),
        say=lambda _: None,
        timeout=120,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise InterpreterNotFound(
            f"{python} is not a usable Python: {last}", hint="Python 3.8 or later is needed"
        ) from None
    write_json(record, {"stamp": _stamp(python, answer["sites"]), "answer": answer})
    return _from_answer(python, answer)


def existing_environment(settings: Settings, family: Family, python: Path) -> Environment:
    """A family's environment in an interpreter that exists already.

    Raises:
        InterpreterNotFound: it is not there, or not of a version that the family allows.
        InstallError: packages are missing or of other versions; nothing is installed into it.
    """
    found = look_into(settings, python)
    if found.version not in SpecifierSet(family.requires_python, prereleases=True):
        raise InterpreterNotFound(
            f"{family.label} needs Python {family.requires_python}, and {python} is {found.version}"
        )
    wrong = [text for text in (_fault(found, text) for text in family.requirements) if text]
    if wrong:
        needed = " ".join(f"'{text}'" for text in (*family.direct, *WIRE) if _fault(found, text))
        raise InstallError(
            f"{python} lacks what {family.label} needs: {'; '.join(wrong)}",
            hint=f"it is not changed for you; install them yourself: {python} -m pip install {needed}",
        )
    id_ = digest(
        [str(python), found.version, *(f"{n}=={v}" for n, v in sorted(found.distributions.items()))]
    )[:16]
    return Environment(
        id=id_,
        family=family.label,
        path=found.prefix,
        python=python,
        python_version=found.version,
        versions=found.distributions,
        modules_cache=settings.home / "modules" / id_,
        torch_backend="existing",
        borrowed=True,
    )


def _fault(found: Existing, text: str) -> str | None:
    requirement = parse(text)
    here = {"python_version": found.minor, "python_full_version": found.version}
    if requirement.marker is not None and not requirement.marker.evaluate(here):
        return None
    version = found.distributions.get(name_of(text))
    if version is None:
        return f"{text} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{text} is wanted and {version} is installed"
    return None


def _from_answer(python: Path, answer: Mapping[str, Any]) -> Existing:
    named = {name_of(name): version for name, version in sorted(answer["distributions"].items())}
    return Existing(
        python, answer["version"], Path(answer["prefix"]), tuple(map(Path, answer["sites"])), named
    )


def _stamp(python: Path, sites: list[str]) -> list[int]:
    stamps = []
    for path in (python, *map(Path, sites)):
        try:
            stamps.append(path.stat().st_mtime_ns)
        except OSError:
            stamps.append(0)
    return stamps
