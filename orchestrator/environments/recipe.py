"""A recipe: everything that decides what an environment is, found before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.environments.borrow import PREFIX
from orchestrator.environments.driver import cuda_driver
from orchestrator.environments.family import Family
from orchestrator.environments.interpreters import (
    Interpreter,
    choose,
    find_interpreter,
    installed_interpreters,
)
from orchestrator.environments.lock import inputs_of, read_lock, split_blocks, store_lock
from orchestrator.environments.records import digest
from orchestrator.environments.requirements import name_of
from orchestrator.environments.torch_layer import is_accelerated, resolve_torch_layer
from orchestrator.errors import InstallError
from orchestrator.events import Listener, ignore
from orchestrator.settings import Settings

__all__ = ["Recipe", "recipe_for", "recipe_of_lock"]

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


def recipe_of_lock(
    settings: Settings,
    family: Family,
    lock: str,
    *,
    python: str,
    torch_backend: str,
    listener: Listener = ignore,
) -> Recipe:
    """The recipe of exactly the distributions of a built environment's `requirements.lock`; nothing is resolved.

    The interpreter is of the full version `python` where one is installed, else of its minor version. On the machine
    that the lock is from, the recipe has the id of the environment that it is from.

    Raises:
        InterpreterNotFound: there is no Python of that minor version.
        InstallError: the lock is not for this machine: torch is borrowed, or built for a GPU that is not here.
    """
    if torch_backend.startswith(PREFIX):
        raise InstallError(
            f"its torch was borrowed from {torch_backend.removeprefix(PREFIX)}, and a lock cannot hold that"
        )
    if is_accelerated(torch_backend) and cuda_driver() is None and settings.torch_backend != torch_backend:
        raise InstallError(
            f"it has the {torch_backend} build of torch, and there is no NVIDIA driver here",
            hint=f"ORCHESTRATOR_TORCH_BACKEND={torch_backend} installs it all the same",
        )
    minor = ".".join(python.split(".")[:2])
    same = choose(installed_interpreters(settings), f"=={python}", None)
    return Recipe(
        label=family.label,
        interpreter=same
        or find_interpreter(settings, f"=={minor}.*", minor=minor, listener=listener, subject=family.label),
        requirements="\n".join(split_blocks(lock).values()) + "\n",
        torch_backend=torch_backend,
        **_declared(settings, family),
    )


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
        torch_backend=torch.backend,
        borrowed=torch.borrowed,
        **_declared(settings, family),
    )


def _declared(settings: Settings, family: Family) -> dict[str, Any]:
    """What of a recipe the family says, whatever its distributions are."""
    return {
        "link_mode": family.link_mode or settings.link_mode,
        "private": family.link_mode == "copy",
        "direct": tuple(name_of(text) for text in family.direct),
        "probe": family.probe,
        "overridden": tuple(name_of(text) for text in family.overrides),
        "variables": dict(family.environment),
    }
