"""One Ctrl-C is heard wherever a load or a call waits for others, and nothing that was taken before is lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conditions import LONG, until
from filelock import FileLock

from orchestrator import Settings
from orchestrator.calls import Call, Mover
from orchestrator.environments import Environment
from orchestrator.errors import PlacementError
from orchestrator.links.pending import tell
from orchestrator.placement import Ledger
from orchestrator.processes import WorkerProcess
from orchestrator.room import Obstacle, SharedRoom
from orchestrator.specification import Specification
from orchestrator.waiting import taken
from orchestrator.worker.interrupts import undisturbed


@contextmanager
def pressed_in(function: Callable[..., Any]) -> Iterator[None]:
    """Presses Ctrl-C when this thread waits in `function`; once more, which is a failure, where that is not heard."""
    main = threading.get_ident()
    heard = threading.Event()
    presses = 0

    def waits() -> bool:
        frame = sys._current_frames().get(main)
        while frame is not None and frame.f_code is not function.__code__:
            frame = frame.f_back
        return frame is not None

    def press() -> None:
        nonlocal presses
        until(waits)
        while presses < 2 and not heard.is_set():
            presses += 1
            signal.pthread_kill(main, signal.SIGINT)
            heard.wait(LONG / 2)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt), undisturbed:
        yield
    heard.set()
    thread.join()
    assert presses == 1


def test_a_lock_that_another_keeps() -> None:
    lock = threading.Lock()
    lock.acquire()

    def waits() -> None:
        with taken(lock):
            pytest.fail("two have it")

    with pressed_in(waits):
        waits()
    lock.release()
    assert lock.acquire(blocking=False)


def test_a_ledger_that_another_keeps(tmp_path: Path) -> None:
    ledger = Ledger(Settings(home=tmp_path))
    kept, enough = threading.Event(), threading.Event()

    def keep() -> None:
        with FileLock(f"{ledger.path}.lock"):
            kept.set()
            enough.wait(LONG)

    other = threading.Thread(target=keep)
    other.start()
    kept.wait(LONG)
    with pressed_in(Ledger.entries):
        ledger.entries()
    enough.set()
    other.join()
    assert ledger.entries() == []


def test_a_busy_model_whose_room_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = SharedRoom(Settings(home=tmp_path, room_timeout=2 * LONG), list)
    busy: Any = SimpleNamespace(name="busy")
    monkeypatch.setattr(room, "_look", lambda _: Obstacle(PlacementError("no room"), busy=[busy]))
    nothing: Any = SimpleNamespace()
    with pressed_in(SharedRoom.reserve):
        room.reserve(Specification("model", nothing, nothing, None), 0)
    assert room.ledger.entries() == []


@pytest.mark.parametrize("moves", [True, False], ids=["another call moves it", "another call runs"])
def test_a_model_that_is_to_move(moves: bool) -> None:
    withdrawn = 0

    @contextmanager
    def withdraw(_: object) -> Iterator[None]:
        nonlocal withdrawn
        withdrawn += 1
        try:
            yield
        finally:
            withdrawn -= 1

    mover = Mover(withdraw)
    replica: Any = SimpleNamespace(link=None, in_flight=1)
    if moves:
        mover._lock.acquire()
    with pressed_in(Mover.move):
        mover.move(Call("m"), replica, replica.link)
    assert mover._lock.locked() is moves
    assert withdrawn == 0


def test_a_listener_that_does_not_return() -> None:
    def hangs(_: object) -> None:
        threading.Event().wait(2 * LONG)

    news: Any = SimpleNamespace(value=lambda: {"message": "halfway"})
    with pressed_in(hangs):
        tell(news, hangs, "load", "model")


def test_an_interpreter_that_does_not_come_up(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    environment = Environment(
        id="hangs", family="toy", path=tmp_path, python=python, python_version="3.11", versions={}, modules_cache=tmp_path,
    )  # fmt: skip
    before = {child.pid for child in psutil.Process().children()}
    with pressed_in(WorkerProcess._await_birth):
        WorkerProcess.spawn(
            environment,
            worker_file=tmp_path / "toy.py",
            worker_class="Toy",
            name="toy",
            settings=Settings(home=tmp_path),
            variables={},
        )
    assert {child.pid for child in psutil.Process().children()} <= before
