"""The command line in a process of its own, and a model of one file for it to call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODEL = """
# /// script
# dependencies = ["numpy==2.2.6"]
# ///
import sys, time
import numpy as np


class Model:
    def __init__(self, factor=2):
        self.factor = factor
        print("loaded with", factor)

    def scale(self, x):
        return self.factor * x

    def length(self, data):
        return len(data)

    def picture(self):
        return b"\\x89PNG" * 100_000

    def both(self):
        return {"data": b"abc", "list": [np.arange(2)]}

    def grid(self, n):
        return {"small": np.arange(3), "large": np.zeros((n, n), np.float32)}

    def each(self, words, mark="!"):
        if "bad" in words:
            raise ValueError("a bad word")
        return [word + mark for word in words]

    def nothing_finite(self):
        return {"value": float("nan"), "list": [1.5, float("inf")], "array": np.array([np.nan, 2.0])}

    def count(self, to):
        for n in range(to):
            yield str(n)

    def fail(self):
        raise ValueError("told so")

    def sleep(self):
        time.sleep(600)


def double(x):
    return 2 * x
"""


def orchestrator(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
    )


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    line = line.replace("orchestrator", f"'{sys.executable}' -m orchestrator")
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, check=False, timeout=120, env={**os.environ, **environment}
    )
