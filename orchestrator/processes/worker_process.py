"""One worker process, from its start to its end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from orchestrator.errors import WorkerDied, WorkerStartError
from orchestrator.logs import last_lines, new_log, note
from orchestrator.processes.deaths import describe, oom_kills
from orchestrator.processes.meeting import Meeting, Transport
from orchestrator.processes.sandbox import Sandbox
from orchestrator.processes.strays import MARK, kill_marked
from orchestrator.processes.variables import HasDevices, worker_variables
from orchestrator.processes.watch import forget, watch
from orchestrator.worker import segments
from orchestrator.worker.interrupts import listening
from orchestrator.worker.keeper import END_OF_KEEPER

if TYPE_CHECKING:
    from orchestrator.environments import Environment
    from orchestrator.settings import Settings

__all__ = ["WorkerProcess"]

_MAIN = Path(segments.__file__).with_name("__main__.py")
_BIRTH = 30.0  # seconds that an interpreter has to come up; it takes some 20 ms
_LAST_WORDS = 2.0  # seconds that it has to end when nobody waits for it any more


class WorkerProcess:
    """A worker and its keeper (see `orchestrator/worker/keeper.py`).

    Attributes:
        pid: the worker's process id, and the id of its process group.
        log_path: what it prints goes there.
        meeting: where its link meets it.
    """

    def __init__(
        self, environment: Environment, name: str, log_path: Path, transport: Transport = "ipc"
    ) -> None:
        self.environment = environment
        self.name = name
        self.log_path = log_path
        self.pid = 0
        self.meeting = Meeting(transport)
        try:
            self._lifeline, self._their_lifeline = socket.socketpair()
        except OSError as error:
            self.meeting.close()
            raise WorkerStartError(f"worker {name} cannot be started: {error.strerror}") from None
        self._said = b""  # what came through the lifeline after the worker's process id
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._ended = threading.Event()
        self._oom_before = oom_kills()
        self._out_of_memory = False
        self._signalled: set[int] = set()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self.forked = False

    @classmethod
    def spawn(
        cls,
        environment: Environment,
        *,
        worker_file: Path,
        worker_class: str,
        name: str,
        settings: Settings,
        variables: Mapping[str, str],
        placement: HasDevices | None = None,
        sandbox: bool = False,
        readable: Sequence[Path] = (),
    ) -> WorkerProcess:
        """Starts a worker in `environment`; returns when its process is there, before it says hello.

        Args:
            placement: where given, decides `CUDA_VISIBLE_DEVICES` and the threads.
            variables: win over everything.
            sandbox: whether it is confined (see `Sandbox`); `readable` are the files that it is then given to work with.

        Raises:
            SandboxUnavailable: this machine cannot confine it.
            WorkerStartError: the interpreter cannot be started.
        """
        transport: Transport = "ipc" if sandbox else settings.transport  # a sandbox has no network
        process = cls(environment, name, new_log(settings.logs, name), transport)
        try:
            inherited, cache, arguments = dict(os.environ), environment.modules_cache, []
            if sandbox:
                walls = process._walls(settings, placement, (worker_file.parent, *readable))
                inherited, cache = walls.inherited(inherited), walls.cache / "modules"
                arguments.append(f"confine={walls.command()}")
            process._start(
                [f"file={worker_file}", f"class={worker_class}", *arguments],
                worker_variables(inherited, variables, modules_cache=cache, placement=placement),
            )
        except BaseException:
            process._abort()
            raise
        _living.add(process)
        return process

    @property
    def returncode(self) -> int | None:
        """As in `subprocess`: None while it runs, negative for a signal."""
        return None if self._popen is None or not self._ended.is_set() else self._popen.returncode

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return not self._ended.is_set()

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped it (SIGSTOP), and nothing has made it go on."""
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def memory(self) -> int | None:
        """Resident bytes of the worker and its children, or None when it is not running."""
        if not self.alive:
            return None
        try:
            root = psutil.Process(self.pid)
            return int(sum(part.memory_info().rss for part in (root, *root.children(recursive=True))))
        except psutil.Error:
            return None

    def note(self, text: str) -> None:
        """Writes a line of ours into its log."""
        note(self.log_path, "runtime", text)

    def tail(self, n: int = 20) -> list[str]:
        """The last lines it printed."""
        return last_lines(self.log_path, n)

    def describe_exit(self) -> str:
        """How it ended, as the end of a sentence."""
        return self._ending() if self._ended.is_set() else describe(None)

    def _ending(self) -> str:
        code = None if self._popen is None else self._popen.returncode
        by_us = code is not None and -code in self._signalled
        return describe(code, by_us=by_us, out_of_memory=self._out_of_memory and not by_us)

    def death(self, doing: str = "") -> WorkerDied:
        """The error for whoever still wanted something of it."""
        return WorkerDied(
            f"worker {self.name} (pid {self.pid}) {self.describe_exit()}{doing}",
            hint="memory ran out: use a smaller batch, dtype or model, or fewer workers"
            if self._out_of_memory
            else None,
            last_lines=self.tail(20),
            returncode=self.returncode,
            environment_id=self.environment.id,
        )

    def on_end(self, callback: Callable[[], None]) -> None:
        """Calls `callback`, once, as soon as the worker has ended (at once if it has). It must be quick."""
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def interrupt(self) -> None:
        """SIGINT: the running method gets a KeyboardInterrupt; an idle worker ignores it."""
        self._signal(signal.SIGINT, group=False)

    def terminate(self) -> None:
        """SIGTERM to its process group."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its process group."""
        self._signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for its end; the return code, or None at the timeout."""
        with listening():
            self._ended.wait(timeout)
        return self.returncode

    def stop(self, grace: float) -> int:
        """Ends it: SIGTERM, after `grace` seconds SIGKILL. Returns when it and all it started are gone."""
        if self.forked:
            return 0
        if not self._ended.is_set() and grace > 0:
            self.terminate()
            self.wait(grace)
        if not self._ended.is_set():
            self.kill()
            self._ended.wait(5.0)
        if not self._ended.is_set() and self._popen is not None:
            self._popen.kill()  # the keeper itself hangs
            self._ended.wait(5.0)
        return self.returncode or 0

    def _start(self, arguments: list[str], variables: dict[str, str]) -> None:
        theirs = (self._their_lifeline.fileno(), *self.meeting.inherited)
        command = [
            str(self.environment.python), "-I", "-u", str(_MAIN), f"name={self.name}", *arguments,
            *self.meeting.arguments(), f"log={self.log_path}", f"lifeline={theirs[0]}", f"spawned={time.monotonic()}",
        ]  # fmt: skip
        with listening():
            pass  # while there is no process yet
        try:
            with self.log_path.open("ab") as log:
                self._popen = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**variables, MARK: self._mark},
                    pass_fds=theirs, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise WorkerStartError(
                f"worker {self.name}: {self.environment.python} cannot be started: {error.strerror}",
                hint="repair the environment",
            ) from None
        self._their_lifeline.close()
        self.meeting.handed_over()
        self._await_birth()
        watch(self._lifeline.fileno(), self._bury)

    def _walls(self, settings: Settings, placement: HasDevices | None, readable: Sequence[Path]) -> Sandbox:
        interpreter = self.environment.python.resolve().parent.parent
        ours = (self.environment.path, interpreter, _MAIN.parent, self.meeting.folder)
        return Sandbox(
            cache=settings.home / "sandbox" / self.environment.id,
            readable=(*ours, *readable),
            accelerators=placement is not None and any(device != "cpu" for device in placement.devices),
        )

    def _await_birth(self) -> None:
        """The keeper tells the worker's process id."""
        self._lifeline.settimeout(_BIRTH)
        patience = _BIRTH
        try:
            with listening():
                word = self._lifeline.recv(64)
        except TimeoutError:
            word, patience = b"", 0.0
        pid, said, self._said = word.partition(b"\n")
        if said and pid.isdigit():  # else it is the keeper's end already: the sandbox could not be made
            self.pid = int(pid)
            self._lifeline.setblocking(False)
            return
        assert self._popen is not None
        try:
            code = self._popen.wait(patience)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
        raise WorkerStartError(
            f"worker {self.name}: the interpreter {self.environment.python} {describe(code)} before it began",
            hint="repair the environment",
            last_lines=self.tail(20),
        )

    def _bury(self) -> None:
        """Runs in the watcher's thread: the keeper is gone, and so is everything under it."""
        assert self._popen is not None
        ended = self._popen.wait()
        with contextlib.suppress(OSError):
            self._said += self._lifeline.recv(64)
        if self._said != END_OF_KEEPER:  # it was killed itself, and has seen to nothing
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            kill_marked(self._mark)
        if ended == -signal.SIGKILL:
            self._out_of_memory = oom_kills() > self._oom_before
        self.note(f"worker {self.name} (pid {self.pid}) {self._ending()}")
        with self._lock:
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        self._discard()
        for callback in callbacks:
            try:
                callback()
            except Exception:  # one that fails must not keep the news from the others
                sys.excepthook(*sys.exc_info())

    def _abort(self) -> None:
        """Ends what is not watched yet: without a lifeline it ends by itself."""
        self._discard()
        if self._popen is not None:
            try:
                self._popen.wait(_LAST_WORDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()

    def _discard(self) -> None:
        forget(self._lifeline.fileno())
        for end in (self._lifeline, self._their_lifeline):
            end.close()
        if self._popen is not None:
            self._popen.poll()
        self.meeting.close()

    def _signal(self, number: int, *, group: bool = True) -> None:
        if self._ended.is_set() or self.forked or not self.pid:
            return
        if group:
            self._signalled.add(number)
        with contextlib.suppress(OSError):
            try:
                (os.killpg if group else os.kill)(self.pid, number)
            except ProcessLookupError:
                os.kill(self.pid, number)  # its group is not made yet

    def disown(self) -> None:
        """Runs in a forked child: the worker is the parent's, and its lifeline must hang on the parent alone."""
        self.forked = True
        for end in (self._lifeline, self.meeting.segments, self.meeting.listener):
            with contextlib.suppress(OSError):
                if end is not None:
                    os.close(end.detach())


_living: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


def _after_fork() -> None:
    for process in list(_living):
        process.disown()


os.register_at_fork(after_in_child=_after_fork)
