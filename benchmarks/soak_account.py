"""The account of a soak: what became of the calls, and what is there afterwards that was not there before."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from machine import describe

from orchestrator.settings import load_settings


@dataclasses.dataclass
class Tally:
    """What became of the calls. Threads write it under its lock."""

    calls: Counter[str] = dataclasses.field(default_factory=Counter)
    answers: Counter[str] = dataclasses.field(default_factory=Counter)
    errors: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    lost: list[str] = dataclasses.field(default_factory=list)
    doubled: list[int] = dataclasses.field(default_factory=list)
    leaked: dict[str, Any] = dataclasses.field(default_factory=dict)
    repeatable: set[int] = dataclasses.field(default_factory=set)
    answered: set[int] = dataclasses.field(default_factory=set)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def add(self, counter: Counter[str], name: str) -> None:
        with self.lock:
            counter[name] += 1

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or any(self.leaked.values()))


def close_account(tally: Tally, effects: Path, before: dict[str, Any], work: Path) -> None:
    """Compares calls with their effects, and what there is now with what there was `before`."""
    written = Counter(int(line) for line in effects.read_text().split() if line.isdigit())
    tally.doubled = [n for n, times in written.items() if times > 1 and n not in tally.repeatable]
    end = time.monotonic() + 15
    while any((leaked := left_behind(before, work)).values()) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.2)
    tally.leaked = leaked


def present(work: Path) -> dict[str, Any]:
    """What this process and its descendants hold now."""
    me = psutil.Process()
    return {
        "processes": [said for child in me.children(recursive=True) if (said := described(child))],
        "threads": threading.active_count(),
        "descriptors": me.num_fds(),
        "segments": segments(),
        "folders": sorted(path.name for path in (work / "run").iterdir()),
        "locks": sum(f" {os.getpid()} " in line for line in Path("/proc/locks").read_text().splitlines()),
        "ledger": places(),
    }


def described(process: psutil.Process) -> str:
    """What a process is; nothing if it is gone."""
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())[:300] or process.name()}"
    return ""


def segments() -> int:
    """Shared segments that this process holds open or has mapped."""
    mapped = Path("/proc/self/maps").read_text().count("memfd:orchestrator")
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            mapped += "memfd:orchestrator" in os.readlink(entry)
    return mapped


def places() -> int:
    """Places that this process has in the ledger."""
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads((load_settings().home / "ledger.json").read_text())
        return sum(entry.get("pid") == os.getpid() for entry in entries if isinstance(entry, dict))
    return 0


def left_behind(before: dict[str, Any], work: Path) -> dict[str, Any]:
    """What is there now and was not before."""
    bury()
    now = present(work)
    found: dict[str, Any] = {}
    for name, value in now.items():
        if isinstance(value, list):
            found[name] = [entry for entry in value if entry not in before[name]]
        else:
            found[name] = max(value - before[name], 0)
    return found


def bury() -> None:
    """Buries the orphans that came to us: see `adopt`."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def adopt() -> None:
    """Makes this process the parent of every orphan below it, so that none is overlooked."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def show(tally: Tally, seconds: float, seed: int, *, as_json: bool) -> None:
    """Prints the account as a table, or as JSON."""
    counts = {
        "calls": tally.calls.total(), "answers": tally.answers.total(), "typed errors": tally.errors.total(),
        "faults": tally.faults.total(), "lost": len(tally.lost), "doubled": len(tally.doubled),
    }  # fmt: skip
    if as_json:
        whole = {**counts, "leaked": tally.leaked, "clean": tally.clean, "seed": seed}
        for name in ("calls", "answers", "errors", "faults"):
            whole[f"{name} by kind"] = dict(sorted(getattr(tally, name).items()))
        print(json.dumps({**whole, "losses": tally.lost, "doubles": tally.doubled}, indent=2))
        return
    print(f"{describe()}\n\n{seconds:g} seconds, seed {seed}:\n\n| | |\n|---|---|")
    for name, count in counts.items():
        kinds = {"typed errors": tally.errors, "faults": tally.faults, "calls": tally.calls}.get(
            name, Counter()
        )
        detail = ", ".join(f"{kind} {times}" for kind, times in kinds.most_common())
        print(f"| {name} | {count}{f' ({detail})' if detail else ''} |")
    for name, value in tally.leaked.items():
        print(f"| leaked {name} | {value if isinstance(value, int) else len(value)} |")
    for line in (*tally.lost, *(f"doubled: {number}" for number in tally.doubled)):
        print(f"- {line}")
