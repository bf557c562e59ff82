"""The torch layer: the family bounds torch's version, the machine chooses the build.

An explicit backend goes first; without an NVIDIA driver only a CPU build will do, wherever it is found; with one,
the build that fits the driver. A machine without a GPU never downloads CUDA.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from orchestrator.environments.borrow import PREFIX, lend
from orchestrator.environments.driver import cuda_driver
from orchestrator.environments.family import Family
from orchestrator.environments.indexes import read_indexes
from orchestrator.environments.interpreters import MACHINE, Interpreter
from orchestrator.environments.lock import BLOCK, Lock, compile_requirements, split_blocks, work_folder
from orchestrator.environments.records import digest, read_json, write_json
from orchestrator.environments.requirements import in_torch_layer, name_of, parse
from orchestrator.environments.uv import refusal
from orchestrator.errors import InstallError, ProvisioningError, ResolutionError
from orchestrator.events import Event, Listener, ignore
from orchestrator.settings import Settings

__all__ = ["TorchLayer", "backend_of", "is_accelerated", "resolve_torch_layer"]

CUDA_TAG = re.compile(r"cu(\d{2,3})$")
CUDA_SUFFIX = re.compile(r"-cu(\d{2})$")
ACCELERATED = ("cu", "rocm", "xpu")


@dataclass(frozen=True)
class TorchLayer:
    """torch's own distributions for one machine, with hashes; and what else their build needs."""

    backend: str
    """`cpu`, `cuda`, the explicit one that was asked for, or `none` for a family without torch."""
    blocks: Mapping[str, str] = field(default_factory=dict)
    borrowed: Mapping[str, str] = field(default_factory=dict)
    """Folders of the distributions that are linked from an interpreter, with digests of their RECORDs."""

    def lines(self, lock: Lock) -> list[str]:
        """The requirement lines to install beside those of `lock`."""
        return [text for name, text in self.blocks.items() if in_torch_layer(name) or name not in lock.blocks]


@dataclass(frozen=True)
class Attempt:
    """One way to ask for the layer."""

    requirements: tuple[str, ...]
    backend: str | None = None
    """Given to uv's `--torch-backend`: it goes to PyTorch's own index, past the configured ones."""
    cached: bool = False
    """Whether the answer may come from the cache alone: an exact build is the same wherever it is found."""


def backend_of(settings: Settings, family: Family) -> str:
    """What was asked for: `auto`, or an explicit backend; the user's setting goes before the family's."""
    return settings.torch_backend if settings.torch_backend != "auto" else family.torch_backend or "auto"


def is_accelerated(backend: str) -> bool:
    """Whether a build of torch brings the libraries of a GPU along: `cuda`, `cu126`, `rocm6.4` ..."""
    return backend.startswith(ACCELERATED)


def resolve_torch_layer(
    settings: Settings,
    family: Family,
    lock: Lock,
    interpreter: Interpreter,
    *,
    make: bool,
    retry: bool = False,
    listener: Listener = ignore,
) -> TorchLayer | None:
    """The layer for this machine, from the store's record or (with `make`) resolved now and recorded.

    `retry` resolves it even if there is a record: a wheel in a folder may have been replaced.

    Raises:
        ResolutionError: no build of torch in the family's bounds fits this machine.
    """
    if not lock.torch:
        return TorchLayer("none")
    backend = backend_of(settings, family)
    if backend.startswith(PREFIX):
        lent = lend(settings, family.label, backend, _bounds(family, lock), interpreter)
        return TorchLayer(backend, borrowed=lent)
    wanted = backend if backend != "auto" else "cuda" if cuda_driver() else "cpu"
    bounds = _bounds(family, lock)
    key = digest([*lock.torch, *bounds, wanted, cuda_driver() or "no driver", interpreter.minor, MACHINE])
    path = settings.home / "state" / "torch" / f"{key[:32]}.json"
    record = read_json(path)
    if record is not None and not retry:
        return TorchLayer(record["backend"], record["blocks"])
    if not make:
        return None
    listener(Event("environment", family.label, f"choosing the {wanted} build of {' '.join(lock.torch)}"))
    layer = _resolve(settings, family, lock, interpreter, backend, wanted, bounds, listener)
    write_json(path, {"backend": layer.backend, "blocks": layer.blocks})
    return layer


def _resolve(
    settings: Settings,
    family: Family,
    lock: Lock,
    interpreter: Interpreter,
    backend: str,
    wanted: str,
    bounds: tuple[str, ...],
    listener: Listener,
) -> TorchLayer:
    refused: list[str] = []
    unasked = True  # whether no index could be asked at all
    for attempt in _attempts(lock, bounds, backend, wanted):
        for offline in (True, False) if attempt.cached else (False,):
            answer = _ask(settings, family, attempt, interpreter, offline=offline, listener=listener)
            unasked = unasked and isinstance(answer, InstallError)
            if isinstance(answer, ProvisioningError):
                if not offline:
                    refused.append(f"{' '.join(attempt.requirements)}: {answer.message}")
            elif reason := _misfit(answer, wanted):
                refused.append(f"{' '.join(attempt.requirements)}: {reason}")
            else:
                return TorchLayer(wanted, answer)
    raise _no_build(family, lock, wanted, refused, InstallError if unasked else ResolutionError)


def _attempts(lock: Lock, bounds: tuple[str, ...], backend: str, wanted: str) -> Iterator[Attempt]:
    pins = lock.torch
    if wanted != "cuda":
        yield Attempt(tuple(f"{pin}+{wanted}" for pin in pins), cached=True)
        if len(pins) > 1:
            yield Attempt(
                (*(f"{p}+{wanted}" for p in pins if p.startswith("torch==")), *_others(pins)), cached=True
            )
        for version in _in_folders(bounds, wanted):
            yield Attempt((f"torch=={version}", *_others(bounds)))
    if backend in {"auto", "cpu"}:
        yield Attempt(pins)
        if pins != bounds:
            yield Attempt(bounds)
    if backend != "auto":
        yield Attempt(pins, backend=backend)
        yield Attempt(bounds, backend=backend)
    elif wanted == "cuda":
        yield Attempt(pins, backend="auto")


def _others(requirements: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in requirements if name_of(text) != "torch")


def _ask(
    settings: Settings,
    family: Family,
    attempt: Attempt,
    interpreter: Interpreter,
    *,
    offline: bool,
    listener: Listener,
) -> dict[str, str] | ProvisioningError:
    with work_folder(settings) as folder:
        (folder / "torch.in").write_text("\n".join(attempt.requirements) + "\n", encoding="utf-8")
        done = compile_requirements(
            settings,
            [
                "torch.in",
                "--no-annotate",
                *([f"--torch-backend={attempt.backend}"] if attempt.backend else []),
            ],
            interpreter,
            cwd=folder,
            offline=offline,
            listener=listener,
            subject=family.label,
        )
    if done.returncode != 0:
        return refusal("torch", done)
    return split_blocks(done.stdout)


def _bounds(family: Family, lock: Lock) -> tuple[str, ...]:
    """What the family itself says about torch's packages; the bare names of those that only come along."""
    said = {name_of(text): text for text in family.direct if in_torch_layer(name_of(text))}
    return tuple(said.get(name_of(pin), name_of(pin)) for pin in lock.torch)


def _in_folders(bounds: tuple[str, ...], local: str) -> list[Version]:
    """The builds of torch that lie in the find-links folders and are within bounds, newest first."""
    bound = next((parse(text) for text in bounds if name_of(text) == "torch"), None)
    found: set[Version] = set()
    for place in read_indexes().find_links:
        folder = Path(place.removeprefix("file://"))
        for wheel in folder.glob("torch-*.whl") if folder.is_dir() else ():
            try:
                _, version, _, _ = parse_wheel_filename(wheel.name)
            except (InvalidWheelFilename, ValueError):
                continue
            if (
                version.local == local
                and bound is not None
                and bound.specifier.contains(version, prereleases=True)
            ):
                found.add(version)
    return sorted(found, reverse=True)


def _misfit(blocks: Mapping[str, str], wanted: str) -> str | None:
    """Why this build will not do here; None when it will."""
    runtime = _cuda_of(blocks)
    accelerated = sorted(name for name in blocks if name.startswith(("nvidia-", "cuda-")))
    if wanted == "cpu" and (runtime or accelerated or _local(blocks).startswith(ACCELERATED)):
        return (
            f"this build brings CUDA along ({len(accelerated)} packages), and there is no NVIDIA driver here"
        )
    driver = cuda_driver()
    if wanted == "cuda" and runtime and driver and driver[0].isdigit():
        have = tuple(int(part) for part in driver.split("."))
        if runtime > have[0]:
            return f"this build needs CUDA {runtime}, and the driver here ends at CUDA {driver}"
    return None


def _cuda_of(blocks: Mapping[str, str]) -> int | None:
    """The major version of the CUDA that a build is for, as far as its name or its requirements say."""
    if tag := CUDA_TAG.match(_local(blocks)):
        return int(tag[1][:2])
    majors = [int(found[1]) for name in blocks if (found := CUDA_SUFFIX.search(name))]
    return max(majors, default=None)


def _local(blocks: Mapping[str, str]) -> str:
    found = BLOCK.match(blocks.get("torch", ""))
    return found[2].partition("+")[2] if found else ""


def _no_build(
    family: Family, lock: Lock, wanted: str, refused: list[str], kind: type[ProvisioningError]
) -> ProvisioningError:
    remedies = {
        "cpu": "put a CPU wheel of torch into a folder and name it in PIP_FIND_LINKS, or add an index of CPU builds as "
        "pip's extra-index-url, or let uv ask PyTorch's own index: ORCHESTRATOR_TORCH_BACKEND=cpu",
        "cuda": "update the NVIDIA driver, or choose a build: ORCHESTRATOR_TORCH_BACKEND=cu126 (or cpu)",
    }
    return kind(
        f"{family.label}: no {wanted} build of {' '.join(lock.torch)} was found\n"
        + "\n".join(f"  tried {text}" for text in dict.fromkeys(refused)),
        hint=remedies.get(
            wanted, f"is {wanted!r} a backend that PyTorch builds for? `auto` lets the machine choose"
        ),
        log="\n".join(refused),
    )
