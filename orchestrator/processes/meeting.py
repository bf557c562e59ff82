"""Where a worker and its link meet: a socket in a private folder, or a port of this machine with keys for both."""

from __future__ import annotations

import os
import socket
from typing import Literal

from orchestrator.errors import WorkerStartError
from orchestrator.processes.folder import make_folder, remove_folder
from orchestrator.worker import segments
from orchestrator.worker.curve import Keys, fresh_keys, write_keys

__all__ = ["Meeting", "Transport"]

Transport = Literal["ipc", "tcp"]


class Meeting:
    """What both sides need to meet. Over ipc they also share memory; over TCP everything passes through the socket.

    Attributes:
        folder: private; it goes when the worker has said hello.
        address: for both ends of the socket.
        segments: our end for shared memory, or None.
        keys: our end's keys, or None.
        listener: the TCP socket that the worker connects to, until the link takes it over, or None.
    """

    def __init__(self, transport: Transport) -> None:
        """Makes it all, or nothing.

        Raises:
            WorkerStartError: there is no place for the folder, no port, or no descriptor.
        """
        self.folder = make_folder()
        self.segments: socket.socket | None = None
        self._theirs: socket.socket | None = None
        self.keys: Keys | None = None
        self.listener: socket.socket | None = None
        self.address = f"ipc://{self.folder}/s"
        try:
            if transport == "ipc":
                self.segments, self._theirs = segments.pair()
            else:
                self._listen()
        except OSError as error:
            self.close()
            where = self.folder if transport == "ipc" else "127.0.0.1"
            raise WorkerStartError(f"a worker cannot be met at {where}: {error.strerror}") from None

    def _listen(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4)
        self.address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.keys, its_keys = fresh_keys()
        write_keys(self._key_file, its_keys)

    @property
    def inherited(self) -> tuple[int, ...]:
        """Descriptors that the worker gets."""
        return () if self._theirs is None else (self._theirs.fileno(),)

    def arguments(self) -> list[str]:
        """What the worker is told."""
        told = [f"address={self.address}", f"folder={self.folder}", f"segments={(*self.inherited, -1)[0]}"]
        return told if self.keys is None else [*told, f"keys={self._key_file}"]

    def handed_over(self) -> None:
        """The worker has what it inherits."""
        if self._theirs is not None:
            self._theirs.close()

    def close(self) -> None:
        """Closes what is still open here; the folder goes too."""
        for end in (self.segments, self._theirs, self.listener):
            if end is not None:
                end.close()
        remove_folder(self.folder)

    @property
    def _key_file(self) -> str:
        return os.fspath(self.folder / "keys")
