"""Log files: of each worker's life and of each environment's making; their names, their lines, how many stay."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import WorkerStartError
from orchestrator.worker.logfile import label
from orchestrator.worker.masking import Mask

__all__ = ["KEEP", "LogLine", "last_lines", "logs_of", "new_log", "note", "parse", "read_lines"]

KEEP = 10
"""Log files that stay of each worker name."""
_TAIL = 256 << 10
_LINE = 2000
_LABELLED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (build|runtime|model) +\| (.*)", re.DOTALL)
_NAMED = r"-\d{8}T\d{6}-[0-9a-f]{6,9}\.log"


@dataclass(frozen=True)
class LogLine:
    """One line: when (UTC, None where it is not known), who spoke (`build`, `runtime` or `model`), and what."""

    time: str | None
    source: str
    text: str


def parse(line: str) -> LogLine:
    """A line of a log file. One without a label is what an interpreter said before our code ran in it."""
    found = _LABELLED.fullmatch(line)
    return LogLine(*found.groups()) if found else LogLine(None, "runtime", line)


def note(path: Path, source: str, text: str) -> None:
    """Adds lines to a log, secrets crossed out. A disk that is full loses them."""
    prefix = label(source)
    data = Mask(os.environ).data(text.encode("utf-8", "replace")).replace(b"\n", b"\n" + prefix)
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, prefix + data + b"\n")
        finally:
            os.close(fd)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a log, its rotated part first, without their ends. Bytes that are no text are shown as �."""
    for part in (path.with_name(path.name + ".1"), path):
        with (
            contextlib.suppress(FileNotFoundError),
            part.open(encoding="utf-8", errors="replace", newline="\n") as file,
        ):
            for line in file:
                yield line.removesuffix("\n")


def logs_of(folder: Path, name: str) -> list[Path]:
    """The log files of a name, the oldest first."""
    pattern = re.compile(re.escape(_stem(name)) + _NAMED)
    try:
        return sorted(entry for entry in folder.iterdir() if pattern.fullmatch(entry.name))
    except OSError:
        return []


def new_log(folder: Path, name: str) -> Path:
    """An empty log file `NAME-TIME-RANDOM.log` of mode 0600; older ones of that name beyond `KEEP` go.

    Raises:
        WorkerStartError: the folder cannot be written.
    """
    stem = _stem(name)
    now = time.time()
    moment = f"{time.strftime('%Y%m%dT%H%M%S', time.localtime(now))}-{int(now % 1 * 1e6):05x}"
    path = (
        folder / f"{stem}-{moment}{secrets.token_hex(2)}.log"
    )  # their names are in the order of their making
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _prune(folder, name)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise WorkerStartError(
            f"the log file {path} cannot be made: {error.strerror}", hint="set ORCHESTRATOR_HOME"
        ) from None
    return path


def last_lines(path: Path, count: int) -> list[str]:
    """At most `count` last lines that a worker printed, without their labels, the rotated part included."""
    data = _tail_of(path)
    if data.count(b"\n") < count + 5 and len(data) < _TAIL:
        data = _tail_of(path.with_name(path.name + ".1")) + data
    lines = [parse(line) for line in data[-_TAIL:].decode("utf-8", "replace").splitlines()]
    said = [_short(line.text) for line in lines if line.source == "model" or line.time is None]
    return said[-count:] if count > 0 else []


def _short(line: str) -> str:
    return line if len(line) <= _LINE else f"{line[: _LINE // 2]} … {line[-_LINE // 2 :]}"


def _tail_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _TAIL, 0))
            return file.read(_TAIL)
    except OSError:
        return b""


def _prune(folder: Path, name: str) -> None:
    for old in logs_of(folder, name)[: -(KEEP - 1)]:
        with contextlib.suppress(OSError):
            old.unlink()
            old.with_name(old.name + ".1").unlink(missing_ok=True)


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=@+-]+", "_", name)[:80] or "worker"
