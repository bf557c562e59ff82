"""A minute of mixed load with random faults: nothing lost, nothing doubled, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_a_minute_of_faults() -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), "--seconds", "60", "--seed", "2", "--json"],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    account = json.loads(done.stdout)
    assert account["clean"], json.dumps(account, indent=2) + done.stderr[-5000:]
    assert done.returncode == 0
    assert account["answers"] > 50
    assert account["faults"] > 10
