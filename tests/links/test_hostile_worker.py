"""Workers that do not keep to the protocol. They live in a thread of the test and speak over a real socket."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from conditions import until

from orchestrator.errors import Cancelled, DeadlineExceeded, ProtocolError
from orchestrator.links import WorkerLink
from orchestrator.processes.meeting import Meeting
from orchestrator.worker import messages as m
from orchestrator.worker.curve import read_keys
from orchestrator.worker.segments import SegmentPool, SegmentViews
from orchestrator.worker.transport import ZmqTransport

HELLO = {
    "protocol": m.PROTOCOL,
    "pid": 1,
    "python": "3.11.0",
    "versions": {},
    "capabilities": ["segments"],
    "times": {},
}


class FakeWorker:
    """As much of a process as a link needs, and the worker's end of the socket."""

    def __init__(self, transport: str = "ipc", address: str | None = None) -> None:
        self.name, self.pid, self.forked, self.alive = "fake", 1, False, True
        self.log_path = "nowhere"
        self.environment = SimpleNamespace(versions={"x": "1"}, id="fake")
        self.meeting = Meeting(transport)
        told = dict(word.split("=", 1) for word in self.meeting.arguments())
        side = socket.socket(fileno=os.dup(int(told["segments"]))) if transport == "ipc" else None
        self.meeting.handed_over()
        self.post = m.Post(SegmentPool(side and side.dup()), SegmentViews(side))
        self.link = WorkerLink(self)
        self.keys = keys = read_keys(told["keys"]) if "keys" in told else None
        self.transport = ZmqTransport(address or told["address"], bind=False, keys=keys)
        self.answers: dict[int, object] = {}
        self.received: list[m.Message] = []
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._serve)

    def say(self, kind, ident, value):
        self.transport.send(self.post.compose(kind, ident, value))

    def greet(self):
        self.say(m.HELLO, 0, HELLO)
        self.link.hello(60)
        self.thread.start()

    def _serve(self):
        while not self._over.is_set():
            if self.transport.poll(0.02):
                frames = self.transport.receive()
                if frames is not None:
                    message = self.post.parse(frames)
                    self.received.append(message)
                    answer = self.answers.get(message.kind)
                    if answer is not None:
                        answer(message)

    def on_end(self, callback): ...
    def tail(self, n=20):
        return []

    def describe_exit(self):
        return "is a fake"

    def wait(self, timeout): ...
    def stop(self, grace): ...

    def close(self):
        self._over.set()
        if self.thread.is_alive():
            self.thread.join(60)
        self.transport.close()
        self.link.close(0)
        self.meeting.close()
        self.post.pool.close()
        self.post.views.close()


@pytest.fixture
def fake():
    made = FakeWorker()
    yield made
    made.close()


def echo(fake):
    return lambda message: fake.say(m.RESULT, message.ident, message.value()[1])


def test_another_protocol_version(fake):
    fake.say(m.HELLO, 0, {**HELLO, "protocol": 99})
    with pytest.raises(ProtocolError, match="protocol 99"):
        fake.link.hello(60)


@pytest.mark.parametrize(
    "greeting", [None, [], {"protocol": 1}, {**HELLO, "pid": "x"}, {**HELLO, "times": 5}]
)
def test_a_greeting_that_is_none(fake, greeting):
    fake.say(m.HELLO, 0, greeting)
    with pytest.raises(ProtocolError, match="hello cannot be read"):
        fake.link.hello(60)


def test_garbage_instead_of_a_greeting(fake):
    fake.transport.send([b"\xc1"])
    with pytest.raises(ProtocolError, match="cannot be understood"):
        fake.link.hello(60)


def test_the_socket_is_gone_from_the_file_system_after_the_greeting(fake):
    fake.greet()
    assert not fake.meeting.folder.exists()
    fake.answers[m.CALL] = echo(fake)
    assert fake.link.call("x", [5]) == [5]


@pytest.mark.parametrize(
    "frames",
    [
        [b""], [b"\xc1"], [b"a", b"b", b"c"], [msgpack.packb([1, 2, 3])], [msgpack.packb([99, 1, b"\xc0", None, None, None])],
        [msgpack.packb([m.RESULT, 1, b"\xc0", [], 0, None])], [msgpack.packb([m.RESULT, 1, b"\xc0", [], [7, 1, 10], None])],
    ],
)  # fmt: skip
def test_garbage_fails_the_calls_that_it_could_have_answered(fake, frames):
    fake.greet()
    fake.answers[m.CALL] = lambda message: fake.transport.send(frames)
    with pytest.raises(ProtocolError):
        fake.link.call("x", timeout=60)
    fake.answers[m.CALL] = echo(fake)
    assert fake.link.call("x", [5], timeout=60) == [5]


def test_a_result_that_cannot_be_decoded_fails_its_own_call_only(fake):
    fake.greet()

    def answer(message):
        if message.value()[1] == ["bad"]:
            fake.transport.send([msgpack.packb([m.RESULT, message.ident, b"\xc1", None, None, None])])
        else:
            fake.say(m.RESULT, message.ident, "good")

    fake.answers[m.CALL] = answer
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(fake.link.call, "x", ["bad"], timeout=60)
        good = pool.submit(fake.link.call, "x", ["good"], timeout=60)
        assert good.result(60) == "good"
        with pytest.raises(ProtocolError, match="cannot be read"):
            bad.result(60)


def test_duplicates_and_answers_to_nobody_are_dropped_and_their_leases_returned(fake):
    fake.greet()
    big = np.arange(100_000)

    def answer(message):
        fake.say(m.RESULT, message.ident + 1000, big)
        for _ in range(3):
            fake.say(m.RESULT, message.ident, big)
        fake.say(m.ITEM, message.ident, big)
        fake.say(m.END, message.ident, None)

    fake.answers[m.CALL] = answer
    for _ in range(30):
        assert np.array_equal(fake.link.call("x", timeout=60), big)
    until(lambda: fake.post.pool.lent == 0)
    assert fake.link.in_flight == 0


def test_answers_in_any_order(fake):
    fake.greet()
    waiting = []

    def answer(message):
        waiting.append(message)
        if len(waiting) == 20:
            random.Random(1).shuffle(waiting)
            for one in waiting:
                fake.say(m.RESULT, one.ident, one.value()[1][0])

    fake.answers[m.CALL] = answer
    futures = [fake.link.submit("x", [k]) for k in range(20)]
    assert [f.result(60) for f in futures] == list(range(20))


def test_more_items_than_were_asked_for_end_the_stream(fake):
    fake.greet()
    fake.answers[m.STREAM] = lambda message: [fake.say(m.ITEM, message.ident, k) for k in range(100)]
    stream = fake.link.stream("x", buffer=4, timeout=60)
    until(lambda: fake.link.channel.glance() or stream._pending.failure)  # nobody takes an item meanwhile
    with pytest.raises(ProtocolError, match="more items"):
        list(stream)


@pytest.mark.parametrize(
    "body", [None, [], {"kind": "remote"}, {"kind": 1, "type": 2, "message": 3, "traceback": 4}]
)
def test_an_error_that_cannot_be_read(fake, body):
    fake.greet()
    fake.answers[m.CALL] = lambda message: fake.say(m.ERROR, message.ident, body)
    with pytest.raises(ProtocolError, match="cannot be read"):
        fake.link.call("x", timeout=60)


def test_an_answer_of_the_wrong_kind(fake):
    fake.greet()
    fake.answers[m.CALL] = lambda message: fake.say(m.END, message.ident, None)
    with pytest.raises(ProtocolError, match="wrong kind"):
        fake.link.call("x", timeout=60)
    fake.answers[m.LOAD] = lambda message: fake.say(m.RESULT, message.ident, [1])
    with pytest.raises(ProtocolError, match="load report"):
        fake.link.load(None, {}, {}, timeout=60)


def test_a_worker_that_never_answers_meets_the_deadline_and_is_told(fake):
    fake.greet()
    with pytest.raises(DeadlineExceeded):
        fake.link.call("x", timeout=0.2)
    until(lambda: m.CANCEL in [r.kind for r in fake.received])
    assert [r.kind for r in fake.received][-1] == m.CANCEL
    assert fake.link.silence() == 0.0
    time.sleep(0.1)
    assert fake.link.silence() > 0.05


def test_leases_go_back_by_themselves_when_there_is_no_other_message(fake):
    fake.greet()
    fake.answers[m.CALL] = lambda message: fake.say(m.RESULT, message.ident, np.zeros(200_000))
    got = fake.link.call("x", timeout=60)
    assert fake.post.pool.lent == 1
    del got
    until(lambda: fake.post.pool.lent == 0)


# -- and the other way round: a real worker, and frames that no client sends ----------------------------------------------


def test_a_worker_outlives_whatever_it_is_sent(toy):
    """Each malformed message gets an error or nothing; the next honest call works."""
    link = toy.link
    rng = random.Random(20_261_121)
    seeds = [
        (kind, value)
        for kind in (m.CALL, m.STREAM, m.LOAD, m.CANCEL, m.CREDIT, m.PING, m.HELLO, m.RELEASE, m.RESULT)
        for value in (
            ["echo", [1], {}],
            ["count", [3], {}, 5],
            {"options": {}},
            3,
            None,
            ["echo", [np.arange(5)], {}],
        )
    ]
    for number in range(3000):
        kind, value = rng.choice(seeds)
        frames = [bytearray(f) for f in link._post.compose(kind, 1_000_000 + number, value)]
        for _ in range(rng.randint(0, 3)):
            data = rng.choice(frames)
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        link.channel.post([bytes(f) for f in frames])
        if number % 300 == 0:
            try:
                assert link.call("echo", [number], timeout=60) == number
            except (ProtocolError, Cancelled):
                pass  # the worker's complaint about one of those came in between
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            assert link.call("echo", ["still here"], timeout=60) == "still here"
            break
        except (ProtocolError, Cancelled):
            continue
    assert toy.process.alive
    assert list(link.stream("count", [3], timeout=60)) == [0, 1, 2]


def test_a_worker_refuses_another_protocol(toy):
    toy.link.send(m.HELLO, 0, {"protocol": 99})
    with pytest.raises(ProtocolError, match="protocol 99"):
        toy.link.call("nap", [0.5], timeout=60)
