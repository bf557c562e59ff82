"""Requirements as text: parsing, overlays of a variant, and which distributions are the torch layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from orchestrator.errors import ConfigError

__all__ = ["WIRE", "conditional", "in_torch_layer", "listed", "name_of", "normal", "overlay", "pin_of"]

WIRE = ("msgpack>=1.0.5", "numpy>=1.21", "pyzmq>=25.1")
"""What `orchestrator/worker/` needs in every environment."""

TORCH_NAMES = frozenset({"torch", "torchvision", "torchaudio", "triton"})
TORCH_PREFIXES = ("nvidia-", "cuda-", "pytorch-triton")
LATEST = re.compile(r"===?\s*latest\b", re.IGNORECASE)


def in_torch_layer(name: str) -> bool:
    """Whether a distribution depends on the machine (torch and what its builds bring along)."""
    plain = canonicalize_name(name)
    return plain in TORCH_NAMES or plain.startswith(TORCH_PREFIXES)


def parse(text: str) -> Requirement:
    """Reads one PEP 508 requirement; `NAME==latest` means `NAME` without a version.

    Raises:
        ConfigError: it is not a requirement.
    """
    try:
        return Requirement(LATEST.sub("", text).strip())
    except InvalidRequirement as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{text!r} is not a requirement: {reason}",
            hint="write it as pip does, for example 'transformers==4.39.3' or 'numpy>=1.26,<2'",
        ) from None


def listed(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    """The texts of the argument `name`. One text alone is a list too, of letters: "torch" would be five requirements.

    Raises:
        ConfigError: it is one text, or something in it is none.
    """
    found = () if isinstance(texts, str) or not isinstance(texts, Iterable) else tuple(texts)
    if (texts and not found) or not all(isinstance(text, str) for text in found):
        raise ConfigError(
            f"{name} is a list of texts, not {texts!r}", hint=f"write {name}=['transformers==4.39.3']"
        )
    return found


@lru_cache(maxsize=4096)
def name_of(text: str) -> str:
    """The normalised name of the distribution that a requirement is about."""
    return canonicalize_name(parse(text).name)


@lru_cache(maxsize=4096)
def normal(text: str) -> str:
    """One spelling for each requirement, without blanks around its version."""
    requirement = parse(text)
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


@lru_cache(maxsize=4096)
def pin_of(text: str) -> Version | None:
    """The version of `NAME==VERSION`, or None for anything looser."""
    specifiers = list(parse(text).specifier)
    if len(specifiers) != 1 or specifiers[0].operator not in {"==", "==="}:
        return None
    try:
        return Version(specifiers[0].version)
    except InvalidVersion:  # 4.39.*
        return None


def overlay(base: Iterable[str], with_: Sequence[str]) -> tuple[str, ...]:
    """`base` with every requirement of `with_` in the place of those of the same name, or added.

    Extras are kept: `transformers==4.39.3` over `transformers[torch]==5.23.0` is `transformers[torch]==4.39.3`.
    """
    over = {name_of(text): text for text in with_}
    result: list[str] = []
    placed: set[str] = set()
    for text in base:
        name = name_of(text)
        if name not in over:
            result.append(normal(text))
        elif name not in placed:
            placed.add(name)
            requirement = parse(over[name])
            requirement.extras |= parse(text).extras
            result.append(normal(str(requirement)))
    result.extend(normal(text) for name, text in over.items() if name not in placed)
    return tuple(result)


def conditional(rules: Mapping[str, Sequence[str]], requirements: Iterable[str]) -> tuple[str, ...]:
    """The constraints of those `rules` whose requirement the pins in `requirements` satisfy."""
    pins = {name_of(text): pin_of(text) for text in requirements}
    result: list[str] = []
    for condition, constraints in rules.items():
        rule = parse(condition)
        pin = pins.get(canonicalize_name(rule.name))
        if pin is not None and rule.specifier.contains(pin, prereleases=True):
            result.extend(normal(text) for text in constraints)
    return tuple(result)
