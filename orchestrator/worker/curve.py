"""CURVE for sockets on TCP: fresh keys for each worker, in a file that only its user can read, and a gate for one key.

Both sides prove who they are: the worker knows the coordinator's public key, and the gate lets in nobody but the owner
of the worker's key, and after the greeting nobody at all. What passes is encrypted. (CURVE: rfc.zeromq.org/spec/26;
what asks the gate: rfc.zeromq.org/spec/27.)
"""

from __future__ import annotations

import hmac
import os
import stat
import threading
from typing import Any, List, NamedTuple, Tuple

import zmq
from zmq.utils import z85

__all__ = ["Gate", "Keys", "fresh_keys", "read_keys", "write_keys"]

HANDSHAKE = 10_000
"""Milliseconds after which a connection is cut off that has not shown its key."""
_LENGTH = 40  # characters of a key


class Keys(NamedTuple):
    """One side's own pair, and the other side's public key; Z85 text."""

    public: bytes
    secret: bytes
    peer: bytes

    def __repr__(self) -> str:
        return f"Keys({self.public.decode()})"

    def apply(self, socket: Any, *, server: bool) -> None:
        """Makes a socket speak CURVE only."""
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret
        socket.handshake_ivl = HANDSHAKE
        if server:
            socket.curve_server = True
            socket.zap_domain = b"worker"
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        else:
            socket.curve_serverkey = self.peer


def fresh_keys() -> Tuple[Keys, Keys]:
    """Keys of a coordinator's end and of its worker's, used for one link."""
    (public, secret), (peer, its_secret) = zmq.curve_keypair(), zmq.curve_keypair()
    return Keys(public, secret, peer), Keys(peer, its_secret, public)


def write_keys(path: str, keys: Keys) -> None:
    """Writes a new file of mode 0600.

    Raises:
        FileExistsError: something is there already, be it a link.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(b"\n".join(keys))


def read_keys(path: str) -> Keys:
    """Reads what `write_keys` wrote.

    Raises:
        PermissionError: it is not an ordinary file of this user with mode 0600 or stricter.
        ValueError: it holds no keys.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PermissionError(f"the keys in {path} cannot be read: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{path} must be a file (no link) of user {os.getuid()} with mode 0600")
        words = file.read(4 * _LENGTH).split(b"\n")
    if [len(word) for word in words] != [_LENGTH] * 3:
        raise ValueError(f"{path} holds no keys")
    return Keys(*words)


class Gate:
    """Answers libzmq's question who may come in, for all sockets of one context. Ends with the context."""

    def __init__(self, context: Any, known: bytes) -> None:
        self._known = z85.decode(known)
        self._shut = False
        self._socket = context.socket(zmq.REP)
        try:
            self._socket.linger = 0
            self._socket.bind("inproc://zeromq.zap.01")
            threading.Thread(target=self._run, name="orchestrator-gate", daemon=True).start()
        except BaseException:
            self._socket.close(0)
            raise

    def shut(self) -> None:
        """Whoever is in stays; nobody else comes in, with the right key neither."""
        self._shut = True

    def _run(self) -> None:
        try:
            while True:
                question = self._socket.recv_multipart()
                self._socket.send_multipart(self._answer(question))
        except zmq.ZMQError:  # the context ends
            self._socket.close(0)

    def _answer(self, question: List[bytes]) -> List[bytes]:
        version, ident, _, _, _, mechanism, *credentials = question
        known = (
            mechanism == b"CURVE"
            and len(credentials) == 1
            and hmac.compare_digest(credentials[0], self._known)
        )
        code, text = (b"200", b"OK") if known and not self._shut else (b"400", b"not for you")
        return [version, ident, code, text, b"", b""]
