"""GGUF files as plain folders: converted once, in an environment of its own, shared by every version."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from orchestrator.checkpoints.names import safe_name
from orchestrator.checkpoints.neutral import neutralise
from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.environments.commands import run_command
from orchestrator.errors import CheckpointError
from orchestrator.events import Event, Listener
from orchestrator.settings import Settings

__all__ = ["GgufStore"]

FAMILY = "checkpoint-import"
RULES = "2"
"""Part of a converted folder's mark: raised when the same file would give another folder."""
BAR = re.compile(r"(?P<what>[^:|]+?)\W*:\s+\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<total>\d+)")
"""A line of tqdm: `Loading weights: 37%|███   | 100/272 [00:03<00:01, 70.64it/s]`."""
DROPPED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
LAST = 6  # lines of a failure that are shown


class GgufStore:
    """Converted files in `folder/<name>_<mark>`; a folder with that name is complete."""

    def __init__(
        self, settings: Settings, folder: Path, environments: EnvironmentStore, catalog: Catalog
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.environments = environments
        self.catalog = catalog

    def convert(self, file: Path, subject: str, listener: Listener) -> Path:
        """The folder of a .gguf file, converted now if that was not done before.

        Raises:
            CheckpointError: it cannot be read; the last lines of the conversion are in the message.
            ProvisioningError: the environment of the `checkpoint-import` family cannot be made.
        """
        target = self.folder / f"{safe_name(file.stem)}_{_mark(file, self.folder / '.marks')}"
        if target.is_dir():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{target.name}.lock"):
            if not target.is_dir():
                self.convert_to(file, target, subject, listener)
        return target

    def convert_to(self, file: Path, target: Path, subject: str, listener: Listener) -> None:
        """Converts into `target`, which appears complete or not at all. The caller holds the lock of `target`."""
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        part.mkdir(parents=True)
        listener(Event("checkpoint", subject, "converting GGUF to safetensors"))
        try:
            self._run(file, part, subject, listener)
            neutralise(part)
            (part / "imported.json").write_text(json.dumps({"source": str(file)}, indent=2) + "\n")
            os.rename(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        listener(Event("checkpoint", subject, f"converted to {target.name}", finished=True))

    def _run(self, file: Path, part: Path, subject: str, listener: Listener) -> None:
        family = self.catalog.get(FAMILY)
        python = self.environments.ensure(family, listener).python
        environ = {name: value for name, value in os.environ.items() if name not in DROPPED}
        done = run_command(
            [str(python), "-I", str(family.worker_file), str(file), str(part)],
            environ={**environ, "HF_HUB_OFFLINE": "1"},
            cwd=part,
            say=_narrator(subject, listener),
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip() and not BAR.search(line)]
            words = "\n".join(f"  | {line}" for line in lines[-LAST:])
            raise CheckpointError(
                f"{file} cannot be converted (exit code {done.returncode})\n{words}",
                hint="check that the file is whole; architectures are those that transformers reads from GGUF",
            )


def _narrator(subject: str, listener: Listener) -> Callable[[str], None]:
    """Passes on what the script says (JSON lines) and transformers' own bars."""

    def say(line: str) -> None:
        if line.startswith('{"message"'):
            listener(Event("checkpoint", subject, json.loads(line)["message"]))
        elif bar := BAR.search(line):
            done, total = int(bar["done"]), int(bar["total"])
            listener(
                Event("checkpoint", subject, bar["what"].strip(), done=done, total=total, unit="tensors")
            )

    return say


def _mark(file: Path, known: Path) -> str:
    """A short hash of the content and of how it is converted; `known` remembers it while the file does not change."""
    status = file.stat()
    state = [RULES, str(file.resolve()), status.st_size, status.st_mtime_ns]
    record = known / f"{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]}.mark"
    if record.is_file():
        return record.read_text("ascii")
    with file.open("rb") as handle:
        content = hashlib.file_digest(handle, "sha256").hexdigest()
    mark = hashlib.sha256(f"{content} {RULES}".encode()).hexdigest()[:12]
    fresh = record.with_name(f"{record.name}.{os.getpid()}")
    record.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(mark, "ascii")
    os.replace(fresh, record)
    return mark
