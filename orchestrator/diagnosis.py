"""Known failures of this field: from the words of an error to its cause and what this tool can do about it.

The knowledge is data, `diagnosis_table.toml` (failures and silent traps, each with where it was learned) and
`model_types.toml` (which transformers releases know which `model_type`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from packaging.specifiers import SpecifierSet

from orchestrator.errors import ConfigError

__all__ = ["Diagnosis", "Failure", "Trap", "diagnose", "failures", "foresee", "releases_knowing", "traps"]

HERE = Path(__file__).parent
LENGTH = 50_000  # of a traceback that is looked at, from its end: the patterns are cheap, but text from outside is not


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is the matter: a `title` for a line, the `cause`, the `remedy` in this tool's words, the entry's `id`."""

    id: str
    title: str
    cause: str
    remedy: str
    source: str = ""


@dataclass(frozen=True)
class Failure:
    """An entry that is known by the words of an error. `transformers` says in which releases it can happen."""

    id: str
    title: str
    patterns: tuple[re.Pattern[str], ...]
    cause: str
    remedy: str
    source: str
    transformers: SpecifierSet | None = None
    families: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Other remedies by family: what helps may depend on who fails."""


@dataclass(frozen=True)
class Trap:
    """A failure without an error: the same folder, other answers.

    `config` are conditions on config.json under which it is known before anything is loaded; without any it is told by
    documentation and tests only.
    """

    id: str
    title: str
    cause: str
    remedy: str
    source: str
    transformers: SpecifierSet | None = None
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def diagnose(
    error_type: str, message: str, traceback: str, versions: Mapping[str, str], family: str | None
) -> Diagnosis | None:
    """The first entry that fits an error which a family's code raised, or None.

    `versions` are the distributions of its environment; they choose between entries and are quoted in them.
    """
    text = f"{error_type}: {message}\n{traceback[-LENGTH:]}"
    transformers = versions.get("transformers", "")
    for failure in failures():
        if not _holds(failure.transformers, transformers):
            continue
        for pattern in failure.patterns:
            if match := pattern.search(text):
                words = _words(match, transformers, versions)
                remedy = failure.families.get(family or "", failure.remedy)
                return Diagnosis(
                    failure.id,
                    _filled(failure.title, words),
                    _filled(failure.cause, words),
                    _filled(remedy, words),
                    failure.source,
                )
    return None


def foresee(config: Mapping[str, Any], versions: Mapping[str, str]) -> tuple[Diagnosis, ...]:
    """The silent traps that a checkpoint's config.json would spring in an environment with these `versions`."""
    transformers = versions.get("transformers", "")
    return tuple(
        Diagnosis(trap.id, trap.title, trap.cause, trap.remedy, trap.source)
        for trap in traps()
        if trap.config and _holds(trap.transformers, transformers) and _fits(trap.config, config)
    )


def releases_knowing(model_type: str) -> str | None:
    """Which transformers releases know a `model_type`, as a requirement ("transformers>=4.45"), or None.

    Asked about one that another spelling has (`qwen2-vl`), it answers for that.
    """
    first, gone = _model_types()
    for name in (model_type, model_type.replace("-", "_"), model_type.replace("_", "-")):
        if name in first:
            until = f",<{gone[name]}" if name in gone else ""
            return f"transformers>={first[name]}{until}"
    return None


@cache
def failures() -> tuple[Failure, ...]:
    """The table's failures in the order in which they are tried: the special before the general."""
    return tuple(_failure(entry) for entry in _table()["failure"])


@cache
def traps() -> tuple[Trap, ...]:
    """The table's silent traps."""
    return tuple(Trap(**_common(entry), config=entry.get("config", {})) for entry in _table()["trap"])


def _failure(entry: Mapping[str, Any]) -> Failure:
    patterns = tuple(re.compile(text) for text in entry["patterns"])
    return Failure(**_common(entry), patterns=patterns, families=entry.get("families", {}))


def _common(entry: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: entry[key] for key in ("id", "title", "cause", "remedy", "source")}
    versions = entry.get("transformers")
    return {**texts, "transformers": SpecifierSet(versions) if versions else None}


@cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads((HERE / "diagnosis_table.toml").read_text(encoding="utf-8"))


@cache
def _model_types() -> tuple[Mapping[str, str], Mapping[str, str]]:
    table = tomllib.loads((HERE / "model_types.toml").read_text(encoding="utf-8"))
    first, gone = (
        {name: v for v, names in table[key].items() for name in names} for key in ("first", "gone")
    )
    return first, gone


def _holds(wanted: SpecifierSet | None, version: str) -> bool:
    """Whether an entry can be meant; of an unknown version everything can."""
    return wanted is None or not version or wanted.contains(version, prereleases=True)


def _fits(conditions: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Every condition: `has`/`lacks` keys, `equal` values, `patterns` of values (all of the top level)."""
    unknown = set(conditions) - {"has", "lacks", "equal", "patterns"}
    if unknown:
        raise ConfigError(f"diagnosis_table.toml: unknown condition {min(unknown)!r}")
    return (
        all(config.get(key) is not None for key in conditions.get("has", ()))
        and all(config.get(key) is None for key in conditions.get("lacks", ()))
        and all(config.get(key) == value for key, value in conditions.get("equal", {}).items())
        and all(re.search(p, str(config.get(key, ""))) for key, p in conditions.get("patterns", {}).items())
    )


def _words(match: re.Match[str], transformers: str, versions: Mapping[str, str]) -> dict[str, str]:
    """What an entry's texts may quote: the pattern's named groups, versions, and what follows from them."""
    words = {name: value for name, value in match.groupdict().items() if value}
    words.update({f"version_{name.replace('-', '_')}": version for name, version in versions.items()})
    words["transformers"] = f"transformers {transformers}" if transformers else "this transformers"
    if "model_type" in words:
        known = releases_knowing(words["model_type"])
        words["knowing"] = (
            f"It is known to {known}"
            if known
            else "No released transformers up to 5.23 has it: it needs its own code"
        )
        words["overlay"] = f"--with '{known}'" if known else "trust_remote_code=True with a pinned revision"
    if "module" in words:
        package = words["module"].split(".")[0]
        words["distribution"] = _table()["distribution"].get(package, package)
    if "name" in words:
        having = _table()["names"].get(words["name"])
        words["having"] = f"transformers{having} has it" if having else "another release may have it"
        words["overlay"] = f"--with 'transformers{having}'" if having else "another release of transformers"
    return words


def _filled(text: str, words: Mapping[str, str]) -> str:
    """`{name}` replaced where the word is known; no format mini-language, since the words come from outside."""
    return re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], match[1]), text)
