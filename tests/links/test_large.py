"""Large results, and memory that comes back."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from conditions import until

from orchestrator.worker import segments

GIB = 1 << 30


def room_for(gibibytes: float) -> None:
    if psutil.virtual_memory().available < gibibytes * GIB:
        pytest.skip(f"needs {gibibytes} GiB of free memory")


def test_leases_keep_the_memory_of_a_long_run_bounded(toy):
    """A thousand results of 1 MB, each dropped: a few segments serve them all."""
    others = memfds()
    for k in range(1000):
        result = toy.link.call("echo", [np.full(1 << 20, k % 251, np.uint8)])
        assert result[-1] == k % 251
    del result
    gc.collect()
    assert memfds() <= others + 6


def test_shared_memory_goes_when_it_is_idle(toy, monkeypatch):
    """On both sides, and without any further call."""
    others = memfds()
    toy.link.call("echo", [np.ones(10 << 20, np.uint8)])
    assert memfds() >= others + 2
    monkeypatch.setattr(segments, "IDLE", 0.3)
    toy.link.call("hurry", [0.3])
    until(lambda: memfds() <= others)
    until(lambda: memfds(toy.process.pid) == 0)
    assert toy.link.call("echo", [np.ones(10 << 20, np.uint8)]).sum() == 10 << 20


def test_results_that_are_kept_stay_as_they_were(toy):
    kept = [toy.link.call("echo", [np.full(100_000, k % 251, np.uint8)]) for k in range(200)]
    assert all((array == k % 251).all() for k, array in enumerate(kept))


def test_arguments_that_a_model_keeps_stay_as_they_were(toy):
    toy.link.call("keep", [np.ones(1 << 20, np.uint8)])
    for _ in range(20):
        toy.link.call("echo", [np.full(1 << 20, 7, np.uint8)])
    assert toy.link.call("kept_sum") == 1 << 20


def test_a_result_outlives_its_worker(toy):
    result = toy.link.call("echo", [np.arange(1 << 20)])
    os.kill(toy.process.pid, 9)
    toy.process.wait(60)
    toy.link.close(0)
    assert np.array_equal(result, np.arange(1 << 20))
    result[0] = 5


@pytest.mark.slow
@pytest.mark.parametrize(("gibibytes", "free"), [(2, 6), (5, 13)])
def test_results_of_gigabytes(toy, gibibytes, free):
    room_for(free)
    size, others = gibibytes * GIB + 12_345, memfds()
    result = toy.link.call("zeros", [size], timeout=200)
    assert result.shape == (size,)
    assert result.dtype == np.uint8
    assert result[-1] == 0
    del result
    gc.collect()
    until(lambda: toy.link.call("echo") is None and memfds() <= others)


def memfds(process: int | str = "self") -> int:
    """Shared segments that a process holds."""
    found = 0
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            found += "memfd:orchestrator" in os.readlink(entry)
        except FileNotFoundError:
            continue
    return found
