"""Threads that take turns in leading one socket: nothing is lost, nobody sleeps for ever."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
from conditions import until

from orchestrator.worker import channel as module
from orchestrator.worker.channel import Channel, Waiter
from orchestrator.worker.transport import ZmqTransport, check_address


@pytest.fixture
def address(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    return f"ipc://{folder}/x"


class Echo:
    """The other side: a thread that sends every message back, doubled if it is told so."""

    def __init__(self, address, times=1):
        self.channel = Channel(ZmqTransport(address, bind=False), self.receive)
        self.times = times
        self.waiter = Waiter()
        self.thread = threading.Thread(target=self.channel.wait, args=(self.waiter,))
        self.thread.start()

    def receive(self, frames):
        for _ in range(self.times):
            self.channel.post([bytes(f) for f in frames])

    def close(self):
        self.waiter.notify()
        self.channel.wake()
        self.thread.join(60)
        self.channel.shut()
        assert not self.thread.is_alive()


class Caller:
    """This side: numbered messages, each with a thread that waits for its echo."""

    def __init__(self, address):
        self.pending = {}
        self.got = deque()
        self.idle = 0
        self.channel = Channel(ZmqTransport(address, bind=True), self.receive, idle=self.on_idle)

    def on_idle(self):
        self.idle += 1

    def receive(self, frames):
        number = int(bytes(frames[0]))
        self.got.append(number)
        waiter = self.pending.pop(number, None)
        if waiter is not None:
            waiter.notify()

    def call(self, number, seconds=60.0):
        waiter = self.pending[number] = Waiter()
        return self.channel.exchange([b"%d" % number], waiter, time.monotonic() + seconds)


@pytest.fixture
def caller(address):
    made = Caller(address)
    yield made
    made.channel.shut()


@pytest.fixture
def echo(caller, address):
    made = Echo(address)
    yield made
    made.close()


def test_one_caller(caller, echo):
    assert all(caller.call(k) for k in range(300))
    assert list(caller.got) == list(range(300))


def test_many_callers_lose_nothing(caller, echo):
    def work(thread):
        return all(caller.call(thread * 1000 + k) for k in range(100))

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(32)))
    assert len(caller.got) == 3200
    assert not caller.pending


def test_a_late_leader_hands_over(caller, echo):
    """The leader's own answer never comes; those who wait with it still get theirs."""
    caller.pending[0] = Waiter()
    lost = threading.Thread(target=caller.channel.wait, args=(Waiter(), time.monotonic() + 0.5))
    lost.start()
    time.sleep(0.1)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(caller.call, range(1, 200)))
    lost.join(60)
    assert not lost.is_alive()
    assert caller.call(999)


def test_deadlines_of_leaders_and_followers(caller, address):
    """Nobody answers at all."""
    silent = ZmqTransport(address, bind=False)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda k: caller.call(k, seconds=0.2 + 0.1 * k), range(4)))
    assert answers == [False] * 4
    silent.close()


def test_messages_posted_while_another_leads_go_out_at_once(caller, echo, monkeypatch):
    monkeypatch.setattr(module, "TICK", 600)  # nobody looks by itself
    waiter = Waiter()
    leader = threading.Thread(target=caller.channel.wait, args=(waiter,))
    leader.start()
    until(caller.channel._io.locked)
    caller.channel.post([b"7"])
    until(lambda: 7 in caller.got)
    waiter.notify()
    caller.channel.wake()
    leader.join(60)
    assert not leader.is_alive()


def test_a_background_leader_gives_way(caller, echo):
    background = Waiter(background=True)
    stop = threading.Event()

    def stand_by():
        while not stop.is_set():
            caller.channel.wait(background, time.monotonic() + 0.2)

    thread = threading.Thread(target=stand_by)
    thread.start()
    led = 0
    for k in range(200):
        assert caller.call(k, seconds=60)
        led += not caller.channel._leader_yields
    assert led > 20, "the background thread kept the lead"
    stop.set()
    background.notify()
    caller.channel.wake()
    thread.join(60)
    assert not thread.is_alive()


def test_idle_is_called_when_nobody_leads_any_more(caller, echo):
    assert caller.call(1)
    assert caller.idle >= 1


def test_messages_before_anybody_is_connected_wait(caller, address):
    caller.channel.post([b"5"])
    assert caller.channel.blocked
    late = Echo(address)
    assert caller.call(6)
    assert list(caller.got) == [5, 6]
    late.close()


def test_shutting_wakes_all(caller, address, monkeypatch):
    monkeypatch.setattr(module, "TICK", 600)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(caller.call, k, 600) for k in range(6)]
        until(lambda: caller.channel._io.locked() and len(caller.channel._followers) == 5)
        caller.channel.shut()
        assert [w.result(60) for w in waiting] == [False] * 6
    caller.channel.shut()
    caller.channel.post([b"1"])
    assert not caller.channel.wait(Waiter(), time.monotonic() + 0.1)


def test_an_interrupted_leader_lets_go(caller, echo, monkeypatch):
    poll = caller.channel._transport.poll

    def interrupted(*_, **__):
        monkeypatch.setattr(caller.channel._transport, "poll", poll)
        raise KeyboardInterrupt

    monkeypatch.setattr(caller.channel._transport, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        caller.call(1)
    assert caller.call(2)


def test_a_folder_that_others_could_have_made_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="mode 0700"):
        check_address(f"ipc://{folder}/s", None)
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(private)
    with pytest.raises(PermissionError, match="no link"):
        check_address(f"ipc://{link}/s", None)
    check_address(f"ipc://{private}/s", None)
