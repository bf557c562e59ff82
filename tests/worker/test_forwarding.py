"""Arrays that go from worker to worker as a reference: what the one in the middle holds, and gives back."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from orchestrator.worker import forwarding, segments
from orchestrator.worker import messages as m
from orchestrator.worker.forwarding import forget_pages, promise
from orchestrator.worker.segments import SegmentPool, SegmentViews
from orchestrator.worker.wire import DecodingError, RawTensor

BIG = np.arange(1 << 19, dtype=np.int32).reshape(1 << 9, 1 << 10)  # 2 MB


class Middle:
    """Two links of one coordinator: `first` and `second` are the workers' ends, `from_first`, `to_second` its own."""

    def __init__(self) -> None:
        self.first, self.from_first = self._link()
        self.second, self.to_second = self._link()

    @staticmethod
    def _link() -> tuple[m.Post, m.Post]:
        ours, theirs = segments.pair()
        worker = m.Post(SegmentPool(ours.dup()), SegmentViews(ours))
        return worker, m.Post(SegmentPool(theirs.dup()), SegmentViews(theirs, lends_on=True))

    def fetch(self, value: Any) -> Any:
        return self.from_first.parse(self.first.compose(m.RESULT, 1, value)).value()

    def pass_on(self, value: Any) -> Any:
        return self.second.parse(self.to_second.compose(m.CALL, 1, value)).value()

    def settle(self) -> None:
        gc.collect()
        self.to_second.parse(self.second.signal(m.RELEASE))
        self.second.parse(self.to_second.signal(m.RELEASE))
        self.first.parse(self.from_first.signal(m.RELEASE))

    def close(self) -> None:
        for post in (self.first, self.from_first, self.second, self.to_second):
            post.pool.close()
            post.views.close()


@pytest.fixture
def middle() -> Iterator[Middle]:
    made = Middle()
    yield made
    made.close()


def fixed(value: np.ndarray) -> np.ndarray:
    promise(value)
    return value


def test_a_promised_array_goes_on_without_a_copy_and_its_lease_comes_back_from_the_far_end(
    middle: Middle,
) -> None:
    value = fixed(middle.fetch(BIG))
    got = middle.pass_on(value)
    assert np.array_equal(got, BIG)
    assert got.flags.writeable
    assert middle.to_second.pool.bytes == 0  # nothing was copied into a segment of the middle's own
    del value
    middle.settle()
    assert middle.first.pool.lent == 1  # the second worker still looks into the first one's segment
    assert np.array_equal(got, BIG)
    del got
    middle.settle()
    assert (middle.first.pool.lent, middle.to_second.pool.lent, middle.second.views.known) == (0, 0, 0)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda big: big, id="no promise"),
        pytest.param(lambda big: fixed(big)[:, ::2], id="holes"),
        pytest.param(lambda big: fixed(big)[:100], id="small"),
        pytest.param(lambda big: fixed(big.copy()), id="own memory"),
    ],
)
def test_everything_else_is_copied_as_ever(middle: Middle, made: Callable[[np.ndarray], np.ndarray]) -> None:
    value = made(middle.fetch(BIG))
    got = middle.pass_on(value)
    assert np.array_equal(got, value)
    assert middle.to_second.pool.bytes > 0
    before = got.copy()
    value[:] = -1
    assert np.array_equal(got, before)


def test_views_orders_tensors_and_own_arrays_travel_together(middle: Middle) -> None:
    value = fixed(middle.fetch(BIG))
    raw = RawTensor("bfloat16", value.view(np.uint16))
    own, small = np.ones((700, 700)), np.arange(5)
    sent = {"a": value, "b": own, "c": [value.T, small, value[256:]], "d": raw, "e": "text"}
    got = middle.pass_on(sent)
    assert np.array_equal(got["a"], BIG)
    assert np.array_equal(got["b"], own)
    assert np.array_equal(got["c"][0], BIG.T)
    assert got["c"][0].flags.f_contiguous
    assert np.array_equal(got["c"][1], small)
    assert np.array_equal(got["c"][2], BIG[256:])
    assert np.array_equal(got["d"].data, BIG.view(np.uint16))
    assert got["e"] == "text"
    assert middle.second.views.held == 2  # one loan for all that lies in one segment, one lease for the rest
    assert middle.to_second.pool.bytes < 5 << 20


def test_what_the_receiver_writes_is_its_own(middle: Middle) -> None:
    value = fixed(middle.fetch(BIG))
    one = middle.pass_on(value)
    one[:] = -1
    other = middle.pass_on(value)
    assert np.array_equal(value, BIG)
    assert np.array_equal(other, BIG)


def test_a_segment_that_is_used_again_shows_its_new_bytes(middle: Middle) -> None:
    for k in range(3):
        got = middle.pass_on(fixed(middle.fetch(BIG + k)))
        assert np.array_equal(got, BIG + k)
        got[:] = 0
        del got
        middle.settle()
    assert middle.first.pool.bytes < 4 << 20


def test_a_far_end_that_is_gone_gives_everything_back(middle: Middle) -> None:
    value = fixed(middle.fetch(BIG))
    middle.to_second.compose(m.CALL, 1, value)  # never arrives
    del value
    middle.to_second.pool.close()
    middle.settle()
    assert middle.first.pool.lent == 0


def test_a_producer_that_is_gone_does_not_matter(middle: Middle) -> None:
    value = fixed(middle.fetch(BIG))
    middle.first.pool.close()
    middle.from_first.views.close()
    assert np.array_equal(middle.pass_on(value), BIG)
    assert middle.to_second.pool.bytes == 0


def test_no_descriptor_stays_open() -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    middle = Middle()
    for _ in range(5):
        middle.pass_on(fixed(middle.fetch(BIG)))
        middle.settle()
    held = middle.pass_on(fixed(middle.fetch(BIG)))
    middle.close()
    assert np.array_equal(held, BIG)
    del held, middle
    assert descriptors() <= before  # what other tests leave may go meanwhile


def test_a_receiver_maps_it_for_reading_only(middle: Middle) -> None:
    value = fixed(middle.fetch(BIG))
    got = middle.pass_on(value)
    lines = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:orchestrator" in line
    ]
    address = got.__array_interface__["data"][0]
    mine = next(
        line
        for line in lines
        if int(line.split("-")[0], 16) <= address < int(line.split()[0].split("-")[1], 16)
    )
    assert mine.split()[1].endswith("p")  # private


def test_pages_can_be_forgotten_and_are_there_again(middle: Middle) -> None:
    value = middle.fetch(BIG)
    forget_pages(value)
    forget_pages(value[3:7])
    own = BIG.copy()
    forget_pages(own)
    assert np.array_equal(value, BIG)
    assert np.array_equal(own, BIG)


@pytest.mark.parametrize(
    "place",
    [
        {"own": None, "loans": []},
        {"own": {}, "loans": [], "guests": []},
        {"own": None, "loans": [[1, 1]], "guests": []},
        {"own": None, "loans": [[999, 1, 10]], "guests": []},
        {"own": None, "loans": 3, "guests": []},
        {"own": None, "loans": [], "guests": [[0, 0, 0, "<f4", [1], 0]]},
        {"own": None, "loans": [], "guests": [[0, -1, 0, "<f4", [1], 0]]},
        {"own": None, "loans": "LOAN", "guests": [[0, 0, 4, "<i4", [1 << 19], 0]]},
        {"own": None, "loans": "LOAN", "guests": [[0, 0, -4, "<i4", [4], 0]]},
        {"own": None, "loans": "LOAN", "guests": [[0, 0, 0, "|O", [4], 0]]},
        {"own": None, "loans": "LOAN", "guests": [[0, 0, 0, "<i4", ["x"], 0]]},
        {"own": None, "loans": "LOAN", "guests": [[0, 0, 1 << 40, "<i4", [1], 0]]},
    ],
)  # fmt: skip
def test_a_wrong_reference_is_refused_and_its_lease_given_back(middle: Middle, place: dict[str, Any]) -> None:
    frames = middle.to_second.compose(m.CALL, 1, fixed(middle.fetch(BIG)))
    head = msgpack.unpackb(frames[0])
    head[4] = {**place, "loans": head[4]["loans"] if place["loans"] == "LOAN" else place["loans"]}
    with pytest.raises(DecodingError):
        middle.second.parse([msgpack.packb(head)])
    gc.collect()
    assert middle.second.views.held == 0


def test_a_return_of_what_was_not_lent_is_ignored(middle: Middle) -> None:
    value = fixed(middle.fetch(BIG))
    got = middle.pass_on(value)
    middle.to_second.pool.take_back([(999, 0), (1, 0), (1, 999)])
    assert middle.to_second.pool.lent == 1
    assert np.array_equal(got, BIG)


def test_pieces_become_an_array_that_is_lent_on_too(middle: Middle) -> None:
    before = len(forwarding._own)
    value = forwarding.shared(BIG.nbytes, [BIG.tobytes()[:100], BIG.tobytes()[100:]]).view(np.int32)
    forget_pages(value)
    gc.collect()
    got = middle.pass_on(value)
    assert middle.to_second.pool.bytes == 0
    got[0] = -1
    assert np.array_equal(value, BIG.reshape(-1))
    del value, got
    middle.settle()
    assert middle.to_second.pool.lent == 0
    assert len(forwarding._own) == before


def test_pieces_without_shared_memory_are_the_callers_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "available", lambda: False)
    with pytest.raises(OSError, match="no shared memory"):
        forwarding.shared(10, [b"0123456789"])
