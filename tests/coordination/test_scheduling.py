"""The scheduler on fake replicas: order, bounds, deadlines, cancellation, retries; no process is started."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
from conditions import LONG, until

from orchestrator.errors import (
    DeadlineExceeded,
    OrchestratorError,
    OutOfMemory,
    Overloaded,
    Quarantined,
    RemoteError,
    WorkerDied,
)
from orchestrator.links import NotBegun
from orchestrator.scheduling import SLOTS, Call, Scheduler


class FakeLink:
    """Runs submitted calls when told to, direct calls at once."""

    def __init__(self, run: Callable[[str, Any], Any] = lambda method, args: (method, list(args))) -> None:
        self.run = run
        self.pending: list[tuple[str, Any, Future[Any]]] = []
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()
        self.held = 0.0

    def overrun(self) -> float:
        return self.held

    def when_free(self, callback: Callable[[], None]) -> None:
        self.freed = callback

    def call(
        self, method: str, args: Any, kwargs: Any, *, timeout: float | None, notes: list[str] | None
    ) -> Any:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            return self.run(method, args)
        finally:
            with self.lock:
                self.running -= 1

    def submit(
        self, method: str, args: Any, kwargs: Any, *, timeout: float | None, notes: list[str] | None
    ) -> Future[Any]:
        future: Future[Any] = Future()
        self.pending.append((method, args, future))
        return future

    def stream(self, method: str, args: Any, kwargs: Any, *, timeout: float | None) -> Iterator[Any]:
        yield from args

    def answer(self) -> None:
        method, args, future = self.pending.pop(0)
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(self.run(method, args))
            except Exception as error:
                future.set_exception(error)


class FakeReplica:
    def __init__(self, link: FakeLink | None) -> None:
        self.link = link
        self.in_flight = 0
        self.woken = 0
        self.refused: OrchestratorError | None = None
        self.movable = False
        self.moves = 0

    def move(self) -> bool:
        self.moves += 1
        return self.movable

    def wake(self) -> None:
        self.woken += 1

    def refusal(self) -> OrchestratorError | None:
        return self.refused


def scheduler(*replicas: FakeReplica, depth: int = 100) -> Scheduler:
    return Scheduler("model", replicas, depth)


def test_a_call_runs_in_the_callers_thread() -> None:
    threads = []
    link = FakeLink(lambda method, args: threads.append(threading.current_thread()) or args[0])
    assert scheduler(FakeReplica(link)).call(Call("m", [7])) == 7
    assert threads == [threading.current_thread()]


def test_no_replica_gets_more_than_its_slots() -> None:
    link = FakeLink(lambda method, args: time.sleep(0.005))
    one = scheduler(FakeReplica(link))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: one.call(Call("m")), range(64)))
    assert 1 <= link.most <= SLOTS


def test_the_least_loaded_replica_is_chosen() -> None:
    first, second = FakeReplica(FakeLink()), FakeReplica(FakeLink())
    two = scheduler(first, second)
    for _ in range(4):
        two.submit(Call("m"))
    assert (first.in_flight, second.in_flight) == (2, 2)


def test_submitted_calls_run_in_order_and_return_to_their_own_futures() -> None:
    link = FakeLink()
    one = scheduler(FakeReplica(link))
    futures = [one.submit(Call("m", [n])) for n in range(10)]
    for _ in futures:
        link.answer()
    assert [future.result(LONG) for future in futures] == [("m", [n]) for n in range(10)]


def test_a_full_queue_refuses() -> None:
    one = scheduler(FakeReplica(FakeLink()), depth=3)
    for _ in range(SLOTS + 3):
        one.submit(Call("m"))
    with pytest.raises(Overloaded, match="3 calls wait"):
        one.submit(Call("m"))


def test_a_queued_call_misses_its_deadline_and_leaves_the_queue() -> None:
    replica = FakeReplica(None)
    one = scheduler(replica)
    with pytest.raises(DeadlineExceeded):
        one.call(Call("m", deadline=time.monotonic() + 0.05))
    assert not one.waiting
    assert replica.woken == 1


def test_the_clock_expires_submitted_calls() -> None:
    one = scheduler(FakeReplica(None))
    late = one.submit(Call("m", deadline=time.monotonic() - 1))
    patient = one.submit(Call("m"))
    one.expire()
    assert isinstance(late.exception(LONG), DeadlineExceeded)
    assert not patient.done()


def test_cancelling_a_queued_call_frees_its_place() -> None:
    link = FakeLink()
    one = scheduler(FakeReplica(link))
    running = [one.submit(Call("m", [n])) for n in range(SLOTS)]
    queued = one.submit(Call("m", ["never"]))
    after = one.submit(Call("m", ["after"]))
    assert queued.cancel()
    for _ in range(SLOTS + 1):
        link.answer()
    assert after.result(LONG) == ("m", ["after"])
    assert [future.result(LONG)[1] for future in running] == [[0], [1]]
    with pytest.raises(CancelledError):
        queued.result(LONG)
    assert one.replicas[0].in_flight == 0


def test_cancelling_a_running_call_reaches_the_worker() -> None:
    link = FakeLink()
    one = scheduler(FakeReplica(link))
    future = one.submit(Call("m"))
    assert future.cancel()
    assert link.pending[0][2].cancelled()


def test_a_call_that_is_cancelled_while_it_gets_its_slot_is_not_sent() -> None:
    link = FakeLink()

    class Cancelling(FakeReplica):
        @property
        def link(self) -> FakeLink | None:
            if futures:
                futures[0].cancel()
                return link
            return None

        @link.setter
        def link(self, _: FakeLink | None) -> None: ...

    futures: list[Future[Any]] = []
    one = scheduler(Cancelling(None))
    future = one.submit(Call("m"))
    with one.lock:
        slot = one.waiting.popleft()[0]
        one.replicas[0].in_flight += 1
    futures.append(future)
    slot.set_result(one.replicas[0])
    assert future.cancelled()
    assert (link.pending, one.replicas[0].in_flight) == ([], 0)


def test_waiting_for_futures_sees_those_that_were_cancelled() -> None:
    one = scheduler(FakeReplica(None))
    futures = [one.submit(Call("m")) for _ in range(2)]
    cancelled = [future.cancel() for future in futures]
    assert cancelled == [True, True]
    assert futures[0].cancel()  # a second time does nothing
    assert wait(futures, LONG).done == set(futures)


def test_a_call_that_queues_while_the_last_replica_is_lost_is_told() -> None:
    class Lost(FakeReplica):
        def refusal(self) -> OrchestratorError | None:
            before, self.refused = self.refused, Quarantined("it failed too often")
            one.fail_waiting(self.refused)
            return before

    one = scheduler(Lost(None))
    with pytest.raises(Quarantined):
        one.call(Call("m", deadline=time.monotonic() + LONG))


def test_a_stream_that_is_garbage_gives_its_slot_back_wherever_it_is_collected() -> None:
    replica = FakeReplica(FakeLink())
    one = scheduler(replica)
    stream = one.stream(Call("m", [1, 2]))
    assert next(stream) == 1

    def collect() -> None:
        with one.lock:  # a collection may begin at any allocation
            stream.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()
    assert replica.in_flight == 0


def test_a_replica_that_is_withdrawn_gets_no_new_calls() -> None:
    link = FakeLink()
    replica = FakeReplica(link)
    one = scheduler(replica)
    with one.withdrawn(replica):
        future = one.submit(Call("m", [1]))
        assert not link.pending
    link.answer()
    assert future.result(LONG) == ("m", [1])


def test_a_deadline_holds_while_another_call_moves_the_model() -> None:
    one = scheduler(FakeReplica(FakeLink(short_of_memory)))
    one._mover._lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(one.call, Call("m", deadline=time.monotonic() + 0.2))
        try:
            with pytest.raises(DeadlineExceeded):
                late.result(LONG)
        finally:
            one._mover._lock.release()


def test_a_death_is_retried_only_where_the_caller_allowed_it() -> None:
    outcomes: list[Any] = [WorkerDied("gone"), 42]

    def run(method: str, args: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    one = scheduler(FakeReplica(FakeLink(run)))
    with pytest.raises(WorkerDied):
        one.call(Call("m"))
    outcomes.insert(0, WorkerDied("gone"))
    assert one.call(Call("m", retries=1)) == 42


def test_a_submitted_call_is_retried_on_another_slot() -> None:
    outcomes: list[Any] = [WorkerDied("gone"), 42]

    def run(method: str, args: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    link = FakeLink(run)
    one = scheduler(FakeReplica(link))
    future = one.submit(Call("m", retries=1))
    link.answer()
    assert not future.done()
    link.answer()
    assert future.result(LONG) == 42
    assert one.replicas[0].in_flight == 0


def test_quarantine_refuses_at_once_instead_of_queueing() -> None:
    replica = FakeReplica(None)
    replica.refused = Quarantined("it failed too often")
    with pytest.raises(Quarantined):
        scheduler(replica).call(Call("m"))


def test_slots_come_back_after_errors_and_streams() -> None:
    def fail(method: str, args: Any) -> Any:
        raise RemoteError("boom")

    replica = FakeReplica(FakeLink(fail))
    one = scheduler(replica)
    with pytest.raises(RemoteError):
        one.call(Call("m"))
    stream = one.stream(Call("m", [1, 2, 3]))
    assert next(stream) == 1
    assert replica.in_flight == 1
    stream.close()
    assert replica.in_flight == 0


def test_a_replica_that_becomes_ready_takes_what_waits() -> None:
    replica = FakeReplica(None)
    one = scheduler(replica)
    future = one.submit(Call("m", [5]))
    assert not future.done()
    replica.link = link = FakeLink()
    one.pump()
    link.answer()
    assert future.result(LONG) == ("m", [5])


def test_a_worker_held_by_a_cancelled_call_gets_no_other() -> None:
    link = FakeLink()
    link.held = 3.0
    one = scheduler(FakeReplica(link))
    future = one.submit(Call("m"))
    assert not link.pending
    link.held = 0.0
    link.freed()
    link.answer()
    assert future.result(LONG) == ("m", [])


def test_a_call_that_a_worker_gave_back_is_made_again() -> None:
    outcomes: list[Any] = [NotBegun("given back"), 42, NotBegun("given back"), 43]

    def run(method: str, args: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    link = FakeLink(run)
    one = scheduler(FakeReplica(link))
    assert one.call(Call("m")) == 42
    future = one.submit(Call("m"))
    link.answer()
    link.answer()
    assert future.result(LONG) == 43


def short_of_memory(method: str, args: Any) -> Any:
    raise OutOfMemory("no memory")


@pytest.mark.parametrize("submitted", [False, True])
def test_a_call_that_ran_out_of_memory_is_made_again_on_another_replica(submitted: bool) -> None:
    first, second = FakeReplica(FakeLink(short_of_memory)), FakeReplica(FakeLink())
    news: list[Any] = []
    two = Scheduler("model", [first, second], 10, listener=news.append)
    if submitted:
        future = two.submit(Call("m", [1]))
        first.link.answer()
        until(lambda: second.link.pending)
        second.link.answer()
        assert future.result(LONG) == ("m", [1])
        assert future.recovered == ("another replica",)
    else:
        assert two.call(Call("m", [1])) == ("m", [1])
    assert [event.message for event in news] == ["m: memory ran out; another replica"]
    assert (first.in_flight, second.in_flight, first.moves, two.recovered) == (0, 0, 0, 1)


def test_it_is_made_again_once_and_the_error_says_what_was_tried() -> None:
    replicas = [FakeReplica(FakeLink(short_of_memory)) for _ in range(3)]
    with pytest.raises(OutOfMemory) as caught:
        scheduler(*replicas).call(Call("m"))
    assert caught.value.tried == ["another replica"]
    assert "tried: another replica" in str(caught.value)
    assert [replica.in_flight for replica in replicas] == [0, 0, 0]


def test_a_lone_replica_moves_if_it_can() -> None:
    outcomes: list[Any] = [OutOfMemory("no memory"), 42]

    def run(method: str, args: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    replica = FakeReplica(FakeLink(run))
    replica.movable = True
    assert scheduler(replica).call(Call("m")) == 42
    stuck = FakeReplica(FakeLink(short_of_memory))
    with pytest.raises(OutOfMemory) as caught:
        scheduler(stuck).call(Call("m"))
    assert (caught.value.tried, stuck.moves) == ([], 1)


def test_a_replica_that_is_about_to_move_gets_no_calls_and_finishes_those_it_has() -> None:
    link = FakeLink()
    replica = FakeReplica(link)
    one = scheduler(replica)
    running = one.submit(Call("m", ["running"]))
    link.run = short_of_memory
    started = threading.Event()

    def move() -> bool:
        started.set()
        assert replica.in_flight == 0
        link.run = lambda method, args: list(args)
        return True

    replica.move = move  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        short = pool.submit(one.call, Call("m", ["short"]))
        until(lambda: one.leaving)
        queued = one.submit(Call("m", ["queued"]))
        assert not started.is_set()
        assert len(link.pending) == 1
        link.run = lambda method, args: list(args)
        link.answer()
        assert running.result(LONG) == ["running"]
        assert short.result(LONG) == ["short"]
    until(lambda: link.pending)
    link.answer()
    assert queued.result(LONG) == ["queued"]
