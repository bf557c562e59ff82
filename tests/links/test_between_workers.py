"""Arrays from one worker to another, through real ones: what is lent comes back, however the call ends."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conditions import until

from orchestrator.errors import WorkerDied
from orchestrator.worker.forwarding import promise

SIZE = 8 << 20


@pytest.fixture
def two(start: Callable[..., SimpleNamespace], environment_of: Callable[[str], Any]) -> list[SimpleNamespace]:
    """A worker with numpy 1 and one with numpy 2."""
    return [start(called="one"), start(called="two", environment=environment_of("3.11"))]


def made(one: SimpleNamespace) -> np.ndarray:
    array: np.ndarray = one.link.call("zeros", [SIZE])
    array[::4096] = 7
    promise(array)
    return array


def everything_is_back(workers: list[SimpleNamespace]) -> bool:
    gc.collect()
    ends = [worker.link._post for worker in workers if worker.link.alive]
    return not any(end.views.held + end.pool.lent for end in ends)


def test_it_arrives_bit_by_bit_without_a_copy_and_comes_back(two: list[SimpleNamespace]) -> None:
    one, other = two
    array = made(one)
    for _ in range(5):
        spelling, shape, _, data, writable = other.link.call("bits", [array])
        assert (spelling, shape, writable) == ("|u1", [SIZE], True)
        assert data == array.tobytes()
    assert other.link._post.pool.bytes == 0
    del array
    until(lambda: everything_is_back(two))
    one.link.call("zeros", [SIZE])  # the producer's segment is used again
    assert one.link._post.views.known == 1


@pytest.mark.slow
def test_what_the_receiver_keeps_stays_as_it_was(two: list[SimpleNamespace]) -> None:
    one, other = two
    other.link.call("keep", [made(one)])
    gc.collect()
    for _ in range(3):
        one.link.call("echo", [np.full(SIZE, 9, np.uint8)])
    assert other.link.call("kept_sum") == 7 * SIZE // 4096
    other.link.call("forget")
    until(lambda: everything_is_back(two))


@pytest.mark.slow
def test_a_cancelled_call_gives_back_what_it_was_lent(two: list[SimpleNamespace]) -> None:
    one, other = two
    array = made(one)
    busy = other.link.submit("patient", [60.0])
    waiting = [other.link.submit("echo", [array]) for _ in range(3)]
    assert other.link._post.pool.lent == 3
    for future in (*waiting, busy):
        future.cancel()
    del array, waiting
    until(lambda: everything_is_back(two))
    assert other.link.call("echo", [1]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["the producer", "the receiver"])
def test_a_worker_that_dies_with_it_in_hand_leaves_nothing_behind(
    two: list[SimpleNamespace], which: int
) -> None:
    one, other = two
    array = made(one)
    busy = other.link.submit("patient", [0.5 if which == 0 else 60.0])
    waiting = other.link.submit("bits", [array])
    os.kill(two[which].process.pid, signal.SIGKILL)
    if which == 0:
        assert waiting.result(60)[3] == array.tobytes()
        busy.result(60)
    else:
        with pytest.raises(WorkerDied):
            waiting.result(60)
        until(lambda: other.link._post.pool.lent == 0)
    del array, waiting
    until(lambda: everything_is_back(two))
