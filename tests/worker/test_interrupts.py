"""What a block that is not disturbed does with Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from orchestrator.worker import interrupts
from orchestrator.worker.interrupts import listening, undisturbed


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler() -> Iterator[Any]:
    before = signal.getsignal(signal.SIGINT)
    yield before
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, before)


def test_it_is_heard_at_the_end() -> None:
    reached = []

    def block() -> None:
        with undisturbed:
            with undisturbed:
                press()
                reached.append("inner")
            reached.append("outer")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["inner", "outer"]


def test_it_is_heard_while_listening() -> None:
    def after_an_inner_one() -> None:
        with listening():
            with listening():
                pass
            press()
            pytest.fail("the inner block made the outer one deaf")

    with undisturbed:
        with pytest.raises(KeyboardInterrupt), listening():
            press()
        with pytest.raises(KeyboardInterrupt):
            after_an_inner_one()


def test_a_block_is_not_disturbed_where_the_one_around_it_listens() -> None:
    reached = []

    def block() -> None:
        with undisturbed, listening():
            with undisturbed:
                press()
                reached.append("inner")
            reached.append("outer")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["inner"]


def pressed_at(line: int) -> bool:
    """Runs through a few blocks; whether so many lines of ours were run, at the last of which it was pressed."""
    left = line

    def look(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != interrupts.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                press()
        return look

    sys.settrace(look)
    try:
        with contextlib.suppress(KeyboardInterrupt), undisturbed, listening(), undisturbed:
            pass
    finally:
        sys.settrace(None)
    return left <= 0


def test_it_comes_at_every_line_of_ours(handler: Any) -> None:
    """The handler is back, and the next block is as good as the first."""
    line = 1
    while pressed_at(line):
        assert signal.getsignal(signal.SIGINT) is handler
        test_it_is_heard_at_the_end()
        line += 1
    assert line > 30


def test_what_came_before_is_heard_when_listening_begins() -> None:
    with undisturbed:
        press()
        with pytest.raises(KeyboardInterrupt), listening():
            pytest.fail("it was forgotten")


def test_the_second_is_heard_at_once() -> None:
    with undisturbed:
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_what_is_done_because_of_the_first_is_not_disturbed_by_another() -> None:
    cleaned = []

    def block() -> None:
        with undisturbed:
            try:
                with listening():
                    press()
            finally:
                press()
                cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert cleaned


def test_a_handler_that_does_not_raise_is_called_each_time(handler: Any) -> None:
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with undisturbed:
        press()
        assert heard == []
        with listening():
            assert heard == [1]
            press()
            press()
            assert heard == [1, 1, 1]
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("left", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_no_handler_of_python_is_left_alone(handler: Any, left: Any) -> None:
    signal.signal(signal.SIGINT, left)
    with undisturbed:
        assert signal.getsignal(signal.SIGINT) is left
    assert signal.getsignal(signal.SIGINT) is left
    signal.signal(signal.SIGINT, handler)


def test_one_that_is_set_meanwhile_stays(handler: Any) -> None:
    def mine(*_: object) -> None:
        pass

    with undisturbed:
        signal.signal(signal.SIGINT, mine)
    assert signal.getsignal(signal.SIGINT) is mine
    signal.signal(signal.SIGINT, handler)


def test_other_threads_change_nothing(handler: Any) -> None:
    seen = []

    def other() -> None:
        with undisturbed, listening():
            seen.append(signal.getsignal(signal.SIGINT))

    for block in (False, True):
        if block:
            undisturbed.__enter__()
        held = signal.getsignal(signal.SIGINT)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen.pop() == held
    press()
    with pytest.raises(KeyboardInterrupt):
        undisturbed.__exit__()
