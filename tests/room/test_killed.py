"""A worker that the kernel kills for want of RAM, for real: in a control group with a small limit."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

MODELS = f"{Path(__file__).with_name('room_models.py')}:Weighty"
LIMIT = 500 * 2**20
SCRIPT = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from orchestrator import Orchestrator
from orchestrator.errors import WorkerDied
with Orchestrator() as orc:
    model = orc.load(sys.argv[2], with_=["numpy==2.2.6"])
    try:
        model.take_it_all()
    except WorkerDied as error:
        told = [error.message, error.hint, error.returncode]
    print(json.dumps([*told, model.call("doubled", [1], timeout=60)]))
"""


def folders() -> Iterator[tuple[Path, str]]:
    """This process's control group for memory, in version 1 or 2, and the name of its limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield Path(f"/sys/fs/cgroup/memory{place}"), "memory.limit_in_bytes"
        elif not controllers:
            yield Path(f"/sys/fs/cgroup{place}"), "memory.max"


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of its own with a limit; skipped where none can be made."""
    for parent, limit in folders():
        group = parent / f"test-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(LIMIT))
                yield group
                return
            finally:
                group.rmdir()
    pytest.skip("no control group can be made here")


@pytest.mark.slow
def test_the_kernels_killer_is_told_apart_and_the_model_comes_back(small_group: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small_group), MODELS],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    message, hint, code, again = json.loads(done.stdout)
    assert "OOM killer" in message
    assert "memory ran out" in hint
    assert code == -9
    assert again == [2]
