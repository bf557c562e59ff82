"""The pin knowledge base: which environment a checkpoint needs, from its id or from what its folder says, and why.

The knowledge is data, `envs/known_pins.toml`; a project's own `envs/known_pins.toml` is read before the built-in one.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from orchestrator.checkpoint_json import read_object
from orchestrator.diagnosis import foresee, releases_knowing
from orchestrator.environments import Catalog, Family
from orchestrator.errors import CheckpointError, ConfigError

__all__ = ["Suggestion", "family_for", "suggest"]

HUBS = ("hf:", "modelscope:", "pypi:", "tiny:")


@dataclass(frozen=True)
class Suggestion:
    """What to run a checkpoint in.

    `family` is a family's name, or None when only requirements are known; `requirements` go into `--with`; `why` is in
    words, one reason a line; `source` says where it was learned; `notes` are warnings about this folder. `environment`
    is what the family's environment holds with these requirements; `own_code` says that the family is to run code that
    the folder brings.
    """

    checkpoint: str
    family: str | None
    requirements: tuple[str, ...]
    why: tuple[str, ...]
    source: str
    model_type: str | None = None
    notes: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    own_code: bool = False

    @property
    def label(self) -> str:
        """The family with its overlay, as `load` and `--family` take it; empty where there is none."""
        if self.family is None:
            return ""
        return f"{self.family}[{', '.join(self.requirements)}]" if self.requirements else self.family


@dataclass(frozen=True)
class Evidence:
    """What is known of a checkpoint before anything is loaded: its id, and its folder's config.json where there is one."""

    name: str
    folder: Path | None
    config: Mapping[str, Any]

    @property
    def model_type(self) -> str | None:
        """`model_type`; of a ModelScope folder its task."""
        found = self.config.get("model_type")
        return found if isinstance(found, str) else None

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that config.json names."""
        found = self.config.get("architectures")
        return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()


def family_for(checkpoint: Path | str, catalog: Catalog) -> str | None:
    """The family that serves a checkpoint (a folder, or an id by its pattern), or None when an id says too little.

    It is a label where its pins need an overlay: `causal-lm[transformers>=5.2]`.

    Raises:
        ConfigError: the folder names a model type that no family serves; says which transformers releases know it.
    """
    evidence = gather(checkpoint)
    try:
        found = suggest(checkpoint, catalog)
    except CheckpointError:
        return None
    if found.family is not None:
        return found.label
    if evidence.model_type is None:
        return None
    raise ConfigError(
        f"no family serves the model type {evidence.model_type!r} of {checkpoint}",
        hint="; ".join((*found.why, "name a family that can run it (orchestrator family list)")),
    )


def suggest(checkpoint: Path | str, catalog: Catalog) -> Suggestion:
    """The environment to use for a checkpoint, and why.

    Raises:
        CheckpointError: nothing is known about it.
    """
    evidence = gather(checkpoint)
    pin = next(_pins(evidence, catalog), None)
    if match := _family(evidence, catalog):
        name, why, source, generic = match
        family = catalog.get(name)
        overlay, more = _overlay(evidence, family, pin if generic or not evidence.config else None)
        warnings = _warnings(evidence, family, overlay)
        return Suggestion(
            str(checkpoint),
            name,
            overlay,
            (why, *more),
            source,
            evidence.model_type,
            (*_notes(evidence), *warnings),
            catalog.get(name, overlay).direct,
            family.trust_remote_code and "auto_map" in evidence.config,
        )
    if pin is not None:
        why = f"{pin['group']}: known to work with {', '.join(pin['requirements'])}"
        extra = (pin["note"],) if "note" in pin else ()
        requirements = tuple(pin["requirements"])
        return Suggestion(
            str(checkpoint),
            None,
            requirements,
            (why, *extra),
            pin["source"],
            evidence.model_type,
            _notes(evidence),
        )
    return _by_model_type(checkpoint, evidence)


def gather(checkpoint: Path | str) -> Evidence:
    """Reads what there is: config.json (or ModelScope's configuration.json) of a folder; of an id only its words."""
    text = str(checkpoint)
    folder = Path(text).expanduser()
    if folder.is_file() and folder.name == "config.json":
        folder = folder.parent
    if not folder.is_dir():
        return Evidence(_plain_id(text), None, {})
    config = read_object(folder / "config.json")
    if not config and (modelscope := read_object(folder / "configuration.json")):
        task = str(modelscope.get("task", "")).replace("-", "_")
        config = {"model_type": task} if task else {}
    name = config.get("_name_or_path")
    return Evidence(name if isinstance(name, str) and "/" in name else folder.name, folder, config)


def _family(evidence: Evidence, catalog: Catalog) -> tuple[str, str, str, bool] | None:
    """Name, reason, source, and whether it is a generic one: what a folder says goes before what its name suggests."""
    names = catalog.names()
    rules = [rule for rule in _entries(catalog, "rule") if evidence.config and rule["family"] in names]
    for rule in (rule for rule in rules if not rule.get("generic") and _applies(rule, evidence)):
        return rule["family"], _with_type(rule["why"], evidence), rule["source"], False
    declared = catalog.for_checkpoint(evidence.name)
    if declared is not None:
        why = f"{evidence.name} is of a kind that the family {declared.name} declares"
        return declared.name, why, f"envs/{declared.folder.name}/pyproject.toml", False
    pin = next((pin for pin in _pins(evidence, catalog) if pin.get("family") in names), None)
    named = pin is not None and any(_fit(pattern, evidence.name) for pattern in pin.get("checkpoints", ()))
    if not named and evidence.model_type is not None and releases_knowing(evidence.model_type) is not None:
        for rule in (rule for rule in rules if rule.get("generic") and _applies(rule, evidence)):
            return rule["family"], _with_type(rule["why"], evidence), rule["source"], True
    return (pin["family"], pin["group"], pin["source"], False) if pin else None


def _applies(rule: Mapping[str, Any], evidence: Evidence) -> bool:
    """Every condition of the rule; one of several values is enough for a condition."""
    folder, config = evidence.folder, evidence.config
    labels = " ".join(str(label) for label in (config.get("id2label") or {}).values())
    return (
        ("model_types" not in rule or _any(rule["model_types"], (evidence.model_type or "",)))
        and ("architectures" not in rule or _any(rule["architectures"], evidence.architectures))
        and all(folder is not None and (folder / name).is_file() for name in rule.get("files", ()))
        and all(key in config for key in rule.get("keys", ()))
        and all(re.search(pattern, labels) for pattern in rule.get("labels", ()))
    )


def _any(patterns: list[str], values: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, value) for pattern in patterns for value in values)


def _pins(evidence: Evidence, catalog: Catalog) -> Iterator[Mapping[str, Any]]:
    """The pins that fit: by id, the longest pattern first; then by model type."""
    pins = _entries(catalog, "pin")
    fits = [
        (max((_fit(p, evidence.name) for p in pin.get("checkpoints", ())), default=0), pin) for pin in pins
    ]
    yield from (pin for length, pin in sorted(fits, key=lambda found: -found[0]) if length)
    if evidence.model_type is not None:
        yield from (pin for pin in pins if _any(pin.get("model_types", []), (evidence.model_type,)))


def _fit(pattern: str, name: str) -> int:
    """The length of a pattern that matches, else 0. A name without an organisation is held against the bare name."""
    whole = pattern if "/" in name else pattern.rpartition("/")[2]
    return len(whole) if fnmatch.fnmatchcase(name.lower(), whole.lower()) else 0


def _overlay(
    evidence: Evidence, family: Family, pin: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What must be laid over the family's pins for this checkpoint, and why: a known pin, or a release that knows it."""
    pinned = _pinned(family.dependencies)
    if pinned is None:
        return (), ()
    if pin is not None:
        wanted = tuple(text for text in pin["requirements"] if not _held(text, family.dependencies))
        note = (pin["note"],) if wanted and "note" in pin else ()
        return wanted, (f"{pin['group']}: {', '.join(wanted)} ({pin['source']})", *note) if wanted else ()
    known = releases_knowing(evidence.model_type) if evidence.model_type else None
    if known is None or Requirement(known).specifier.contains(pinned):
        return (), ()
    return (known,), (
        f"the family's transformers {pinned} does not know {evidence.model_type}; {known} does",
    )


def _pinned(requirements: Iterable[str]) -> str | None:
    """The version that the requirements pin transformers to."""
    for requirement in map(Requirement, requirements):
        if requirement.name == "transformers":
            return next((one.version for one in requirement.specifier if one.operator == "=="), None)
    return None


def _held(text: str, dependencies: Iterable[str]) -> bool:
    """Whether the family's own pins fulfil a requirement already."""
    wanted = Requirement(text)
    for own in map(Requirement, dependencies):
        version = next((one.version for one in own.specifier if one.operator == "=="), None)
        if own.name == wanted.name and version is not None:
            return wanted.specifier.contains(version)
    return False


def _warnings(evidence: Evidence, family: Family, overlay: tuple[str, ...]) -> tuple[str, ...]:
    """The silent traps of this folder with the transformers that would run it."""
    version = _pinned((*overlay, *family.dependencies))
    foreseen = foresee(evidence.config, {"transformers": version}) if version else ()
    return tuple(f"{trap.title}: {trap.remedy}" for trap in foreseen)


def _notes(evidence: Evidence) -> tuple[str, ...]:
    notes = []
    if writer := evidence.config.get("transformers_version"):
        notes.append(f"written by transformers {writer}")
    if "auto_map" in evidence.config:
        notes.append("brings code of its own: trust_remote_code with a pinned revision")
    return tuple(notes)


def _by_model_type(checkpoint: Path | str, evidence: Evidence) -> Suggestion:
    notes = _notes(evidence)
    if evidence.model_type is None:
        raise CheckpointError(
            f"nothing is known about {checkpoint}"
            + ("" if evidence.folder is None else ": its config.json has no model_type"),
            hint="fetch it first (orchestrator checkpoint fetch) and ask for the folder: its config.json says what it is",
        )
    known = releases_knowing(evidence.model_type)
    writer = evidence.config.get("transformers_version")
    if known is not None:
        return Suggestion(
            str(checkpoint), None, (known,), (f"{known} has {evidence.model_type}",),
            "the mapping of model types in the released wheels", evidence.model_type, notes,
        )  # fmt: skip
    why = f"no released transformers up to 5.23 has {evidence.model_type}: it needs code of its own"
    requirements = (f"transformers=={writer}",) if writer else ()
    more = (f"config.json was written by transformers {writer}",) if writer else ()
    return Suggestion(
        str(checkpoint), None, requirements, (why, *more), "config.json", evidence.model_type, notes
    )


def _with_type(why: str, evidence: Evidence) -> str:
    return f"{why} (model_type {evidence.model_type})" if evidence.model_type else why


def _entries(catalog: Catalog, kind: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for root in catalog.roots:
        path = root / "envs" / "known_pins.toml"
        if not path.is_file():
            continue
        try:
            found += tomllib.loads(path.read_text(encoding="utf-8")).get(kind, [])
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"not valid TOML: {error}", path=str(path)) from None
    return found


def _plain_id(text: str) -> str:
    """An id without its hub, revision and path inside."""
    for hub in HUBS:
        text = text.removeprefix(hub)
    return re.split(r"[@#]|==", text)[0].rstrip("/")
