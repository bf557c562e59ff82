"""The socket under a channel. Another kind (a SEQPACKET socket) has the same methods."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Any, List, Optional

import zmq

from orchestrator.worker.limits import MAX_FRAME

if TYPE_CHECKING:
    from orchestrator.worker.curve import Gate, Keys

__all__ = ["ZmqTransport", "check_address"]

DEPTH = 20_000
"""Messages that zmq holds for one direction. The protocol keeps far below: one answer per call, credits for streams."""
_LARGE = 1 << 20
_PATIENCE = 1.0  # seconds
_poll = zmq.zmq_poll

_context: Any = None
_context_pid = 0


def _shared_context() -> Any:
    global _context, _context_pid
    if _context is None or _context_pid != os.getpid():
        _context, _context_pid = zmq.Context(), os.getpid()
    return _context


class ZmqTransport:
    """One end of a DEALER pair. One thread at a time sends, receives and polls; any thread wakes.

    Over ipc the socket's folder keeps others out, over TCP CURVE does. `listener` is the descriptor of a TCP socket that
    listens already; it is closed with this.
    """

    def __init__(
        self, address: str, *, bind: bool, keys: Optional[Keys] = None, listener: Optional[int] = None
    ) -> None:
        check_address(address, keys)
        self._waker, self._alarm = _alarm()
        self._gated = zmq.Context() if bind and keys is not None else None
        socket = self._socket = (self._gated or _shared_context()).socket(zmq.DEALER)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = DEPTH
        socket.maxmsgsize = MAX_FRAME
        socket.reconnect_ivl = 20
        self._gate: Optional[Gate] = None
        self._ends = None
        try:
            if keys is not None:
                keys.apply(socket, server=bind)
                if self._gated is not None:
                    from orchestrator.worker.curve import Gate

                    self._gate = Gate(self._gated, keys.peer)
            if listener is not None:
                socket.setsockopt(zmq.USE_FD, listener)
            (socket.bind if bind else socket.connect)(address)
        except BaseException:
            self.close()
            raise
        if bind and keys is None:  # over TCP anybody could fill it
            self._ends = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._read = [(socket, zmq.POLLIN), (self._waker, zmq.POLLIN)]
        self._both = [(socket, zmq.POLLIN | zmq.POLLOUT), (self._waker, zmq.POLLIN)]

    def send(self, frames: List[Any]) -> bool:
        """Sends, or says False if the other side cannot take more now."""
        socket = self._socket
        try:
            if len(frames) == 1:
                socket.send(frames[0], zmq.NOBLOCK)
            else:
                socket.send(frames[0], zmq.NOBLOCK | zmq.SNDMORE)
                socket.send(frames[1], 0, copy=len(frames[1]) < _LARGE)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Optional[List[Any]]:
        """The frames of one message as buffers, or None if there is none."""
        try:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        frames = [frame.buffer]
        while frame.more:
            frame = self._socket.recv(copy=False)
            if len(frames) < 3:  # more than two are refused anyway
                frames.append(frame.buffer)
        return frames

    def poll(self, timeout: float, *, writable: bool = False) -> bool:
        """Waits at most `timeout` seconds; whether a message is there."""
        found = False
        for what, _ in _poll(self._both if writable else self._read, max(int(timeout * 1000), 1)):
            if what is self._socket:
                found = True
            else:
                self._hush()
        return found

    def await_end(self, timeout: float) -> None:
        """Waits until the other side's connection has ended and all that came over it can be received."""
        if self._ends is not None:
            self._ends.poll(max(int(timeout * 1000), 1))

    def wake(self) -> None:
        """Ends a poll. Takes no lock; any thread, a garbage collection too."""
        try:
            os.write(self._alarm, b"\1\0\0\0\0\0\0\0")
        except (BlockingIOError, OSError):
            pass  # it is awake already, or closed

    def close(self, linger: float = 0) -> None:
        """Closes; waits `linger` seconds at most for what was not sent, and drops the rest."""
        if self._ends is not None:
            self._socket.disable_monitor()
            self._ends.close(0)
        self._socket.close(int(linger * 1000))
        if self._gated is not None:
            # A stranger's connection in the middle of its handshake can hold up the end of its context for ever.
            ending = threading.Thread(target=self._gated.term, name="end of a context", daemon=True)
            try:
                ending.start()
                ending.join(_PATIENCE)
            except RuntimeError:
                pass  # the interpreter is ending, and the context with it

    def seal(self) -> None:
        """The other side is there: nobody else can come."""
        if self._gate is not None:
            self._gate.shut()

    def finish(self) -> None:
        """Waits until zmq has sent what it may still send (see `close`); the process ends after this."""
        _shared_context().term()

    def __del__(self) -> None:
        # Not in close: another thread may be about to wake, and the number could belong to another file by then.
        for fd in {getattr(self, "_alarm", -1), getattr(self, "_waker", -1)} - {-1}:
            os.close(fd)

    def _hush(self) -> None:
        try:
            os.read(self._waker, 4096)
        except BlockingIOError:
            pass


def _alarm() -> Any:
    """A descriptor to wait on and one to write to; the same where the system has eventfd."""
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return fd, fd
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def check_address(address: str, keys: Optional[Keys]) -> None:
    """Refuses a socket that others could reach.

    Raises:
        PermissionError: its folder is a link, not ours, or open to others; or it is on the network without keys.
    """
    if not address.startswith("ipc://"):
        if keys is None:
            raise PermissionError(f"{address} cannot be used without keys")
        return
    folder = os.path.dirname(address[len("ipc://") :])
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} must be a folder (no link) of user {os.getuid()} with mode 0700")
