"""Calls, futures, streams, cancels and deadlines against a real worker on numpy 1."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from conditions import LONG, until

from orchestrator.errors import (
    ConfigError,
    DeadlineExceeded,
    DeviceMismatch,
    LoadError,
    OutOfMemory,
    RemoteError,
    WorkerError,
)
from orchestrator.events import Event
from orchestrator.links import WorkerLink
from orchestrator.links.pending import Answer
from orchestrator.worker import messages as m


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What `wait_for` waits for."""
    return tmp_path / "gate"


def begun(path: Path) -> None:
    """Waits until a method that was given `path` runs."""
    until(path.with_name(path.name + ".begun").exists)


def heard(link: WorkerLink) -> None:
    """Waits until the worker has read all that it was sent: the first look sends a ping, the second sees its answer."""
    for _ in range(2):
        until(lambda: link.silence() == 0.0)


def test_hello_and_load_say_who_and_what(toy, numpy1):
    assert toy.info.pid == toy.process.pid
    assert toy.info.numpy == "1.26.4"
    assert toy.info.python.startswith("3.11")
    assert "segments" in toy.info.capabilities
    report = toy.report
    assert report.methods["echo"] == "call"
    assert report.methods["count"] == "stream"
    assert "close" not in report.methods
    assert report.report == {"scale": 2}
    assert set(report.times) == {"interpreter", "bootstrap", "wire", "numpy", "family", "load"}
    assert all(seconds >= 0 for seconds in report.times.values())


def test_options_that_init_does_not_take_are_refused_before_the_load(start):
    toy = start(options={"scale": 5, "allow_offload": True})  # the placement's own: no class has to take it
    assert toy.report.report == {"scale": 5}
    with pytest.raises(LoadError, match="Toy takes no option 'bogus'; it takes scale"):
        start(options={"scale": 5, "bogus": 1})


def test_progress_of_a_load_reaches_the_listener(spawn):
    news: list[Event] = []
    link = WorkerLink(spawn())
    link.hello(60)
    link.load(None, {}, {"steps": 3}, timeout=60, listener=news.append, subject="mine")
    link.close(1)
    assert [(e.stage, e.subject, e.done, e.total) for e in news] == [
        ("load", "mine", k, 3) for k in (1, 2, 3)
    ]


def test_values_of_every_size_come_back(shared):
    for size in (0, 1, 1000, 65_536, 65_537, 1 << 20, 5 << 20):
        sent = np.random.default_rng(size).integers(0, 256, size, np.uint8)
        got = shared.call("echo", [{"x": [sent]}])["x"][0]
        assert got.dtype == sent.dtype
        assert np.array_equal(got, sent)
        assert got.flags.writeable


def test_keyword_arguments_and_nothing(shared):
    assert shared.call("echo") is None
    assert shared.call("echo", kwargs={"value": {"a": (1, 2)}}) == {"a": [1, 2]}


def test_futures_of_many_calls(shared):
    futures = [shared.submit("echo", [k]) for k in range(200)]
    assert [f.result(60) for f in futures] == list(range(200))


def test_a_callback_may_call_again(shared):
    answers: list[int] = []
    done = threading.Event()

    def again(future):
        answers.append(shared.call("echo", [future.result() + 1]))
        done.set()

    shared.submit("echo", [1]).add_done_callback(again)
    assert done.wait(60)
    assert answers == [2]


def test_a_thousand_calls_from_fifty_threads(shared):
    def work(thread: int) -> list[int]:
        return [shared.call("echo", [thread * 100 + k], timeout=60) for k in range(20)]

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(work, range(50)))
    assert answers == [[t * 100 + k for k in range(20)] for t in range(50)]
    assert shared.in_flight == 0


def test_threads_with_calls_futures_and_streams_mixed(shared):
    def work(k: int) -> object:
        if k % 3 == 0:
            return shared.call("echo", [np.full(100_000, k % 250, np.uint8)], timeout=60).sum() == 100_000 * (
                k % 250
            )
        if k % 3 == 1:
            return shared.submit("echo", [k], timeout=60).result(60) == k
        return list(shared.stream("count", [5], timeout=60)) == list(range(5))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(150)))


def test_remote_errors_carry_type_message_traceback_causes_and_versions(shared):
    with pytest.raises(RemoteError) as caught:
        shared.call("fail", ["because"])
    error = caught.value
    assert error.remote_type == "ValueError"
    assert "because" in error.message
    assert "toy.py" in error.remote_traceback
    assert "orchestrator/worker" not in error.remote_traceback
    assert error.versions["numpy"] == "1.26.4"
    assert error.details["causes"][0]["type"] == "KeyError"


@pytest.mark.parametrize(
    ("method", "kind", "remote"),
    [
        ("memory", OutOfMemory, "MemoryError"),
        ("devices", DeviceMismatch, "RuntimeError"),
        ("interrupt", RemoteError, "KeyboardInterrupt"),
        ("absent", RemoteError, "AttributeError"),
    ],
)
def test_failures_have_their_class(shared, method, kind, remote):
    with pytest.raises(RemoteError) as caught:
        shared.call(method)
    assert type(caught.value) is kind
    assert caught.value.remote_type == remote


def test_sys_exit_in_a_method_is_an_error_and_the_worker_goes_on(shared):
    with pytest.raises(RemoteError) as caught:
        shared.call("quit", [3])
    assert caught.value.remote_type == "SystemExit"
    assert shared.call("echo", [1]) == 1


def test_an_argument_that_cannot_travel_is_named(shared):
    with pytest.raises(ConfigError, match=r'args\[0\]\["x"\] is a .*object'):
        shared.call("echo", [{"x": object()}])
    with pytest.raises(ConfigError, match=r'kwargs\["value"\]\[1\] is an integer of 71 bits'):
        shared.call("echo", kwargs={"value": [0, 1 << 70]})


def test_a_result_that_cannot_travel_is_named(shared):
    with pytest.raises(RemoteError, match=r'result\["x"\]\[1\] is a builtins.object') as caught:
        shared.call("unsendable")
    assert caught.value.remote_type.endswith("EncodingError")


def test_a_deadline_cancels_cooperatively_and_the_next_call_is_unharmed(shared):
    with pytest.raises(DeadlineExceeded):
        shared.call("patient", [600], timeout=0.3)
    assert shared.call("echo", [7], timeout=60) == 7
    assert "cancelled" in shared.call("log")


def test_a_deadline_of_a_future(shared):
    with pytest.raises(DeadlineExceeded):
        shared.submit("patient", [600], timeout=0.3).result(60)
    assert shared.call("echo", [7], timeout=60) == 7


def test_cancelled_while_queued_it_never_runs(shared, gate):
    first = shared.submit("wait_for", [str(gate), "first"])
    second = shared.submit("nap", [0.0, "second"])
    third = shared.submit("nap", [0.0, "third"])
    begun(gate)
    assert second.cancel()
    heard(shared)
    gate.touch()
    assert first.result(60) == "first"
    assert third.result(60) == "third"
    with pytest.raises(CancelledError):
        second.result(1)
    ran = shared.call("log")
    assert "third" in ran
    assert "second" not in ran


def test_a_cancelled_future_is_done_for_those_who_wait(shared, gate):
    running, queued = shared.submit("wait_for", [str(gate)]), shared.submit("echo", [1])
    timer = threading.Timer(0.1, lambda: (queued.cancel(), queued.cancel()))
    timer.start()
    assert wait([queued], timeout=60).done == {queued}
    assert queued.cancelled()
    gate.touch()
    assert running.result(60) is None
    assert not running.cancel()
    timer.join()


def test_ten_thousand_futures(shared):
    futures = [shared.submit("echo", [k], timeout=120) for k in range(10_000)]
    assert [f.result(60) for f in futures] == list(range(10_000))


def test_cancelled_while_running_it_is_told(shared, gate):
    before = shared.call("log").count("cancelled")
    future = shared.submit("patient", [600, str(gate)])
    begun(gate)
    assert future.cancel()
    assert shared.call("log", timeout=60).count("cancelled") == before + 1


@pytest.mark.parametrize("way", ["call", "submit", "stream"])
def test_progress_of_a_call(shared, monkeypatch, way):
    news: list[Event] = []
    monkeypatch.setattr(shared, "listener", news.append)
    monkeypatch.setattr(shared, "subject", "x")
    answer = getattr(shared, way)("tell", [5])
    assert {"call": int, "submit": lambda future: future.result(60), "stream": next}[way](answer) == 5
    assert news[-1] == Event("call", "x", "step", done=5.0, total=5.0)


def test_streams(shared):
    assert list(shared.stream("count", [100])) == list(range(100))
    assert list(shared.stream("count", [0])) == []
    assert list(shared.stream("echo", ["whole"])) == ["whole"]
    assert shared.call("count", [3]) == [0, 1, 2]
    assert [a.sum() for a in shared.stream("arrays", [8, 200_000], buffer=2)] == [
        200_000 * k for k in range(8)
    ]


def test_a_slow_consumer_holds_the_worker_back(shared):
    before = len(shared.call("log"))
    stream = shared.stream("count", [1000], buffer=4)
    assert next(stream) == 0
    until(lambda: shared.channel.glance() or len(stream._pending.items) == 3)
    time.sleep(0.3)  # a worker that is not held back goes on
    stream.close()
    produced = shared.call("log")[before:]
    assert produced[-1] == "closed"
    assert 4 <= len(produced) - 1 <= 6


def test_closing_or_dropping_a_stream_closes_the_generator(shared):
    for drop in (lambda s: s.close(), lambda s: None):
        before = shared.call("log").count("closed")
        stream = shared.stream("count", [10_000, 0.001])
        next(stream)
        drop(stream)
        del stream
        assert shared.call("log", timeout=60).count("closed") == before + 1


def test_an_error_inside_a_stream_comes_after_its_items(shared):
    stream = shared.stream("stumble")
    assert next(stream) == 1
    with pytest.raises(RemoteError, match="stumbled"):
        next(stream)
    assert list(stream) == []


def test_a_stream_has_one_deadline(shared):
    stream = shared.stream("count", [1000, 0.05], timeout=0.3)
    with pytest.raises(DeadlineExceeded):
        list(stream)
    assert shared.call("echo", [1], timeout=60) == 1


def test_ping_is_answered_idle_and_busy(shared, gate):
    heard(shared)
    future = shared.submit("wait_for", [str(gate)])
    begun(gate)
    heard(shared)
    assert not future.done()
    gate.touch()
    future.result(60)


def test_unload_and_load_again(toy):
    toy.link.unload()
    with pytest.raises(RemoteError, match="nothing is loaded"):
        toy.link.call("echo")
    assert toy.link.load(None, {}, {"scale": 9}, timeout=60).report == {"scale": 9}
    assert toy.link.call("echo", [1]) == 1
    with pytest.raises(RemoteError, match="loaded already"):
        toy.link.load(None, {}, {}, timeout=60)


def test_close_lets_a_running_call_finish(toy):
    future = toy.link.submit("nap", [0.4, "done"])
    toy.link.close(60)
    assert future.result(60) == "done"
    assert toy.process.returncode == 0
    assert "closed" in toy.process.tail()
    with pytest.raises(WorkerError):
        toy.link.call("echo")


def test_what_a_model_prints_goes_to_the_log(toy):
    toy.link.call("say", ["a line for the log"])
    until(lambda: "a line for the log" in toy.process.tail())


def test_interrupt_ends_the_running_method_only(toy, gate):
    toy.process.interrupt()  # idle: nothing happens
    assert toy.link.call("echo", [1]) == 1
    future = toy.link.submit("wait_for", [str(gate)])
    begun(gate)
    toy.process.interrupt()
    with pytest.raises(RemoteError) as caught:
        future.result(60)
    assert caught.value.remote_type == "KeyboardInterrupt"
    assert toy.link.call("echo", [1]) == 1


@pytest.mark.parametrize("moment", ["get", "pop"])
def test_an_answer_that_comes_while_its_call_is_given_up_does_not_count_as_an_overrun(toy, moment):
    """The worker is done with the call: waiting for it to follow the cancel would end in its being killed."""
    link, ident = toy.link, 1 << 40
    meanwhile = [lambda: link.give_up(ident) if moment == "get" else link._receive(answer)]

    class Pending(dict):
        def get(self, key, default=None):
            if moment == "get" and meanwhile:
                meanwhile.pop()()
            return super().get(key, default)

        def pop(self, key, default=None):
            if moment == "pop" and meanwhile:
                meanwhile.pop()()
            return super().pop(key, default)

    answer = link._post.compose(m.RESULT, ident, 1)
    link._pending = Pending({ident: Answer()})
    if moment == "get":
        link._receive(answer)
    else:
        link.give_up(ident)
    assert not meanwhile
    assert link.overrun() == 0.0
    assert link.call("echo", [2]) == 2


def test_who_waits_for_a_cancelled_call_is_told_of_its_end(toy, gate):
    future = toy.link.submit("wait_for", [str(gate)])
    begun(gate)
    free = threading.Event()
    toy.link.when_free(free.set)
    future.cancel()
    assert toy.link.overrun() > 0
    assert not free.is_set()
    gate.touch()
    assert free.wait(LONG)
    assert toy.link.overrun() == 0.0
