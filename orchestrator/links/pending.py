"""What waits for answers: calls, futures and streams, each with the message that came last."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from orchestrator.errors import OrchestratorError, ProtocolError, WorkerError
from orchestrator.events import Event, Listener, Stage
from orchestrator.worker import messages as m
from orchestrator.worker.channel import Waiter
from orchestrator.worker.interrupts import listening, undisturbed
from orchestrator.worker.limits import DecodingError

__all__ = ["Answer", "NotBegun", "PendingFuture", "PendingStream", "RemoteFuture"]

MOST_NOTES = 1000  # of one call


class NotBegun(WorkerError):
    """The worker gave a call back that it had not begun: it can be made again, here or elsewhere."""


class Answer(Waiter):
    """One call that a thread waits for. `message` is its RESULT or ERROR, `failure` what came instead.

    `notes`, where it is a list, gets what the worker did because memory ran out.
    """

    __slots__ = ("failure", "listen", "message", "news", "notes", "recalled")

    def __init__(self) -> None:
        self.ready = False
        self.background = False
        self.event = None
        self.recalled = False
        self.message: m.Message | None = None
        self.failure: OrchestratorError | None = None
        self.news: deque[m.Message] | None = None
        self.listen: tuple[Listener, Stage, str] | None = None
        self.notes: list[str] | None = None

    def watch(self, listener: Listener | None, stage: Stage, subject: str) -> None:
        """Keeps the pieces of news for a listener; the thread that waits passes them on."""
        if listener is not None:
            self.news, self.listen = deque(maxlen=1000), (listener, stage, subject)

    def take(self, message: m.Message) -> bool:
        """A message for this call came; whether it was the last."""
        if message.kind == m.NOTE:
            if self.notes is not None and len(self.notes) < MOST_NOTES:
                with contextlib.suppress(DecodingError):
                    self.notes.append(str(message.value()))
            return False
        if message.kind == m.PROGRESS:
            if self.news is None:
                return False
            self.news.append(message)
            self.notify()
            return False
        self.message = message
        self.notify()
        return True

    def fail(self, error: OrchestratorError) -> None:
        """There will be no answer."""
        self.failure = error
        self.notify()


class PendingFuture(Answer):
    """One call that a Future stands for."""

    __slots__ = ("deliver", "do", "future", "ident")

    def __init__(
        self,
        ident: int,
        future: RemoteFuture,
        deliver: Callable[[PendingFuture], None],
        do: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__()
        self.ident = ident
        self.future = future
        self.deliver = deliver
        self.do = do

    def take(self, message: m.Message) -> bool:
        """As of every call; news is passed on by the background thread, since nobody waits."""
        if message.kind == m.PROGRESS and self.listen is not None:
            listen = self.listen
            self.do(lambda: tell(message, *listen))
            return False
        return super().take(message)

    def notify(self) -> None:
        """The background thread completes the future, outside every lock."""
        self.ready = True
        self.deliver(self)


class PendingStream(Answer):
    """A stream: items wait here, as many as were allowed for."""

    __slots__ = ("allowed", "buffer", "items")

    def __init__(self, buffer: int) -> None:
        super().__init__()
        self.items: deque[m.Message] = deque()
        self.buffer = self.allowed = buffer

    def allow(self, more: int) -> None:
        """The worker may send `more` items."""
        self.allowed += more

    def take(self, message: m.Message) -> bool:
        """An item, or the end."""
        if message.kind == m.ITEM:
            self.allowed -= 1
            if self.allowed < 0:
                self.fail(ProtocolError("a worker sent more items of a stream than were asked for"))
                return True
            self.items.append(message)
            self.notify()
            return False
        return super().take(message)


class RemoteFuture(Future[Any]):
    """A Future whose `cancel` also cancels in the worker, queued or running."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        super().__init__()
        self._cancel_remotely = cancel
        self._cancels = itertools.count()

    def cancel(self) -> bool:
        """Cancels; False if the answer is already here."""
        with undisturbed:
            if not super().cancel():
                return False
            if next(self._cancels) == 0:
                self.set_running_or_notify_cancel()  # tells those in `wait` and `as_completed`
                self._cancel_remotely()
            return True


def tell(message: m.Message, listener: Listener, stage: Stage, subject: str) -> None:
    """A piece of news for the listener; one that cannot be read is dropped."""
    try:
        news = message.value()
    except DecodingError:
        return
    if isinstance(news, dict) and isinstance(news.get("message"), str):
        done, total = (
            x if isinstance(x, int | float) else None for x in (news.get("done"), news.get("total"))
        )
        with listening():  # it is the user's
            listener(Event(stage, subject, news["message"], done=done, total=total))
