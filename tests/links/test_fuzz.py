"""Frames that no honest peer sends: whatever they hold, the receiver gives an error or a value, and nothing else."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import random
import resource
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
from test_hostile_worker import FakeWorker

from orchestrator.errors import OrchestratorError, WorkerError
from orchestrator.links import WorkerLink
from orchestrator.links.pending import Answer, PendingStream
from orchestrator.worker import jobs, segments
from orchestrator.worker import messages as m
from orchestrator.worker.context import current
from orchestrator.worker.desk import Desk
from orchestrator.worker.segments import SegmentPool, SegmentViews
from orchestrator.worker.transport import ZmqTransport
from orchestrator.worker.wire import DecodingError

FRAMES = 100_000
SEED = 20_261_121


@pytest.fixture
def posts():
    ours, theirs = segments.pair()
    sender = m.Post(SegmentPool(ours.dup()), SegmentViews(ours))
    receiver = m.Post(SegmentPool(theirs.dup()), SegmentViews(theirs))
    yield sender, receiver
    for post in (sender, receiver):
        post.pool.close()
        post.views.close()


ALL = sorted(m._KINDS)


def honest(sender: m.Post) -> list[tuple[list[Any], list[bytes]]]:
    """Messages of each kind, apart from what arrays they bring, with what belongs in them and what does not."""
    account = {
        "kind": "remote",
        "type": "ValueError",
        "message": "no",
        "traceback": "",
        "lineage": [],
        "notes": [],
    }
    values = [
        ["echo", [1, "x", {"y": [None, 2.5]}], {}], ["echo", [np.arange(9, dtype=np.float32)] * 3, {}], {"a": np.zeros((2, 0))},
        ["count", [3], {}, 5], ["count", [9], {}, 1], [np.float16(2), np.array("x"), b"bytes"], account, None, 5,
        {"checkpoint": None, "placement": {}, "options": {}}, {"message": "so far", "done": 1, "total": 2}, np.zeros(100_000, np.uint8),
    ]  # fmt: skip
    composed = [[bytes(f) for f in sender.compose(kind, 1, value)] for value in values for kind in ALL]
    seeds = [(msgpack.unpackb(frames[0]), frames[1:]) for frames in composed]
    lent = next(head[4] for head, _ in reversed(seeds) if isinstance(head[4], list))
    for kind in ALL:  # arrays by reference, and a ledger
        body, *_ = [head[2] for head, _ in seeds if head[0] == kind and head[3]] or [b"\xc0"]
        guest = {"own": None, "loans": [lent], "guests": [[0, 0, 64, "<f4", [9], 0]]}
        seeds += [
            ([kind, 1, body, None, guest, None], []),
            ([kind, 1, b"\xc0", None, None, [[[1, 1]], [3]]], []),
        ]
    return seeds


def cut(rng: random.Random, data: bytearray, place: int) -> None:
    del data[place:]


def insert(rng: random.Random, data: bytearray, place: int) -> None:
    data[place:place] = rng.randbytes(rng.randint(1, 9))


def flip(rng: random.Random, data: bytearray, place: int) -> None:
    if data:
        data[place % len(data)] ^= 1 << rng.randrange(8)


def mark(rng: random.Random, data: bytearray, place: int) -> None:
    """One of msgpack's own marks: long lists, maps, texts, extensions."""
    if data:
        data[place % len(data)] = rng.choice(b"\xc1\xc6\xc9\xcf\xd3\xdb\xdd\xdf\x90\x80\xff\x00")


def fill(rng: random.Random, data: bytearray, place: int) -> None:
    data[place : place + 4] = b"\xff" * 4


def replace(rng: random.Random, data: bytearray, place: int) -> None:
    data[:] = rng.randbytes(rng.randint(0, 80))


def double(rng: random.Random, data: bytearray, place: int) -> None:
    data += data[:place]


CHANGES = [cut, insert, flip, flip, mark, mark, fill, replace, double]


def mutate(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """One to three changes inside of frames; sometimes frames doubled or exchanged."""
    frames = list(frames)
    for _ in range(rng.randint(1, 3)):
        k = rng.randrange(len(frames))
        data = bytearray(frames[k])
        rng.choice(CHANGES)(rng, data, rng.randrange(len(data) + 1))
        frames[k] = bytes(data)
    if rng.random() < 0.1:
        frames.insert(0, rng.choice(frames))
    if rng.random() < 0.1:
        frames.reverse()
    return frames


class Harness(ZmqTransport):
    """A transport that goes nowhere. Whoever waits on it is told to give up."""

    def __init__(self, post: m.Post) -> None:
        self.post = post
        self.sent = 0

    def send(self, frames):
        self.sent += 1
        return True

    def poll(self, timeout, *, writable=False):
        return True

    def receive(self):
        return [memoryview(frame) for frame in self.post.signal(m.CANCEL, current.ident)]

    def wake(self): ...
    def close(self, linger=0): ...
    def __del__(self): ...


def generated(
    rng: random.Random, sender: m.Post, count: int, idents: Callable[[], int]
) -> Iterator[list[bytes]]:
    """`count` messages: changed, random, doubled, replayed, out of order; some are left as they were."""
    seeds = honest(sender)
    earlier: deque[list[bytes]] = deque(maxlen=50)
    for number in range(count):
        (kind, _, *fields), more = rng.choice(seeds)
        if isinstance(fields[2], dict):  # a loan that was not there before
            (segment, _, nbytes), *_ = fields[2]["loans"]
            fields[2] = {**fields[2], "loans": [[segment, 1_000_000 + number, nbytes]]}
        frames = [msgpack.packb([kind, idents(), *fields]), *more]
        what = number % 20
        if what == 0:
            frames = [rng.randbytes(rng.randint(0, 60)) for _ in range(rng.randint(1, 3))]
        elif what < 4 and earlier:
            frames = rng.choice(earlier)  # as it came before, after others
        elif what > 6:
            frames = mutate(rng, frames)
        earlier.append(frames)
        yield frames


@contextmanager
def bounded() -> Iterator[None]:
    """Neither memory nor descriptors nor threads grow with the number of messages."""

    def use() -> tuple[int, int]:
        gc.collect()
        return psutil.Process().num_fds(), threading.active_count()

    before, peak = use(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    files, threads = use()
    assert files <= before[0] + 3 * segments.SEGMENTS  # what is lent and never comes back
    assert threads <= before[1]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10 < 96 << 20


COUNTS = [3_000, pytest.param(FRAMES, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_generated_frames_to_a_worker(posts, count, monkeypatch):
    """Through its own desk: read, routed, carried out with a family loaded, and answered."""
    monkeypatch.setattr(
        jobs, "release_memory", lambda: None
    )  # seconds of garbage collection, hundreds of times
    sender, receiver = posts
    transport = Harness(sender)
    family = str(Path(__file__).with_name("families") / "harmless.py")
    desk = Desk(transport, receiver, family, "Harmless", {}, os.getppid())
    kinds: Counter[int] = Counter()

    def carry_out() -> None:
        while desk._orders:
            order = desk._orders.popleft()
            kinds[order.kind] += 1
            current.begin(order.ident)
            box = [order]
            del order
            desk._carry_out(box)
            desk._over = False

    def order(kind: int, ident: int, value: Any) -> None:
        desk._receive([memoryview(bytes(f)) for f in sender.compose(kind, ident, value)])
        carry_out()

    ident = 1 << 40  # none that a generated message has, but by chance
    with bounded():
        for number, frames in enumerate(
            generated(random.Random(SEED), sender, count, itertools.count(1).__next__)
        ):
            if number % 500 == 0:  # something may have unloaded it
                ident += 2
                order(m.UNLOAD, ident, None)
                order(m.LOAD, ident + 1, {"options": {}})
            desk._receive([memoryview(f) for f in frames])
            carry_out()
    assert {m.CALL, m.STREAM, m.LOAD, m.UNLOAD} <= set(kinds)
    assert sum(kinds.values()) < count / 2
    assert transport.sent > count / 3  # complaints and answers
    assert not desk._credits
    order(m.UNLOAD, ident + 2, None)
    order(m.LOAD, ident + 3, {"options": {}})
    harmless = desk.jobs._instance
    order(m.CALL, ident + 4, ["echo", [np.arange(100_000)], {}])
    assert harmless.last.sum() == sum(range(100_000))


def test_an_order_is_carried_out_once(posts):
    """Doubled or replayed by whatever lies between: no side effect happens twice."""
    sender, receiver = posts
    desk = Desk(Harness(sender), receiver, "", "", {}, os.getppid())
    frames = [[bytes(f) for f in sender.compose(m.CALL, ident, ["x", [], {}])] for ident in range(1, 200)]
    rng = random.Random(SEED)
    for _ in range(5):
        rng.shuffle(frames)
        for one in frames:
            desk._receive([memoryview(f) for f in one])
    assert sorted(order.ident for order in desk._orders) == list(range(1, 200))


class Callers:
    """Calls and streams that wait on a link, with listeners; `outcomes` counts what came of them."""

    def __init__(self, link: WorkerLink) -> None:
        self.link = link
        self.outcomes: Counter[str] = Counter()
        self.waiting: dict[int, Answer] = {}

    def line_up(self) -> None:
        for ident in (1, 2, 3, 4):
            if ident not in self.link._pending:
                answer = PendingStream(4) if ident == 3 else Answer()
                answer.watch(lambda event: self.outcomes.update(["news"]), "call", "x")
                self.waiting[ident] = answer
                self.link.expect(ident, answer)

    def look(self) -> None:
        """Each that was notified takes what came: a value, news, or a typed error."""
        for ident, answer in list(self.waiting.items()):
            if answer.ready:
                answer.ready = False
                try:
                    self._take(answer)
                except OrchestratorError as error:
                    self.outcomes[type(error).__name__] += 1
                if ident not in self.link._pending:
                    del self.waiting[ident]

    def _take(self, answer: Answer) -> None:
        self.link.tell(answer)
        items = getattr(answer, "items", deque())
        while items:
            self.link.value(items.popleft())
            self.outcomes["item"] += 1
        if answer.message is not None and answer.message.kind == m.RESULT:
            self.link.value(answer.message)
            self.outcomes["value"] += 1
        elif self.link.outcome(answer):
            raise self.link.wrong(answer)


@pytest.mark.parametrize("count", COUNTS)
def test_generated_frames_to_a_coordinator(count, caplog):
    """Through a link's own reception: whoever waits gets a value or a typed error, and the link goes on."""
    caplog.set_level(logging.CRITICAL, "orchestrator.links.exchange")
    fake = FakeWorker()
    try:
        fake.greet()
        link, rng, callers = fake.link, random.Random(SEED + 2), Callers(fake.link)
        with bounded():
            for frames in generated(rng, fake.post, count, lambda: rng.randrange(6)):
                callers.line_up()
                link._receive([memoryview(f) for f in frames])
                callers.look()
        assert {"value", "item", "news", "ProtocolError"} <= set(callers.outcomes)
        assert count < FRAMES or callers.outcomes["RemoteError"]
        link.fail_all(WorkerError("over"))
        fake.answers[m.CALL] = lambda message: fake.say(m.RESULT, message.ident, message.value()[1])
        assert link.call("x", [5], timeout=60) == [5]
    finally:
        fake.close()


def test_random_structures_of_the_right_outline(posts):
    """Lists of six, of whatever: the fields themselves are checked."""
    _, receiver = posts
    rng = random.Random(SEED + 1)
    things = [
        None, True, 0, -1, 1, 16, 17, 32, 2**63, 1.5, "x", b"", b"\xc0", [], {}, [1], [1, 1, 1], [0, 0, 0], [-1, -1, -1],
        [1, 1, 2**62], [[], []], [[[float("inf"), 1]], []], [[], [float("inf")]], [[["9", "1"]], []], [[[1, 1]], [1]], [["<f4", [1], 1, 0]], [["<f4", [2**40], 1, 0]], {"a": 1}, [[1], 2], "0",
    ]  # fmt: skip
    for _ in range(20_000):
        head = [rng.choice(things) for _ in range(6)]
        if rng.random() < 0.8:
            head[:3] = [rng.choice([17, 32]), rng.randrange(9), rng.choice([b"\xc0", b"\xc7\x00\x01"])]
        frames = [msgpack.packb(head)] + [rng.randbytes(64)] * rng.choice([0, 0, 1, 2])
        try:
            receiver.parse(frames).value()
        except DecodingError:
            pass


def test_nested_announcements_of_huge_lists_do_not_use_their_memory(posts):
    _, receiver = posts
    bomb = b"\x96\x11\x01\xc0\xc0\xc0" + (b"\xdd\x00\xff\xff\xff" * 400) + b"\x00" * 100_000
    body = b"\xdd\x00\x0f\xff\xff" * 300 + b"\x00" * (1 << 20)
    frames = [msgpack.packb([17, 1, body, None, None, None])]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodingError):
        receiver.parse([bomb])
    with pytest.raises(DecodingError):
        receiver.parse(frames).value()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10


def test_replayed_and_reordered_messages_in_shared_memory_are_refused(posts):
    sender, receiver = posts
    value = np.arange(50_000)
    first = sender.compose(m.RESULT, 1, value)
    second = sender.compose(m.RESULT, 2, value)
    got = receiver.parse(first).value()
    for _ in range(2):
        with pytest.raises(DecodingError, match="lease of an earlier"):
            receiver.parse(first)
    assert np.array_equal(got, value)
    assert np.array_equal(receiver.parse(second).value(), value)
    del got
    with pytest.raises(DecodingError, match="lease of an earlier"):
        receiver.parse(first)
    assert receiver.views.held == 0
