"""What a checkpoint is called, and what it is once it is here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import CheckpointError

__all__ = ["Checkpoint", "Hub", "Spec", "parse_spec"]

Hub = Literal["path", "pypi", "hf", "modelscope", "tiny"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")
TINY = re.compile(r"(?P<style>[\w.-]+)(@(?P<seed>\d+))?$")
PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(==(?P<version>[\w.!+-]+))?(#(?P<inside>.+))?$")
FORMS = (
    "a path, pypi:NAME[==VERSION][#path/inside], hf:org/name[@revision], modelscope:org/name[@revision] or "
    "tiny:STYLE[@seed] (random weights)"
)


@dataclass(frozen=True)
class Spec:
    """A parsed spec: `revision` is what the user pinned (of a package its version), `inside` a path in a package."""

    text: str
    hub: Hub
    id: str
    revision: str | None = None
    inside: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is on this machine: `path` is what a worker gets, a folder or a file."""

    spec: str
    hub: Hub
    id: str
    revision: str | None
    path: Path
    notes: tuple[str, ...] = ()
    pinned: bool = True
    """Whether the spec itself said which revision; a path counts as pinned."""


def parse_spec(spec: str | os.PathLike[str]) -> Spec:
    """Reads a spec. What begins with `/`, `.` or `~`, or exists here, is a path; a bare `org/name` is of Hugging Face.

    Raises:
        CheckpointError: it is none of the known forms.
    """
    text = os.fspath(spec)
    scheme, colon, rest = text.partition(":")
    if not isinstance(spec, str) or _is_path(text):
        return Spec(text, "path", text)
    if colon and scheme == "pypi":
        return _package(text, rest)
    if colon and scheme in ("hf", "modelscope"):
        return _hub(text, "hf" if scheme == "hf" else "modelscope", rest.removeprefix("//"))
    if colon and scheme == "tiny" and (tiny := TINY.match(rest)):
        return Spec(text, "tiny", tiny["style"], tiny["seed"])
    if HUB_ID.match(text):
        return _hub(text, "hf", text)
    raise CheckpointError(f"checkpoint {text!r} is not here and is not a known form", hint=f"give {FORMS}")


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..") or os.path.exists(_file_of(text))


def _file_of(text: str) -> str:
    """`model.py` of `model.py:Class`."""
    path, colon, _ = text.rpartition(":")
    return path if colon and path.endswith(".py") else text


def _package(text: str, rest: str) -> Spec:
    match = PACKAGE.match(rest)
    if match is None:
        raise CheckpointError(
            f"checkpoint {text!r}: {rest!r} does not name a package",
            hint="write pypi:NAME, pypi:NAME==VERSION or pypi:NAME==VERSION#path/inside",
        )
    return Spec(text, "pypi", match["name"], match["version"], match["inside"])


def _hub(text: str, hub: Hub, rest: str) -> Spec:
    if not HUB_ID.match(rest):
        raise CheckpointError(
            f"checkpoint {text!r}: {rest!r} is not an id", hint="write org/name or org/name@revision"
        )
    identity, _, revision = rest.partition("@")
    return Spec(text, hub, identity, revision or None)
