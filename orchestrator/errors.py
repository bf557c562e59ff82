"""Every error that this package raises on purpose.

OrchestratorError
├── ConfigError                 a file, option or argument is wrong                     (exit 2, HTTP 400)
├── ProvisioningError           an environment could not be made                        (exit 3, HTTP 503)
│   ├── InterpreterNotFound     no Python satisfies `requires-python`
│   ├── ResolutionError         the requirements contradict each other or do not exist
│   └── InstallError            the index, a wheel, the disk or the import probe failed
├── CheckpointError             a checkpoint cannot be found, fetched or trusted        (exit 1, HTTP 404)
├── PlacementError              no device has the room                                  (exit 4, HTTP 507)
├── Overloaded                  the queue of a deployment is full                       (exit 1, HTTP 429)
├── Quarantined                 a deployment failed too often and is not started again  (exit 1, HTTP 503)
├── WorkerError                 the process behind a replica                            (exit 1, HTTP 502)
│   ├── WorkerStartError        it never became ready
│   │   └── SandboxUnavailable  this machine cannot confine it
│   ├── WorkerDied              it ended with calls in flight
│   ├── ProtocolError           it and we do not understand each other
│   ├── DeadlineExceeded        a call took longer than its timeout                     (HTTP 504)
│   └── Cancelled               a call was cancelled                                    (HTTP 499)
├── RemoteError                 the family's own code raised                            (exit 1, HTTP 500)
│   ├── LoadError               … while it loaded the checkpoint
│   ├── OutOfMemory             … for want of memory, after everything that could be tried
│   └── DeviceMismatch          … with tensors on two devices
└── WorkflowError               a workflow's step failed                                (exit 1, HTTP 500)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "OrchestratorError", "ConfigError",
    "ProvisioningError", "InterpreterNotFound", "ResolutionError", "InstallError",
    "CheckpointError", "PlacementError", "Overloaded", "Quarantined",
    "WorkerError", "WorkerStartError", "SandboxUnavailable", "WorkerDied", "ProtocolError", "DeadlineExceeded", "Cancelled",
    "RemoteError", "LoadError", "OutOfMemory", "DeviceMismatch",
    "WorkflowError",
]  # fmt: skip


class OrchestratorError(Exception):
    """The root: `message` says what was wrong and where, `hint` what to do about it."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class ConfigError(OrchestratorError):
    """A file, option or argument is wrong. `path`, `line` and `column` (from 1) are set where known."""

    exit_code = 2
    http_status = 400

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        path: str | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        place = ":".join(str(part) for part in (path, line, column) if part is not None)
        super().__init__(f"{place}: {message}" if place else message, hint=hint)
        self.path, self.line, self.column = path, line, column


class ProvisioningError(OrchestratorError):
    """An environment could not be made. `log` keeps the tool's own words."""

    exit_code = 3
    http_status = 503

    def __init__(self, message: str, *, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class InterpreterNotFound(ProvisioningError):
    """No installed Python satisfies the family's `requires-python`."""


class ResolutionError(ProvisioningError):
    """The requirements contradict each other, or name something that no index has."""


class InstallError(ProvisioningError):
    """Resolved, but not installed: the index, a wheel, the disk, `uv pip check` or the import probe."""


class CheckpointError(OrchestratorError):
    """A checkpoint cannot be found, fetched, read or trusted."""

    http_status = 404


class PlacementError(OrchestratorError):
    """No device has the room: the message holds what is needed, what is free and who holds it."""

    exit_code = 4
    http_status = 507


class Overloaded(OrchestratorError):
    """The bounded queue of a deployment is full; the call was not accepted."""

    http_status = 429


class Quarantined(OrchestratorError):
    """A deployment failed too often; it is not started again before something changes or the user asks."""

    http_status = 503


class WorkerError(OrchestratorError):
    """The process behind a replica. `last_lines` are the last lines of its output."""

    http_status = 502

    def __init__(self, message: str, *, hint: str | None = None, last_lines: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.last_lines = list(last_lines)

    def __str__(self) -> str:
        if not self.last_lines:
            return super().__str__()
        return (
            super().__str__()
            + "\nlast lines of the worker:\n"
            + "\n".join(f"  | {x}" for x in self.last_lines)
        )


class WorkerStartError(WorkerError):
    """The worker never became ready."""


class SandboxUnavailable(WorkerStartError):
    """A sandbox was asked for and this machine has no bubblewrap, or forbids what it needs. Nothing was started."""


class WorkerDied(WorkerError):
    """The worker ended with calls in flight. `returncode` is as in `subprocess`: negative is a signal."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        last_lines: Sequence[str] = (),
        returncode: int | None = None,
        environment_id: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, last_lines=last_lines)
        self.returncode = returncode
        self.environment_id = environment_id


class ProtocolError(WorkerError):
    """A message that cannot be understood, or two protocol versions."""


class DeadlineExceeded(WorkerError):
    """The call's timeout passed before it had an answer."""

    http_status = 504


class Cancelled(WorkerError):
    """The call was cancelled before it had an answer."""

    http_status = 499


class RemoteError(OrchestratorError):
    """The family's own code raised.

    `remote_type` is the exception's qualified name, `remote_traceback` its traceback as text (a note of this one, so
    that Python prints it too), `versions` the distributions of the environment it happened in.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        remote_type: str = "",
        remote_traceback: str = "",
        versions: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback
        if remote_traceback:
            self.add_note(f"\nIn the worker:\n{remote_traceback.rstrip()}")
        self.versions = dict(versions or {})
        self.details = dict(details or {})


class LoadError(RemoteError):
    """The family's code raised while it loaded the checkpoint."""


class OutOfMemory(RemoteError):
    """Memory ran out, and nothing that could be tried helped.

    `tried` says in words and in order what was tried. `memory` is what the worker saw at that moment: bytes by device
    (`cpu`, `cuda:0`): `used` by it, `free`, `total`; empty where it could not tell.
    """

    @property
    def tried(self) -> list[str]:
        """What was tried, in words and in order."""
        found = self.details.get("tried")
        return [str(step) for step in found] if isinstance(found, list) else []

    @property
    def memory(self) -> dict[str, dict[str, int]]:
        """Bytes by device when memory ran out."""
        found = self.details.get("memory")
        return {
            str(device): {str(key): size for key, size in seen.items() if isinstance(size, int)}
            for device, seen in (found.items() if isinstance(found, dict) else ())
            if isinstance(seen, dict)
        }

    def add(self, step: str) -> None:
        """Notes that `step` was tried too."""
        self.details["tried"] = [*self.tried, step]

    def __str__(self) -> str:
        lines = [self.message]
        if self.tried:
            lines.append(f"tried: {', then '.join(self.tried)}")
        for device, seen in self.memory.items():
            sizes = ", ".join(
                f"{seen[key] / 2**30:.2f} GiB {key}" for key in ("used", "free", "total") if key in seen
            )
            lines.append(f"memory then, {device}: {sizes}")
        return "\n".join([*lines, *([] if self.hint is None else [f"hint: {self.hint}"])])


class DeviceMismatch(RemoteError):
    """Tensors of one operation were on two devices."""


class WorkflowError(OrchestratorError):
    """A step of a workflow failed."""
