"""Ctrl-C in the middle of a call or a load: it is heard where that waits, and nowhere in between.

Python runs a signal's handler in the main thread between any two instructions. One that raises after a slot was taken
and before that was noted, or after a message was received and before it was handed on, loses the slot or the message;
after a process was started, the process. So the main thread makes its calls, loads and unloads `undisturbed`, and only
what may take long is done while `listening`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # its functions take 0.3 µs, those of `signal`, which make enums, 3 µs
import os
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional

__all__ = ["Undisturbed", "listening", "undisturbed"]

_here = threading.get_ident


class Undisturbed:
    """A block in which SIGINT's handler waits, in the main thread; in others it never runs. Blocks may be nested.

    The second Ctrl-C is heard at once, wherever it comes. A handler that is none of Python's is left alone.
    """

    __slots__ = ("_depth", "_handler", "_late", "_listening", "_main", "_outer")

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0
        self._listening = False
        self._outer: Any = None  # whether the block around this one listened, and what was around that
        self._late = False
        self._handler: Optional[Callable[..., Any]] = None

    def __enter__(self) -> None:
        if _here() != self._main:
            return
        if self._depth == 0:
            self._late = self._listening = False
            self._outer = None
            handler = _signal.getsignal(_signal.SIGINT)
            if callable(handler):
                self._handler = handler
                _signal.signal(_signal.SIGINT, self._take)
        else:
            self._outer = (self._listening, self._outer)
            self._listening = False
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        if not self._depth or _here() != self._main:
            return
        if self._depth > 1:
            self._depth -= 1
            listened, self._outer = self._outer
            if listened:
                self.listen()
            return
        handler = self._handler
        if self._end() and handler is not None:
            handler(_signal.SIGINT, None)

    def listen(self) -> bool:
        """From here on SIGINT is heard at once, and one that came before is heard now. Gives what `hush` needs."""
        before = self._listening
        if self._depth and _here() == self._main:
            self._listening = True
            if self._late:
                self._late = False
                self._take(_signal.SIGINT, None)
        return before

    def hush(self, before: bool) -> None:
        """Ends what `listen` began."""
        if self._depth and _here() == self._main:
            self._listening = before

    def forked(self) -> None:
        """The thread that forked is the main one of the new process."""
        self._main = _here()

    def _take(self, number: int, frame: Any) -> None:
        handler = self._handler
        if handler is None or not (self._listening or self._late):
            self._late = True
        elif self._late:
            self._end()
            handler(number, frame)
        else:
            self._listening = False  # what is done because of the first is not disturbed by the second
            handler(number, frame)
            self._listening = True

    def _end(self) -> bool:
        """Gives SIGINT its handler back; whether one has waited."""
        self._depth = 0  # first: the handler may raise as soon as it is back
        if self._handler is not None and _signal.getsignal(_signal.SIGINT) == self._take:
            _signal.signal(_signal.SIGINT, self._handler)  # else somebody has set another meanwhile
        late, self._late, self._handler = self._late, False, None
        return late


undisturbed = Undisturbed()
os.register_at_fork(after_in_child=undisturbed.forked)


@contextmanager
def listening() -> Iterator[None]:
    """A part of an undisturbed block that may take long, and can be interrupted anywhere."""
    before = undisturbed.listen()
    try:
        yield
    finally:
        undisturbed.hush(before)
