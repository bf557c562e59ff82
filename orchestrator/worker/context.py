"""What a family's code may ask of the worker that runs it. Outside a worker each does nothing, so it can be tested."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

__all__ = ["Placement", "cancelled", "current", "progress"]

_PAUSE = 0.05  # seconds between two pieces of news; those in between are dropped


class Placement:
    """Where a model is to be put; computed by the coordinator, obeyed by the family.

    Attributes:
        device: of the first layer, as the worker sees it: `cpu` or `cuda:0`.
        devices: UUIDs of what the worker may see, or `("cpu",)`.
        device_map: for transformers and accelerate: `sequential`, `cpu` … or a module-to-device map.
        max_memory: bytes per device: `{"0": …, "cpu": …}`.
        dtype: `float32`, `float16`, `bfloat16` or `auto`.
        threads: CPU threads of this worker.
    """

    device: str = "cpu"
    devices: Tuple[str, ...] = ("cpu",)
    device_map: Union[str, Dict[str, str]] = "cpu"
    max_memory: Dict[str, int]
    dtype: str = "auto"
    threads: int = 1

    def __init__(self, **values: Any) -> None:
        self.max_memory = {}
        self.__dict__.update(values)
        self.devices = tuple(self.devices)

    def __repr__(self) -> str:
        return f"Placement(device={self.device!r}, dtype={self.dtype!r}, devices={self.devices!r})"


class Current:
    """The call that runs now. There is one: calls of a worker run one after the other."""

    def __init__(self) -> None:
        self.ident = 0
        self.cancelled = False
        self.tell: Optional[Callable[[int, Dict[str, Any]], None]] = None
        self.note: Optional[Callable[[int, str], None]] = None
        self.tried: List[str] = []
        """What was done in this call because memory ran out, in words and in order."""
        self._told = 0.0

    def begin(self, ident: int) -> None:
        """From now on `ident` is what runs."""
        self.ident = ident
        self.cancelled = False
        self.tried = []
        self._told = 0.0

    def end(self) -> None:
        """Nothing runs."""
        self.ident = 0

    def recovered(self, step: str) -> None:
        """Notes a step down the out-of-memory ladder; it travels with the call's result or error."""
        self.tried.append(step)
        if self.note is not None and self.ident:
            self.note(self.ident, step)

    def progress(self, message: str, done: Optional[float], total: Optional[float]) -> None:
        """Sends a piece of news, unless one went out a moment ago and this is not the last."""
        now = time.monotonic()
        last = done is not None and done == total
        if self.tell is None or not self.ident or (now - self._told < _PAUSE and not last):
            return
        self._told = now
        self.tell(self.ident, {"message": str(message)[:1000], "done": done, "total": total})


current = Current()


def progress(message: str, done: Optional[float] = None, total: Optional[float] = None) -> None:
    """Tells the caller how far the running load or call is."""
    current.progress(message, None if done is None else float(done), None if total is None else float(total))


def cancelled() -> bool:
    """Whether the running call was cancelled; long loops ask, and return early."""
    return current.cancelled
