"""Ctrl-C at every line that a call runs through: no slot is lost, no call goes on, no message of another is lost.

At a sample of the lines of a load, an unload and a close: nothing is left, and the next load works.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import psutil
import pytest
from conditions import LONG, gone, until

import orchestrator
from orchestrator import Model, Orchestrator, Settings
from orchestrator.worker.interrupts import listening, undisturbed

FAMILY = f"{Path(__file__).with_name('spread_model.py')}:Spread"
PACKAGE = str(Path(orchestrator.__file__).parent)


@pytest.fixture(scope="module")
def model(settings: Settings) -> Iterator[Model]:
    with Orchestrator(settings=settings) as orc:
        yield orc.load(FAMILY, with_=["numpy==2.2.6"], name="interrupted")


class CtrlC:
    """Presses Ctrl-C when this thread has run through so many lines of the package, or so often through one `place`."""

    def __init__(self, line: int, place: tuple[str, int] | None = None) -> None:
        self.left = line
        self.place = place
        self.seen: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> Self:
        sys.settrace(self.look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def look(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and frame.f_globals["__name__"] != "orchestrator.worker.interrupts":
            here = frame.f_code.co_filename, frame.f_lineno
            self.seen[here] += 1
            if self.place in (None, here):
                self.left -= 1
                if self.left == 0:
                    signal.raise_signal(signal.SIGINT)
        return self.look


def streamed(model: Model, folder: Path) -> None:
    assert list(model.stream("count", 4)) == list(range(4))


def submitted(model: Model, folder: Path) -> None:
    future = model.submit("work", [1], str(folder))
    with undisturbed, listening():  # the user's own wait, which may lose its future
        assert future.result(LONG) == [10]


def cancelled(model: Model, folder: Path) -> None:
    model.submit("work", [1], str(folder)).cancel()


@pytest.mark.parametrize(
    "use",
    [
        lambda model, folder: model.call("work", [1], str(folder)),
        submitted,
        cancelled,
        streamed,
        lambda model, folder: model.map("work", range(6), str(folder), chunk_size=2),
    ],
    ids=["call", "submit", "cancel", "stream", "map"],
)
def test_at_every_line(model: Model, tmp_path: Path, use: Callable[[Model, Path], Any]) -> None:
    (replica,) = model._deployment.replicas
    heard = line = 0
    while True:
        line += 1
        trap = CtrlC(line)
        try:
            with trap:
                use(model, tmp_path)
        except KeyboardInterrupt:
            heard += 1
        else:
            assert trap.left > 0, "Ctrl-C was swallowed"
            break
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        until(lambda: replica.in_flight == 0)
        assert model.call("work", [2], str(tmp_path), timeout=LONG) == [20]
    assert heard > 50


def test_one_that_is_closed_does_nothing_when_it_is_collected(settings: Settings) -> None:
    """A callback of the garbage collection swallows what is raised in it."""
    orc = Orchestrator(settings=settings)
    orc.close()
    never = CtrlC(0)
    with never:
        del orc
        gc.collect()
    assert not [file for file, _ in never.seen if file.endswith("coordinator.py")]


def held(settings: Settings) -> Counter[str]:
    """What this process has: reservations, processes, descriptors, threads, folders of sockets."""
    gc.collect()
    ledger = settings.home / "ledger.json"
    entries = json.loads(ledger.read_text()) if ledger.exists() else []
    folders = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()).glob(f"orc-{os.getpid():x}-*")
    return Counter(
        reservations=sum(entry["pid"] == os.getpid() for entry in entries),
        processes=sum(not gone(child.pid) for child in psutil.Process().children(recursive=True)),
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=sum(thread.name != "clock" for thread in threading.enumerate()),
        folders=len(list(folders)),
    )


def load(orc: Orchestrator) -> Model:
    return orc.load(FAMILY, with_=["numpy==2.2.6"], name="brief")


def in_a_load(orc: Orchestrator, trap: CtrlC) -> None:
    with trap:
        load(orc)


def in_an_unload(orc: Orchestrator, trap: CtrlC) -> None:
    model = load(orc)
    try:
        with trap:
            model.unload()
    finally:
        model.unload()  # if it came before anything was done


def in_a_close(orc: Orchestrator, trap: CtrlC) -> None:
    load(orc)
    try:
        with trap:
            orc.close()
    finally:
        orc.close()


@pytest.mark.slow
@pytest.mark.parametrize(("act", "samples"), [(in_a_load, 10), (in_an_unload, 5), (in_a_close, 5)])
def test_at_some_lines(
    settings: Settings, tmp_path: Path, act: Callable[[Orchestrator, CtrlC], None], samples: int
) -> None:
    never = CtrlC(0)
    with Orchestrator(settings=settings) as orc:
        act(orc, never)
    before = held(settings)
    chance = random.Random(1)
    for place, times in chance.sample(sorted(never.seen.items()), samples):
        trap = CtrlC(chance.randint(1, times), place)
        with Orchestrator(settings=settings) as orc:
            heard = False
            try:
                act(orc, trap)
            except KeyboardInterrupt:
                heard = True  # and no more: the frames that it came through are to go
            assert heard is (trap.left <= 0), f"Ctrl-C was swallowed at {place}"
            if heard:
                assert not orc.status().deployments, place
                until(lambda: not held(settings) - before)
                if act is not in_a_close:
                    assert load(orc).call("work", [2], str(tmp_path), timeout=LONG) == [20]
