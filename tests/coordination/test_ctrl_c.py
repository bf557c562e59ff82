"""Ctrl-C at every line that a call runs through: no slot is lost, no call goes on, no message of another is lost."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
from conditions import LONG, until

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
    """Presses Ctrl-C when this thread has run through so many lines of the package."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __enter__(self) -> Self:
        sys.settrace(self.look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def look(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and frame.f_globals["__name__"] != "orchestrator.worker.interrupts":
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


@pytest.mark.parametrize(
    "use",
    [
        lambda model, folder: model.call("work", [1], str(folder)),
        submitted,
        streamed,
        lambda model, folder: model.map("work", range(6), str(folder), chunk_size=2),
    ],
    ids=["call", "submit", "stream", "map"],
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
