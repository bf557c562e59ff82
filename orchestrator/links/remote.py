"""A worker's account of an exception becomes an error of this side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import (
    Cancelled,
    DeviceMismatch,
    LoadError,
    OrchestratorError,
    OutOfMemory,
    ProtocolError,
    RemoteError,
)

__all__ = ["remote_error"]

_MEMORY_TYPES = ("MemoryError", "OutOfMemoryError")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
_DETAILS = ("lineage", "notes", "causes", "memory", "tried", "devices", "module")
_DEVICE_WORDS = "Expected all tensors to be on the same device"


def remote_error(account: Any, versions: Mapping[str, str], name: str) -> OrchestratorError:
    """The error for an ERROR message's body; a body that is none gives a ProtocolError."""
    if not isinstance(account, dict) or not all(
        isinstance(account.get(key), str) for key in ("kind", "type", "message", "traceback")
    ):
        return ProtocolError(f"worker {name} reported an error that cannot be read")
    kind, message = account["kind"], account["message"]
    if kind == "cancelled":
        return Cancelled(f"worker {name}: the call was cancelled")
    if kind == "protocol":
        return ProtocolError(f"worker {name} did not understand a message: {message}")
    shown = f"{account['type']}: {message}" if message else account["type"]
    details = {key: account[key] for key in _DETAILS if account.get(key)}
    if _on_two_devices(account):
        shown += f" (in {details.get('module')}: tensors on {' and '.join(map(str, details['devices']))})"
    return _class_of(account)(
        f"{name}: {shown}",
        remote_type=account["type"],
        remote_traceback=account["traceback"],
        versions=versions,
        details=details,
    )


def _class_of(account: Mapping[str, Any]) -> type[RemoteError]:
    lineage = [account["type"], *(str(base) for base in account.get("lineage") or ())]
    message = account["message"]
    if (
        isinstance(account.get("memory"), dict)
        or any(name.endswith(_MEMORY_TYPES) for name in lineage)
        or (account["type"].endswith("RuntimeError") and any(words in message for words in _MEMORY_WORDS))
    ):
        return OutOfMemory
    if _on_two_devices(account) or _DEVICE_WORDS in message:
        return DeviceMismatch
    return LoadError if account["kind"] == "load" else RemoteError


def _on_two_devices(account: Mapping[str, Any]) -> bool:
    devices = account.get("devices")
    return isinstance(devices, list) and len(devices) > 1
