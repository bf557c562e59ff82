"""The keeper: the small process between coordinator and worker that lets nothing survive.

It is forked before anything is imported and shares no lock and no thread with the worker, so it works whatever the
worker does: idle, busy, stopped, or deadlocked with the interpreter's lock in its hands.

- It waits on the *lifeline*, a socket whose other end only the coordinator has. When that closes (the coordinator
  ended, however) it kills the worker's process group.
- It is the worker's parent and adopts its orphans: when the worker ends it kills what the worker started, also what
  went into a session of its own, and leaves no zombie.
- It ends as the worker ended, with its exit code or by its signal.
- It writes what the worker's processes print to the log file (see `logfile`).

A worker that is confined runs behind bubblewrap (see `confinement`); its keeper stays outside.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any, List, NoReturn, Optional

from orchestrator.worker.logfile import LogFile

__all__ = ["END_OF_KEEPER", "fork_worker"]

END_OF_KEEPER = b"end\n"
"""What it says last through the lifeline; who hears nothing knows that it was killed."""
_PATIENCE = 2.0  # seconds that killed processes have to go
_CHILD_SUBREAPER, _NAME = 36, 15


def fork_worker(*, lifeline: int, segments: int, log: str, folder: str, confine: str = "") -> int:
    """Forks. Returns in the worker, with the keeper's process id; in the keeper it never returns.

    `confine` is a sandbox to put the worker into: then this returns nowhere, and the worker begins anew inside.
    """
    keeper = os.getpid()
    reader, writer = os.pipe()
    door: Any = None
    if confine:
        from orchestrator.worker.confinement import Door, enter

        door = Door()
    worker = os.fork()
    if worker == 0:
        os.setsid()
        for target in (1, 2):
            os.dup2(writer, target)
        for fd in (reader, writer, lifeline):
            os.close(fd)
        if door is not None:
            enter(confine, door.theirs)
        if segments >= 0:
            os.set_inheritable(segments, False)
    else:
        os.close(writer)
        if segments >= 0:
            os.close(segments)
        if door is not None:
            door.theirs.close()
        _keep(worker, lifeline, reader, log, folder, door)
    return keeper


def _keep(worker: int, lifeline: int, output: int, log: str, folder: str, door: Any) -> NoReturn:
    status: Optional[int] = None
    try:
        keeper = _Keeper(worker, lifeline, output, log, door)
        keeper.begin()
        status = keeper.watch()
        keeper.finish()
    finally:
        if status is None:  # the coordinator was gone before this began, or this is a fault of ours
            _kill_group(worker)
        _remove(folder)
        if status is not None:
            _say(lifeline, END_OF_KEEPER)
        _end_like(status)


class _Keeper:
    def __init__(self, child: int, lifeline: int, output: int, log: str, door: Any) -> None:
        self.child = child  # the worker, or bubblewrap with the worker behind it
        self.worker = 0
        self.door = door
        self.lifeline = lifeline
        self.output = output
        self.log = LogFile(log, os.environ)

    def begin(self) -> None:
        if self.door is None:
            self._born(self.child)
        self.bell, ring = os.pipe()
        for fd in (self.output, self.bell, ring):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: _kill(self.worker or self.child, signal.SIGTERM))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _adopt_orphans()

    def watch(self) -> int:
        """Returns the worker's wait status once it has ended."""
        poll = select.poll()
        for fd in (self.lifeline, self.output, self.bell):
            poll.register(fd, select.POLLIN)
        door = -1 if self.door is None else self.door.fileno()
        if self.door is not None:
            poll.register(door, select.POLLIN)
        while True:
            status = self._reap()
            if status is not None:
                return status
            for fd, _ in poll.poll(self.log.patience) or self.log.flush():
                if fd == self.output and not self.log.pump(self.output):
                    poll.unregister(fd)  # the worker closed both
                elif fd == self.bell:
                    _drain(self.bell)
                elif fd == door and self.door is not None:
                    poll.unregister(fd)  # what comes second is the worker's end, and is read after it
                    self._born(self.door.worker())
                elif fd == self.lifeline and _closed(self.lifeline):
                    poll.unregister(fd)
                    self._kill_all()

    def finish(self) -> None:
        """Kills what the worker left behind, and writes down what it said last."""
        self._kill_all()
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            for child in _children():
                _kill(child, signal.SIGKILL)
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    self.log.pump(self.output)
                    time.sleep(0.002)
            except ChildProcessError:
                break
        while self.log.pump(self.output) and time.monotonic() < end:
            if not select.select([self.output], [], [], 0)[0]:
                break
        self.log.close()

    def _reap(self) -> Optional[int]:
        """Buries the dead, orphans included; the worker's status if it is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid == self.child:
                return status if self.door is None else self.door.status(status)
            if pid == 0:
                return None

    def _born(self, worker: int) -> None:
        if worker:
            self.worker = worker
            os.write(self.lifeline, b"%d\n" % worker)

    def _kill_all(self) -> None:
        for leader in {self.worker, self.child} - {0}:
            _kill_group(leader)


def _adopt_orphans() -> None:
    """Makes this process the parent of every orphan below it (Linux)."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_NAME, b"orc-keeper", 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return  # the process group is still killed


def _children() -> List[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except (OSError, ValueError):
        return []


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except OSError:
        _kill(leader, signal.SIGKILL)  # it has not made its group yet


def _say(fd: int, word: bytes) -> None:
    try:
        os.write(fd, word)
    except OSError:
        pass  # nobody is there any more


def _closed(fd: int) -> bool:
    try:
        return not os.read(fd, 4096)
    except OSError:
        return True


def _drain(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except OSError:
        pass


def _remove(folder: str) -> None:
    """The folder of the socket, in case the coordinator had no time for it (if it had, both remove it at once)."""
    try:
        for name in os.listdir(folder):
            try:
                os.unlink(os.path.join(folder, name))
            except FileNotFoundError:
                continue
        os.rmdir(folder)
    except OSError:
        pass


def _end_like(status: Any) -> NoReturn:
    if status is None:
        os._exit(70)
    if os.WIFSIGNALED(status):
        import resource

        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        time.sleep(1)
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(status))
