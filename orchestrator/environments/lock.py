"""Locks: which version of everything but the torch layer an environment gets, with hashes, for any machine."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from subprocess import CompletedProcess

from packaging.utils import canonicalize_name

from orchestrator.environments import quarantine
from orchestrator.environments.family import Family
from orchestrator.environments.indexes import read_indexes
from orchestrator.environments.interpreters import MACHINE, Interpreter
from orchestrator.environments.records import digest, write_text
from orchestrator.environments.requirements import in_torch_layer, name_of
from orchestrator.environments.uv import prepare_home, refusal, run_uv
from orchestrator.errors import ResolutionError
from orchestrator.events import Event, Listener, ignore
from orchestrator.settings import Settings

__all__ = [
    "Lock",
    "compile_requirements",
    "inputs_of",
    "is_stale",
    "make_lock",
    "read_lock",
    "split_blocks",
    "store_lock",
]

HEADER = re.compile(r"^# (python|inputs|torch): (.*)$", re.MULTILINE)
BLOCK = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:==|@)\s*([^\s;\\]+)")
TORCH_ROOTS = ("torch", "torchvision", "torchaudio")


@dataclass(frozen=True)
class Lock:
    """A `requirements.lock`, read."""

    text: str
    minor: str
    """The Python it was resolved for: `3.11`."""
    inputs: str
    """Digest of what the family asked for when it was made."""
    torch: tuple[str, ...] = ()
    """The versions of torch's own packages that it was resolved with, without a build: `torch==2.13.0`."""

    @cached_property
    def blocks(self) -> Mapping[str, str]:
        """Distribution -> its lines, comments left out."""
        return split_blocks(self.text)


def inputs_of(family: Family) -> str:
    """A digest of everything in a family's declaration that its lock depends on."""
    return digest(
        [
            *sorted(family.requirements), "constraints", *sorted(family.all_constraints),
            "overrides", *sorted(family.overrides), "newer", family.exclude_newer or "", family.requires_python,
        ]
    )  # fmt: skip


def read_lock(path: Path) -> Lock | None:
    """The lock in a file; None where there is none or it is not one of ours."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = dict(HEADER.findall(text[:2000]))
    if "python" not in head or "inputs" not in head:
        return None
    return Lock(text, head["python"], head["inputs"], tuple(head.get("torch", "").split()))


def is_stale(family: Family) -> str | None:
    """Why the committed lock of a family does not count; None when it is up to date."""
    lock = read_lock(family.lock_file)
    if lock is None:
        return (
            "there is no lock"
            if not family.lock_file.exists()
            else "it was not made by `orchestrator env lock`"
        )
    return None if lock.inputs == inputs_of(family) else "pyproject.toml has changed since it was made"


def store_lock(
    settings: Settings,
    family: Family,
    interpreter: Interpreter,
    *,
    make: bool,
    retry: bool,
    listener: Listener = ignore,
) -> Lock | None:
    """The store's own lock for a variant, a family without a committed lock, or another Python.

    It is made when there is none and `make` is given, and then kept. What cannot be resolved is remembered with
    its reason until the declaration, the indexes or the interpreter change, or `retry` is given.

    Raises:
        ResolutionError: the requirements contradict each other, or were found to do so before.
    """
    key = digest([inputs_of(family), interpreter.minor, MACHINE])
    path = settings.home / "state" / "locks" / f"{key[:32]}.lock"
    lock = read_lock(path)
    if lock is not None or not make:
        return lock
    indexes = read_indexes()
    trouble = digest([key, *(f"{k}={v}" for k, v in sorted(indexes.variables.items())), *indexes.flags])[:32]
    if retry:
        quarantine.release(settings, trouble)
    quarantine.check(settings, trouble)
    preferred = read_lock(family.lock_file)
    try:
        lock = make_lock(settings, family, interpreter, preferred=preferred, listener=listener)
    except ResolutionError as error:
        quarantine.commit(settings, trouble, family.label, error)
        raise
    write_text(path, lock.text)
    return lock


def make_lock(
    settings: Settings,
    family: Family,
    interpreter: Interpreter,
    *,
    preferred: Lock | None = None,
    portable: bool = False,
    listener: Listener = ignore,
) -> Lock:
    """Resolves a family for one Python.

    `preferred` is a lock whose versions are kept where they fit, those of the variant's own overlays excepted.
    `portable` asks the main index alone first, so that the hashes of all files are in it and it holds on
    machines that do not have this one's extra indexes and folders.

    Raises:
        ResolutionError: there is no solution. InstallError: the index cannot be asked.
    """
    listener(Event("environment", family.label, f"resolving for Python {interpreter.minor}"))
    attempts: list[dict[str, str] | None] = [None]
    indexes = read_indexes()
    if portable and indexes.default_only != indexes.variables:
        attempts.insert(0, dict(indexes.default_only))
    with _declared(settings, family, preferred) as folder:
        for variables in attempts:
            done = compile_requirements(
                settings,
                ["requirements.in", *_files(family), "--annotation-style=line", "-o", "requirements.lock"]
                + [f"--upgrade-package={name_of(text)}" for text in family.with_],
                interpreter,
                cwd=folder,
                exclude_newer=family.exclude_newer,
                variables=variables,
                listener=listener,
                subject=family.label,
            )
            if done.returncode == 0:
                return _finished(
                    family, interpreter, (folder / "requirements.lock").read_text(encoding="utf-8")
                )
    raise refusal(f"{family.label} for Python {interpreter.minor} cannot be resolved", done)


def compile_requirements(
    settings: Settings,
    args: list[str],
    interpreter: Interpreter,
    *,
    cwd: Path,
    exclude_newer: str | None = None,
    variables: Mapping[str, str] | None = None,
    offline: bool = False,
    hashes: bool = True,
    listener: Listener = ignore,
    subject: str = "",
) -> CompletedProcess[str]:
    """`uv pip compile` for an interpreter, the result on stdout (and in `-o`)."""
    command = [
        "pip",
        "compile",
        "--no-header",
        "--python",
        str(interpreter.path),
        "--python-version",
        interpreter.minor,
    ]
    if hashes:
        command.append("--generate-hashes")
    if exclude_newer:
        command.append(f"--exclude-newer={exclude_newer}")
    return run_uv(
        settings,
        [*command, *args],
        cwd=cwd,
        variables=variables,
        offline=offline,
        listener=listener,
        subject=subject,
    )


def split_blocks(text: str) -> dict[str, str]:
    """The requirement lines of a compiled file by distribution, hashes included, comments left out."""
    blocks: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if found := BLOCK.match(line):
            name = canonicalize_name(found[1])
            blocks[name] = line.split("    #", 1)[0].rstrip()
        elif name and line.startswith("    --hash"):
            blocks[name] += "\n" + line.rstrip()
    return blocks


@contextmanager
def work_folder(settings: Settings) -> Iterator[Path]:
    """A folder of the store for one run of uv, gone afterwards."""
    base = prepare_home(settings) / "work"
    base.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _declared(settings: Settings, family: Family, preferred: Lock | None) -> Iterator[Path]:
    with work_folder(settings) as folder:
        (folder / "requirements.in").write_text("\n".join(family.requirements) + "\n", encoding="utf-8")
        (folder / "constraints.txt").write_text("\n".join(family.all_constraints) + "\n", encoding="utf-8")
        (folder / "overrides.txt").write_text("\n".join(family.overrides) + "\n", encoding="utf-8")
        if preferred is not None:
            (folder / "requirements.lock").write_text(preferred.text, encoding="utf-8")
        yield folder


def _files(family: Family) -> list[str]:
    args = ["--constraints", "constraints.txt"] if family.all_constraints else []
    return args + (["--overrides", "overrides.txt"] if family.overrides else [])


def _finished(family: Family, interpreter: Interpreter, compiled: str) -> Lock:
    """The lock from uv's output: the torch layer out, our header on."""
    blocks: list[list[str]] = []
    torch: list[str] = []
    for line in compiled.splitlines():
        found = BLOCK.match(line)
        if found:
            blocks.append([])
            if name_of(found[1]) in TORCH_ROOTS:
                torch.append(f"{name_of(found[1])}=={found[2].split('+')[0]}")
        if blocks and line.strip():
            blocks[-1].append(
                line.replace("-r requirements.in", family.name).replace("-c constraints.txt", "constraint")
            )
    kept = [block for block in blocks if not in_torch_layer(BLOCK.match(block[0])[1])]  # type: ignore[index]
    inputs = inputs_of(family)
    head = [
        f"# What the family {family.label} needs, but for torch's own packages, which each machine chooses.",
        "# Made by `orchestrator env lock`; do not edit.",
        f"# python: {interpreter.minor}",
        f"# inputs: {inputs}",
        *([f"# torch: {' '.join(sorted(torch))}"] if torch else []),
    ]
    text = "\n".join([*head, *(line for block in kept for line in block)]) + "\n"
    return Lock(text, interpreter.minor, inputs, tuple(sorted(torch)))
