"""What every row of the data-plane benchmark shares: payloads, the timing loop and its line protocol.

A row is a process that reads JSON lines on stdin and answers each on stdout:
`{"payload": "1MB", "count": 20}` -> `{"seconds": [...]}` or `{"error": "..."}`. It wraps an object with
`echo(value) -> value`; the first echo of a payload is checked to be equal and not timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

KB, MB = 1024, 1024 * 1024
SIZES = {"1KB": KB, "64KB": 64 * KB, "1MB": MB, "16MB": 16 * MB, "256MB": 256 * MB}
PAYLOADS = ("empty", "1KB", "64KB", "dict200", "1MB", "images64", "16MB", "256MB")


def payload(name: str) -> Any:
    """The value that is echoed: float32 noise, 64 images of 224x224x3 uint8, or 200 small arrays by name."""
    noise = np.random.default_rng(7)
    if name == "empty":
        return None
    if name == "images64":
        return noise.integers(0, 255, (64, 224, 224, 3), dtype=np.uint8)
    if name == "dict200":
        return {f"layer.{i}.weight": noise.random((16, 16), dtype=np.float32) for i in range(200)}
    return noise.random(SIZES[name] // 4, dtype=np.float32)


def same(a: Any, b: Any) -> bool:
    """Whether an echo is what was sent, dtype and shape included."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if a is None:
        return b is None
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))


def serve(make: Callable[[], Any], *, verify: bool = True) -> None:
    """Runs the row until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        row = make()
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"[:200]})
        return
    say({"ready": True})
    held: tuple[str, Any] = ("", None)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if held[0] != order["payload"]:
                held = (order["payload"], payload(order["payload"]))
                if verify and not same(held[1], row.echo(held[1])):
                    raise AssertionError("the echo differs")
            say({"seconds": measure(row.echo, held[1], order["count"])})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"[:200]})
    row.close()
    answers.flush()
    os._exit(0)


def measure(echo: Callable[[Any], Any], value: Any, count: int) -> list[float]:
    """Seconds of each round trip; the result is dropped inside the measured time."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        result = echo(value)
        del result
        seconds.append(time.perf_counter() - start)
    return seconds
