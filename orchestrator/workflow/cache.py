"""Results of earlier calls, found by content: SQLite for what is small, files for arrays; verified when read.

A cache never makes a run fail: what cannot be read is computed again, what cannot be written is not kept.
"""

from __future__ import annotations

import io
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.workflow.calls import Job, Memory
from orchestrator.workflow.identity import Identifier
from orchestrator.workflow.models import Roster
from orchestrator.workflow.scope import Outcome
from orchestrator.workflow.stored import Stored, read_bytes, read_file
from orchestrator.workflow.values import Unstorable, as_argument, digest

__all__ = ["Cache", "CacheMemory"]

log = logging.getLogger(__name__)

FORMAT = 2
SMALL = 32_768  # bytes that are kept in the table itself
FRESH = 3600.0  # seconds within which a use is not noted again
TABLE = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, body BLOB, checksum TEXT NOT NULL, size INTEGER NOT NULL,
    created REAL NOT NULL, used REAL NOT NULL, seconds REAL NOT NULL, what TEXT NOT NULL
)
"""


class Cache:
    """Values by key. Safe to use from many threads and processes; `limit` in bytes, least recently used go first."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._since = 0
        self._base: sqlite3.Connection | None = None
        try:
            self._base = self._open()
        except (OSError, sqlite3.Error) as error:
            log.warning("results are not cached: %s: %s", folder, error)

    def get(self, key: str) -> tuple[Any, float] | None:
        """The value and the seconds that computing it took; None where it is not, or no longer what was written."""
        row = self._query("SELECT body, checksum, used, seconds FROM results WHERE key = ?", key)
        if not row:
            return None
        body, checksum, used, seconds = row[0]
        try:
            value = read_bytes(body, checksum) if body else read_file(self._path(key), checksum)
        except (OSError, ValueError):
            log.warning("a cached result is damaged and is computed again: %s", key)
            self.drop(key)
            return None
        if time.time() - used > FRESH:
            self._query("UPDATE results SET used = ? WHERE key = ?", time.time(), key)
        return value, seconds

    def put(self, key: str, value: Any, seconds: float, what: str) -> bool:
        """Keeps a value. False where its type cannot be kept, or there is no room."""
        try:
            stored = Stored(value)
        except Unstorable:
            return False
        if self._base is None or stored.size > self.limit:
            return False
        body = io.BytesIO()
        try:
            checksum = stored.write(body) if stored.size <= SMALL else self._write(key, stored)
        except OSError as error:
            log.warning("a result is not cached: %s", error)
            return False
        now = time.time()
        statement = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        self._query(statement, key, body.getvalue() or None, checksum, stored.size, now, now, seconds, what)
        self._since += stored.size
        if self._since > self.limit // 20:
            self._since = 0
            self.trim()
        return True

    def drop(self, key: str) -> None:
        """Forgets a value."""
        self._query("DELETE FROM results WHERE key = ?", key)
        self._path(key).unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes of all values."""
        row = self._query("SELECT COALESCE(SUM(size), 0) FROM results")
        return int(row[0][0]) if row else 0

    def trim(self) -> None:
        """Forgets the least recently used until the limit holds."""
        over = self.size() - self.limit
        while over > 0:
            oldest = self._query("SELECT key, size FROM results ORDER BY used, created LIMIT 100")
            if not oldest:
                return
            for key, size in oldest:
                if over > 0:
                    self.drop(key)
                    over -= size

    def close(self) -> None:
        """Closes the table."""
        with self._lock:
            if self._base is not None:
                self._base.close()
                self._base = None

    def _open(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"results-{FORMAT}.sqlite"
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.warning("the cache's table was damaged and is begun anew: %s", error)
            path.replace(path.with_suffix(".damaged"))
            return _connect(path)

    def _query(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            if self._base is None:
                return []
            try:
                return self._base.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                log.warning("the cache cannot be used: %s", error)
                return []

    def _path(self, key: str) -> Path:
        return self.folder / "arrays" / key[:2] / f"{key}.arrays"

    def _write(self, key: str, stored: Stored) -> str:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            with fresh.open("wb") as stream:
                checksum = stored.write(stream)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        return checksum


class CacheMemory(Memory):
    """The memory of a run: a call's key is the model's identity, the method and the content of its arguments."""

    def __init__(self, cache: Cache, identifier: Identifier, *, fresh: bool = False) -> None:
        self.cache, self.identifier, self.fresh = cache, identifier, fresh
        self._roster: Roster | None = None
        self._identities: dict[str, str] = {}
        self._arguments: dict[Job, str] = {}

    def begin(self, roster: Roster) -> None:
        """Told which models there are."""
        self._roster = roster

    def recall(self, job: Job) -> Outcome | None:
        """The outcome of the same call, made before."""
        if not job.step.cache or job.node.model is None:
            return None
        try:
            arguments = digest(job.arguments)
        except (Unstorable, OSError):
            return None
        self._arguments[job] = arguments
        loaded = self._roster is not None and self._roster.seats[job.node.model].model is not None
        key = self._key(job, arguments)
        job.unsure = key is None and not loaded
        found = None if key is None or self.fresh else self.cache.get(key)
        if found is None:
            return None
        self._arguments.pop(job, None)
        return Outcome("done", found[0], cached=True, seconds=found[1])

    def keep(self, job: Job, outcome: Outcome) -> None:
        """Keeps an outcome."""
        arguments = self._arguments.pop(job, None)
        key = None if arguments is None else self._key(job, arguments)
        if key is not None:
            self.cache.put(
                key, as_argument(outcome.value), outcome.seconds, f"{job.step.call} of {job.node.model}"
            )

    def forget(self, job: Job) -> None:
        """Told that a call failed."""
        self._arguments.pop(job, None)

    def _key(self, job: Job, arguments: str) -> str | None:
        name = job.node.model
        if name is None or self._roster is None:
            return None
        if name not in self._identities:
            identity = self.identifier.of(self._roster, self._roster.seats[name])
            if identity is None:
                return None
            self._identities[name] = identity
        return digest("call", FORMAT, self._identities[name], job.step.call, job.step.stream, arguments)


def _connect(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    try:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")
        base.execute(TABLE)
        base.execute("SELECT COUNT(*) FROM results").fetchone()
    except sqlite3.Error:
        base.close()
        raise
    return base
