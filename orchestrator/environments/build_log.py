"""The log of an environment's making: `logs/build-FAMILY-….log`, its lines labelled `build`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import ProvisioningError, WorkerStartError
from orchestrator.events import Event, Listener
from orchestrator.logs import new_log, note
from orchestrator.settings import Settings

__all__ = ["logged"]


@contextmanager
def logged(settings: Settings, family: str, listener: Listener) -> Iterator[Listener]:
    """A listener that writes down what it passes on; the error that ends the block is written down with its words."""
    try:
        log = new_log(settings.logs, f"build-{family}")
    except WorkerStartError:  # the disk is full: the build will say so itself
        yield listener
        return
    last = ""

    def tell(event: Event) -> None:
        nonlocal last
        if event.message and event.message != last:
            last = event.message
            note(log, "build", event.message)
        listener(event)

    try:
        yield tell
    except ProvisioningError as error:
        note(log, "build", f"{error.message}\n{error.log}".rstrip())
        raise
    except BaseException as error:
        note(log, "build", f"ended by {type(error).__name__}: {error}".rstrip(": "))
        raise
    note(log, "build", "finished")
