"""One worker, as seen from the coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from orchestrator.errors import (
    ConfigError,
    ProtocolError,
    WorkerDied,
    WorkerError,
    WorkerStartError,
)
from orchestrator.events import Listener, Stage, ignore
from orchestrator.links.exchange import NAMES, Exchange
from orchestrator.links.pending import Answer, PendingFuture, PendingStream, RemoteFuture
from orchestrator.links.reports import LoadReport, WorkerInfo
from orchestrator.links.stream import RemoteStream
from orchestrator.processes.folder import remove_folder
from orchestrator.worker import messages as m

__all__ = ["WorkerLink"]

_monotonic = time.monotonic


class WorkerLink(Exchange):
    """Talks to one worker. Every method may be called from any thread.

    Errors of `call`, `submit`, `stream`, `load` and `unload`: RemoteError (LoadError, OutOfMemory, DeviceMismatch)
    when the family's code raised; WorkerDied when the process ended; DeadlineExceeded; Cancelled; ConfigError when an
    argument is something that the wire does not carry; ProtocolError when one side does not understand the other.
    """

    listener: Listener | None = None
    subject: str = ""

    def watch(self, listener: Listener, subject: str) -> None:
        """From now on `listener` gets what the family tells with `progress` in its calls, as news of `subject`."""
        self.listener, self.subject = listener, subject

    # -- what it is for ----------------------------------------------------------------------------------------------

    def hello(self, timeout: float) -> WorkerInfo:
        """Waits for the worker's greeting and answers it. A link that does not come up closes itself.

        Raises:
            WorkerStartError: it ended, or said nothing for `timeout` seconds.
            ProtocolError: it speaks another version of the protocol.
        """
        try:
            return self._greet(timeout)
        except BaseException:
            self.close(0)
            raise

    def _greet(self, timeout: float) -> WorkerInfo:
        answer = self._greeting
        self.channel.wait(answer, _monotonic() + timeout)
        if isinstance(answer.failure, ProtocolError):
            raise answer.failure
        if answer.message is None:
            what = "said nothing" if self.process.alive else self.process.describe_exit()
            raise WorkerStartError(
                f"worker {self.process.name} {what} in its first {timeout:g} s"
                if self.process.alive
                else f"worker {self.process.name} {what} before it was ready",
                hint=f"see {self.process.log_path}",
                last_lines=self.process.tail(20),
            )
        info = _info(self.value(answer.message))
        if info.protocol != m.PROTOCOL:
            raise ProtocolError(
                f"worker {self.process.name} speaks protocol {info.protocol}, this side {m.PROTOCOL}",
                hint="worker and coordinator must come from the same installation",
            )
        if "segments" not in info.capabilities:
            self._post.pool.close()
        self.send(m.HELLO, 0, {"protocol": m.PROTOCOL})
        self.channel.seal()  # the connection stays; nobody else can make one, nothing is left behind
        remove_folder(self.process.meeting.folder)
        return info

    def load(
        self,
        checkpoint: str | None,
        placement: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        timeout: float | None = None,
        listener: Listener = ignore,
        subject: str = "",
    ) -> LoadReport:
        """Imports the family and makes its instance. `listener` gets what the family tells with `progress`."""
        order = {"checkpoint": checkpoint, "placement": dict(placement), "options": dict(options)}
        found = self._ask(m.LOAD, order, ("load",), timeout, "loading", "load", listener, subject)
        if not isinstance(found, dict) or not isinstance(found.get("methods"), dict):
            raise ProtocolError(f"worker {self.process.name} sent a load report that cannot be read")
        return LoadReport(**found)

    def call(
        self,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        notes: list[str] | None = None,
    ) -> Any:
        """Calls a method and waits, in this thread. After `timeout` seconds the call is cancelled in the worker.

        `notes` gets, in words, what the worker did because memory ran out.
        """
        value = [method, list(args), kwargs if type(kwargs) is dict else dict(kwargs or ())]
        return self._ask(m.CALL, value, NAMES, timeout, method, "call", self.listener, self.subject, notes)

    def submit(
        self,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        notes: list[str] | None = None,
    ) -> Future[Any]:
        """Calls a method without waiting. Callbacks of the future run in the link's thread and should be quick."""
        self.check()
        ident = next(self._ids)
        deadline = None if timeout is None else _monotonic() + timeout
        future = RemoteFuture(lambda: self.give_up(ident))
        pending = PendingFuture(ident, future, self.background.deliver, self.background.do)
        pending.notes = notes
        pending.watch(self.listener, "call", self.subject)
        frames = self.compose(m.CALL, ident, [method, list(args), dict(kwargs or {})])
        self.expect_future(pending, deadline)
        self.channel.post(frames)
        self.background.ring()
        return pending.future

    def stream(
        self,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        buffer: int = 16,
    ) -> RemoteStream:
        """Iterates over what a method yields; the worker is at most `buffer` items ahead. `timeout` is for all."""
        if buffer < 1:
            raise ConfigError("the buffer of a stream holds at least one item")
        self.check()
        ident = next(self._ids)
        pending = PendingStream(buffer)
        pending.watch(self.listener, "call", self.subject)
        frames = self.compose(m.STREAM, ident, [method, list(args), dict(kwargs or {}), buffer])
        self.expect(ident, pending)
        self.channel.post(frames)
        return RemoteStream(self, ident, pending, None if timeout is None else _monotonic() + timeout, method)

    def unload(self, timeout: float | None = None) -> None:
        """Lets the family's instance go; another can be loaded."""
        self._ask(m.UNLOAD, None, ("unload",), timeout, "unloading", "load", None, "")

    def bye(self) -> None:
        """Asks the worker to end when it has done what it was asked for before. No call is taken from now on."""
        if not self._closing and not self.process.forked and self._failure is None:
            self._closing = True
            self.channel.post(self._post.signal(m.BYE, next(self._ids)))

    def close(self, grace: float) -> None:
        """Ends the worker: asked (what it has to do is finished), after `grace` seconds SIGTERM, then SIGKILL."""
        if self._over or self.process.forked:
            return
        if grace > 0 and self._failure is None:
            self.bye()
            self.process.wait(grace)
        self._closing = True
        self.process.stop(min(grace, 2.0))
        self._over = True
        if not self.process.alive:
            self.settle()
        self.fail_all(WorkerError(f"worker {self.process.name} was closed"))
        self.shut()

    def on_death(self, callback: Callable[[WorkerDied], None]) -> None:
        """Calls `callback`, in the link's thread, if the worker ends before it is closed (soon if it has)."""
        self._deaths.append(callback)
        failure = self._failure
        if isinstance(failure, WorkerDied):
            self.background.do(self.tell_death)

    def silence(self) -> float:
        """Seconds that a ping has gone unanswered; 0 when the worker answers. Sends a ping: ask every few seconds."""
        if not self.alive or self.process.forked:
            return 0.0
        self.channel.glance()
        if self._ping and self.last_sign_of_life < self._ping:
            return _monotonic() - self._ping
        self._ping = _monotonic()
        self.channel.post(self._post.signal(m.PING))
        return 0.0

    # -- one call ----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        kind: int,
        value: Any,
        names: Sequence[str],
        timeout: float | None,
        what: str,
        stage: Stage,
        listener: Listener | None,
        subject: str,
        notes: list[str] | None = None,
    ) -> Any:
        if self._failure is not None or self._closing or self.process.forked:
            self.check()
        ident = next(self._ids)
        frames = self.compose(kind, ident, value, names)
        answer = Answer()
        answer.notes = notes
        if listener is not None:
            answer.watch(listener, stage, subject)
        deadline = None if timeout is None else _monotonic() + timeout
        self._pending[ident] = answer
        try:
            if self._failure is None:
                self.channel.exchange(frames, answer, deadline)
            while not self.outcome(answer):
                if not answer.ready:
                    raise self.late(what)
                answer.ready = False
                self.tell(answer)
                if not self.outcome(answer):
                    self.channel.wait(answer, deadline)
        except BaseException:
            self.abandon(ident, answer)
            raise
        self._pending.pop(ident, None)
        if answer.news:
            self.tell(answer)  # what came together with the answer
        message = answer.message
        if message is None or message.kind != m.RESULT:
            raise self.wrong(answer)
        answer.message = None
        return self.value(message)


def _info(found: Any) -> WorkerInfo:
    try:
        return WorkerInfo(
            pid=int(found["pid"]), python=str(found["python"]), versions=dict(found["versions"]),
            capabilities=tuple(found["capabilities"]), protocol=int(found["protocol"]), times=dict(found["times"]),
        )  # fmt: skip
    except (TypeError, KeyError, ValueError) as error:
        raise ProtocolError(f"a worker's hello cannot be read: {error!r}") from None
