"""The client's end of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from orchestrator.errors import OrchestratorError
from orchestrator.links.pending import PendingStream
from orchestrator.worker import messages as m
from orchestrator.worker.interrupts import undisturbed

if TYPE_CHECKING:
    from orchestrator.links.exchange import Exchange

__all__ = ["RemoteStream"]


class RemoteStream(Iterator[Any]):
    """Iterates over what a worker's method yields. The worker is at most `buffer` items ahead.

    Closing it, or dropping it, cancels the method. Errors are those of `WorkerLink.call`.
    """

    def __init__(
        self, link: Exchange, ident: int, pending: PendingStream, deadline: float | None, what: str
    ) -> None:
        self._link = link
        self._ident = ident
        self._pending = pending
        self._deadline = deadline
        self._what = what
        self._taken = 0
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        try:
            message = self._wait()
            if message is None:
                self._over = True
                raise StopIteration
            self._taken += 1
            if self._taken * 2 >= self._pending.buffer:
                self._pending.allow(self._taken)
                self._link.send(m.CREDIT, self._ident, self._taken)
                self._taken = 0
            return self._link.value(message)
        except (OrchestratorError, KeyboardInterrupt):
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._over:
            self.close()

    def close(self) -> None:
        """Cancels the method if it still runs. Items that came already are dropped."""
        with undisturbed:
            if not self._over:
                self._over = True
                self._link.abandon(self._ident, self._pending)
            self._pending.items.clear()

    def _wait(self) -> m.Message | None:
        """The next item's message; None at the end."""
        pending = self._pending
        while True:
            pending.ready = False
            item = pending.items.popleft() if pending.items else None
            self._link.tell(pending)  # what came before the item
            if item is not None:
                return item
            if pending.message is not None and pending.message.kind == m.END:
                return None
            if self._link.outcome(pending):
                raise self._link.wrong(pending)
            if not self._link.channel.wait(pending, self._deadline):
                raise self._link.late(self._what)
