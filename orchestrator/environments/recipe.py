"""A recipe: everything that decides what an environment is, found before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.environments.family import Family
from orchestrator.environments.interpreters import Interpreter, find_interpreter
from orchestrator.environments.lock import inputs_of, read_lock, store_lock
from orchestrator.environments.records import digest
from orchestrator.environments.requirements import name_of
from orchestrator.environments.torch_layer import resolve_torch_layer
from orchestrator.events import Listener, ignore
from orchestrator.settings import Settings

__all__ = ["Recipe", "recipe_for"]

FORMAT = "1"
"""Raised when environments of an older build must not be used any more."""


@dataclass(frozen=True)
class Recipe:
    """What an environment is made from. Families with equal recipes share it."""

    label: str
    interpreter: Interpreter
    requirements: str
    """Every distribution with version and hashes, as `uv pip sync` reads it."""
    link_mode: str
    torch_backend: str = "none"
    private: bool = False
    """Whether its files are copies that the family may change, so that nobody else may share it."""
    direct: tuple[str, ...] = ()
    """The distributions that the family names itself."""
    probe: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()
    """The distributions whose declared bounds the family overrides; a clash about them is meant."""
    variables: Mapping[str, str] = field(default_factory=dict)
    borrowed: Mapping[str, str] = field(default_factory=dict)
    """Distributions that are linked from another interpreter: folder -> digest of its RECORD."""

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: the resolved distributions, the interpreter and the platform."""
        lines = sorted(line.rstrip(" \\") for line in self.requirements.splitlines())
        private = ["private"] if self.private else []
        borrowed = [part for item in sorted(self.borrowed.items()) for part in item]
        return digest([FORMAT, *lines, *self.interpreter.identity, *private, *borrowed])[:16]

    def record(self) -> dict[str, Any]:
        """What an environment's marker keeps of it, so that it can be built again without its family."""
        return {
            **asdict(self),
            "interpreter": {**asdict(self.interpreter), "path": str(self.interpreter.path)},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Recipe:
        """The recipe that `record` was made of."""
        made_from = record["interpreter"]
        interpreter = Interpreter(Path(made_from["path"]), made_from["version"], made_from["libc"])
        kept: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in record.items()}
        return cls(**{**kept, "interpreter": interpreter})


def recipe_for(
    settings: Settings, family: Family, *, make: bool, retry: bool = False, listener: Listener = ignore
) -> Recipe | None:
    """The recipe of a family on this machine.

    Without `make` nothing is resolved: None means that something would have to be.

    Raises:
        InterpreterNotFound, ResolutionError: there is none.
    """
    committed = read_lock(family.lock_file)  # a variant keeps its Python, and of its versions what it can
    interpreter = find_interpreter(
        settings,
        family.requires_python,
        minor=committed.minor if committed else None,
        listener=listener,
        subject=family.label,
    )
    fresh = (
        committed is not None
        and committed.inputs == inputs_of(family)
        and committed.minor == interpreter.minor
    )
    lock = (
        committed
        if fresh
        else store_lock(settings, family, interpreter, make=make, retry=retry, listener=listener)
    )
    if lock is None:
        return None
    torch = resolve_torch_layer(
        settings, family, lock, interpreter, make=make, retry=retry, listener=listener
    )
    if torch is None:
        return None
    return Recipe(
        label=family.label,
        interpreter=interpreter,
        requirements="\n".join([*lock.blocks.values(), *torch.lines(lock)]) + "\n",
        link_mode=family.link_mode or settings.link_mode,
        torch_backend=torch.backend,
        private=family.link_mode == "copy",
        direct=tuple(name_of(text) for text in family.direct),
        probe=family.probe,
        overridden=tuple(name_of(text) for text in family.overrides),
        variables=dict(family.environment),
        borrowed=torch.borrowed,
    )
