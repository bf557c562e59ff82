"""What runs on this machine, for other processes to see: each coordinator publishes a file, `ps` reads them all.

A file belongs to a process by pid and start time; files of processes that are gone are removed by whoever
reads them. A stop request is a file too: the coordinator's clock finds it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import psutil

from orchestrator.settings import Settings
from orchestrator.worker.masking import Mask

__all__ = ["Presence", "RunningCoordinator", "running"]


@dataclass(frozen=True)
class RunningCoordinator:
    """One live coordinator: its process, its command line and what it last published."""

    pid: int
    command: str
    deployments: tuple[Mapping[str, Any], ...]
    requests: Path

    def request_stop(self, name: str) -> None:
        """Asks the coordinator to unload a deployment; it does so within a second."""
        self.requests.mkdir(mode=0o700, exist_ok=True)
        (self.requests / quote(name, safe="")).touch(mode=0o600)


class Presence:
    """The published side: one file in `<home>/coordinators`, gone when the coordinator closes."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.home / "coordinators"
        self.path = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self.requests = self.path.with_suffix(".stop")
        self.started = psutil.Process().create_time()
        # Reentrant: an Orchestrator that is garbage is closed wherever it is collected, also in the middle of `publish`.
        self._lock = threading.RLock()
        self._withdrawn = threading.Event()

    def publish(self, deployments: list[dict[str, Any]]) -> None:
        """Replaces the published file, atomically. Does nothing after `withdraw`."""
        content = {"pid": os.getpid(), "started": self.started, "deployments": deployments}
        draft = self.path.with_suffix(".tmp")
        with self._lock:
            if self._withdrawn.is_set():
                return
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                draft.write_text(json.dumps(content), encoding="utf-8")
                draft.replace(self.path)
            except FileNotFoundError:
                if not self._withdrawn.is_set():
                    raise
            finally:
                if self._withdrawn.is_set():
                    _remove(self.path)

    def stop_requests(self) -> list[str]:
        """The names of the deployments that somebody asked to stop; each is told once."""
        try:
            asked = list(self.requests.iterdir())
        except FileNotFoundError:
            return []
        for entry in asked:
            entry.unlink(missing_ok=True)
        return [unquote(entry.name) for entry in asked]

    def withdraw(self) -> None:
        """Removes the file and its requests, for good."""
        with self._lock:
            self._withdrawn.set()
            _remove(self.path)


def running(settings: Settings) -> list[RunningCoordinator]:
    """Every live coordinator of this user on this machine that shares `settings.home`."""
    found = []
    mask = Mask(os.environ)
    for path in sorted((settings.home / "coordinators").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            process = psutil.Process(content["pid"])
            alive = abs(process.create_time() - content["started"]) < 1.0
            deployments = tuple(content["deployments"])
            command = mask.text(" ".join(process.cmdline()[:8]))
        except (psutil.Error, ValueError, KeyError, TypeError, FileNotFoundError):
            alive = False
        if not alive:
            _remove(path)
            continue
        found.append(RunningCoordinator(content["pid"], command, deployments, path.with_suffix(".stop")))
    return found


def _remove(path: Path) -> None:
    """Removes a coordinator's file and its requests; others may be doing the same."""
    shutil.rmtree(path.with_suffix(".stop"), ignore_errors=True)
    path.with_suffix(".tmp").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
