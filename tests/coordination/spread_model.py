"""What the tests of `map` load: it writes down every item that it begins, so that lost and doubled ones are seen."""

from __future__ import annotations

import os
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from orchestrator.worker import cancelled


class Spread:
    def __init__(self, no_more: str = "") -> None:
        if no_more and os.path.exists(no_more):
            raise RuntimeError("told not to come back")

    def lengths(self, texts: list[str], folder: str, scale: float = 1.0) -> np.ndarray:
        begin(folder, texts)
        return np.array(
            [[len(text) * scale, float(text.split("-")[0])] for text in texts], np.float32
        ).reshape(-1, 2)

    def rows(self, items: Any) -> dict[str, Any]:
        return {"kind": [type(items).__name__] * len(items), "twice": np.asarray(items) * 2}

    def work(self, items: list[int], folder: str) -> list[int]:
        """Waits at an item that has a gate until the gate is open; dies at one that kills."""
        place = Path(folder)
        for item in items:
            begin(folder, [item])
            if (place / f"kills-{item}").exists():
                os._exit(9)
            if (place / f"refuses-{item}").exists():
                raise ValueError(f"no {item}")
            while (place / f"gate-{item}").exists():
                (place / f"waits-{item}-{os.getpid()}").touch()
                if cancelled():
                    raise CancelledError
                time.sleep(0.01)
        return [item * 10 for item in items]

    def uneven(self, items: list[int]) -> Any:
        return np.zeros((len(items), items[0]), np.float32)

    def total(self, items: list[int]) -> int:
        return sum(items)

    def first(self, items: list[int]) -> list[int]:
        return items[:1]

    def count(self, end: int) -> Iterator[int]:
        yield from range(end)

    def pid(self) -> int:
        return os.getpid()


def begin(folder: str, items: Any) -> None:
    """Writes down who begins what, in one piece."""
    line = "".join(f"{os.getpid()} {item}\n" for item in items)
    handle = os.open(os.path.join(folder, "begun.txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, line.encode())
    os.close(handle)
