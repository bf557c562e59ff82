"""multiprocessing.connection: an in-memory pipe with pickle, the same environment on both ends."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from _driver import serve


def echo_for_ever(connection: Connection) -> None:
    while True:
        connection.send(connection.recv())


class Pipe:
    def __init__(self) -> None:
        self.connection, far = multiprocessing.Pipe()
        self.child = multiprocessing.get_context("fork").Process(
            target=echo_for_ever, args=(far,), daemon=True
        )
        self.child.start()

    def echo(self, value: Any) -> Any:
        self.connection.send(value)
        return self.connection.recv()

    def close(self) -> None:
        self.child.kill()


serve(Pipe)
