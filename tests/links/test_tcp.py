"""Workers on TCP: the same link, encrypted, and closed to whoever has not the worker's own key."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
import zmq.utils.monitor
from test_hostile_worker import HELLO, FakeWorker

from orchestrator.errors import ConfigError, WorkerDied, WorkerStartError
from orchestrator.links import WorkerLink
from orchestrator.processes import meeting as meetings
from orchestrator.processes.meeting import Meeting
from orchestrator.settings import Settings, load_settings
from orchestrator.worker import curve
from orchestrator.worker import messages as m
from orchestrator.worker.curve import fresh_keys, read_keys, write_keys
from orchestrator.worker.transport import ZmqTransport

WAIT = 60
TURNED_AWAY = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)


@pytest.fixture
def fake() -> Iterator[FakeWorker]:
    made = FakeWorker("tcp")
    yield made
    made.close()


class Intruder:
    """A socket with the keys it is given, or none."""

    def __init__(self, address: str, keys: curve.Keys | None) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        if keys is not None:
            keys.apply(self.socket, server=False)
        self.events = self.socket.get_monitor_socket(TURNED_AWAY | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(address)

    def send(self, frames: list[bytes]) -> None:
        """Sends, unless it has been turned away already: its messages have nowhere to go then."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart(frames, zmq.NOBLOCK)

    def turned_away(self) -> bool:
        """Waits for the end of the handshake."""
        assert self.events.poll(WAIT * 1000), "neither in nor out"
        return zmq.utils.monitor.recv_monitor_message(self.events)["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED

    def close(self) -> None:
        self.socket.disable_monitor()
        self.events.close(0)
        self.socket.close(0)
        # Its context is not waited for: a handshake that nobody finishes can hold up its end.
        threading.Thread(target=self.context.term, daemon=True).start()


def keys_of(kind: str, fake: FakeWorker) -> curve.Keys | None:
    """What an intruder could come with. The coordinator's public key is a secret too, but let it have that."""
    ours = fake.meeting.keys
    assert ours is not None
    stranger, _ = fresh_keys()
    if kind == "no keys":
        return None
    if kind == "another coordinator's":
        return stranger
    if kind == "keys of its own":
        return curve.Keys(stranger.public, stranger.secret, ours.public)
    return fake.keys


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        *(
            (kind, before)
            for kind in ("no keys", "another coordinator's", "keys of its own")
            for before in (True, False)
        ),
        ("the worker's", False),  # who has the worker's key before it comes is the worker
    ],
)
def test_nobody_else_gets_anything_through(fake, kind, before):
    if not before:
        fake.greet()
    intruder = Intruder(fake.meeting.address, keys_of(kind, fake))
    try:
        intruder.send(fake.post.compose(m.HELLO, 0, {**HELLO, "pid": 666}))
        intruder.send(fake.post.compose(m.RESULT, 1, "forged"))
        assert intruder.turned_away()
        if before:
            assert fake.link._greeting.message is None
            fake.greet()
        fake.answers[m.CALL] = lambda message: fake.say(m.RESULT, message.ident, message.value()[1])
        for number in range(20):
            assert fake.link.call("x", [number], timeout=WAIT) == [number]
        assert intruder.socket.poll(0) == 0  # and nothing came to it
        assert len(fake.received) == 21  # ours and the greeting
    finally:
        intruder.close()


def test_connections_that_say_nothing_disturb_nobody(fake):
    port = int(fake.meeting.address.rpartition(":")[2])
    crowd = [socket.create_connection(("127.0.0.1", port), WAIT) for _ in range(20)]
    try:
        for one in crowd[:10]:
            one.sendall(os.urandom(200))
        fake.greet()
        fake.answers[m.CALL] = lambda message: fake.say(m.RESULT, message.ident, 5)
        assert fake.link.call("x", timeout=WAIT) == 5
    finally:
        for one in crowd:
            one.close()


class Wiretap:
    """Passes bytes on to `port`, and keeps them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heard = bytearray()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        self.ends: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        try:
            one, _ = self.server.accept()
        except OSError:
            return
        other = socket.create_connection(("127.0.0.1", self.port), WAIT)
        other.settimeout(None)
        self.ends += [one, other]
        for source, target in ((one, other), (other, one)):
            thread = threading.Thread(target=self._pass, args=(source, target))
            self.threads.append(thread)
            thread.start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.heard += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.threads[0].join(WAIT)
        for end in self.ends:
            with contextlib.suppress(OSError):  # the other side was first
                end.shutdown(socket.SHUT_RDWR)  # which ends a recv; closing alone does not
        for thread in self.threads[1:]:
            thread.join(WAIT)
        for end in self.ends:
            end.close()


def test_what_passes_cannot_be_read(spawn, monkeypatch):
    taps: list[Wiretap] = []

    def through_a_tap(self):
        taps.append(Wiretap(int(self.address.rpartition(":")[2])))
        return [word.replace(self.address, taps[0].address) for word in told(self)]

    told = Meeting.arguments
    monkeypatch.setattr(Meeting, "arguments", through_a_tap)
    process = spawn(transport="tcp")
    link = WorkerLink(process)
    try:
        link.hello(WAIT)
        link.load(None, {}, {}, timeout=WAIT)
        sentence, array = "the quick brown fox jumps over the lazy dog", np.full(300_000, 0x41, np.uint8)
        assert link.call("echo", [sentence], timeout=WAIT) == sentence
        assert np.array_equal(link.call("echo", [array], timeout=WAIT), array)
    finally:
        link.close(0)
        taps[0].close()
    heard = bytes(taps[0].heard)
    assert len(heard) > 2 * array.size  # both ways
    assert b"CURVE" in heard
    for plain in (sentence.encode(), b"A" * 40):  # a short word comes up in so many random bytes now and then
        assert plain not in heard


@pytest.mark.slow
def test_a_worker_on_tcp_is_like_any_other(start, tmp_path):
    worker = start(transport="tcp")
    link = worker.link
    assert worker.process.meeting.address.startswith("tcp://127.0.0.1:")
    assert not worker.process.meeting.folder.exists()  # with the keys in it
    big = np.random.default_rng(1).integers(0, 255, 5_000_000, np.uint8)
    assert np.array_equal(link.call("echo", [big], timeout=WAIT), big)
    assert link._post.pool.bytes == 0  # in frames: a segment would not be encrypted
    assert [int(a[0]) for a in link.stream("arrays", [3, 300_000], timeout=WAIT)] == [0, 1, 2]
    assert link.submit("echo", [1]).result(WAIT) == 1
    with pytest.raises(WorkerDied, match="exit code 3"):
        link.call("exit", [3], timeout=WAIT)


def test_a_sandboxed_worker_has_no_network_to_speak_over(spawn, monkeypatch):
    monkeypatch.setattr(
        meetings.Meeting, "__init__", lambda self, transport: pytest.fail(transport, pytrace=False)
    )
    monkeypatch.setattr("orchestrator.processes.sandbox.require_bubblewrap", lambda: "bwrap")
    with pytest.raises(pytest.fail.Exception, match="ipc"):
        spawn(transport="tcp", sandbox=True)


# -- keys and their files --------------------------------------------------------------------------------------------


def test_keys_are_fresh_and_their_file_is_private(tmp_path):
    ours, theirs = fresh_keys()
    assert ours.peer == theirs.public
    assert theirs.peer == ours.public
    assert len({ours.public, ours.secret, theirs.public, theirs.secret, *fresh_keys()[0][:2]}) == 6
    path = tmp_path / "keys"
    before = os.umask(0)
    try:
        write_keys(str(path), theirs)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(str(path)) == theirs
    assert theirs.secret.decode() not in repr(theirs)
    with pytest.raises(FileExistsError):
        write_keys(str(path), theirs)
    (tmp_path / "trap").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):  # prepared by somebody else
        write_keys(str(tmp_path / "trap"), theirs)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666, 0o610])
def test_keys_that_others_could_read_are_refused(tmp_path, mode):
    path = tmp_path / "keys"
    write_keys(str(path), fresh_keys()[1])
    path.chmod(mode)
    with pytest.raises(PermissionError, match="mode 0600"):
        read_keys(str(path))


def test_other_things_than_a_file_of_ours_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    write_keys(str(path), fresh_keys()[1])
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for other in ("link", "pipe", "nothing"):
        with pytest.raises(PermissionError):
            read_keys(str(tmp_path / other))
    (tmp_path / "short").write_bytes(b"x\ny\nz")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(ValueError, match="no keys"):
        read_keys(str(tmp_path / "short"))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="user 12345"):
        read_keys(str(path))


def test_a_worker_refuses_keys_that_others_could_have_read(spawn, monkeypatch):
    def carelessly(path: str, keys: curve.Keys) -> None:
        write_keys(path, keys)
        Path(path).chmod(0o644)

    monkeypatch.setattr(meetings, "write_keys", carelessly)
    link = WorkerLink(spawn(transport="tcp"))
    with pytest.raises(WorkerStartError) as caught:
        link.hello(WAIT)
    assert any("mode 0600" in line for line in caught.value.last_lines)


@pytest.mark.parametrize("bind", [True, False])
def test_tcp_without_keys_is_refused(bind):
    with pytest.raises(PermissionError, match="without keys"):
        ZmqTransport("tcp://127.0.0.1:*", bind=bind)


def test_the_setting(tmp_path):
    assert load_settings(project=tmp_path, environ={}).transport == "ipc"
    assert load_settings(project=tmp_path, environ={"ORCHESTRATOR_TRANSPORT": "TCP"}).transport == "tcp"
    with pytest.raises(ConfigError, match="'transport' in environment cannot be 'udp': expected ipc or tcp"):
        load_settings(project=tmp_path, environ={"ORCHESTRATOR_TRANSPORT": "udp"})
    assert Settings().transport == "ipc"
