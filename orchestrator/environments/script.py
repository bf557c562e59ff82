"""A family from one file of the user's: `./my_model.py:Model`, its needs in a `# /// script` block (PEP 723)."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

from orchestrator.environments.family import Family
from orchestrator.environments.requirements import parse
from orchestrator.errors import ConfigError

__all__ = ["read_script", "script_block", "script_target"]

BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # as PEP 723 gives it
TARGET = re.compile(r"(?P<file>.+\.py)(:(?P<name>[A-Za-z_]\w*)?)?")


def script_target(text: str) -> tuple[Path, str] | None:
    """The file and the class of `file.py:Class` (the class may be empty), or None for a family's name."""
    match = TARGET.fullmatch(text)
    return None if match is None else (Path(match["file"]).expanduser().absolute(), match["name"] or "")


def read_script(file: Path, name: str, base: Family, python: Family) -> Family:
    """The family of a script: `base` (the one that the block names) with its needs added, served by `python`'s worker.

    The block may hold `requires-python`, `dependencies`, and `[tool.orchestrator]` with `defaults` and
    `environment`.

    Raises:
        ConfigError: the file does not exist, or its block cannot be read.
    """
    block = script_block(file)
    table = block.get("tool", {}).get("orchestrator", {})
    if unknown := sorted(set(table) - {"family", "defaults", "environment"}):
        raise ConfigError(
            f"unknown key {unknown[0]!r} in [tool.orchestrator] of the script block",
            path=str(file),
            hint="known keys: family, defaults, environment",
        )
    added = _requirements(file, block.get("dependencies", []))
    return dataclasses.replace(
        base,
        name=file.stem,
        worker_file=python.worker_file,
        worker_class=python.worker_class,
        script=file,
        requires_python=block.get("requires-python", base.requires_python),
        dependencies=base.variant(added).direct if added else base.dependencies,
        defaults={
            **base.defaults,
            **table.get("defaults", {}),
            "target": f"{file}:{name}" if name else str(file),
        },
        environment={**base.environment, **table.get("environment", {})},
        description=f"{file.name}:{name}" if name else file.name,
        resolve=(),
        probe=(),
        checkpoints=(),
    )


def script_block(file: Path) -> dict[str, Any]:
    """The TOML of the file's `# /// script` block; empty when it has none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read {file}: {reason}") from None
    blocks = list(BLOCK.finditer(text))
    if len(blocks) > 1:
        raise ConfigError("two `# /// script` blocks", path=str(file), hint="PEP 723 allows one")
    if not blocks:
        return {}
    lines = blocks[0]["content"].splitlines()
    try:
        return tomllib.loads("\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines))
    except tomllib.TOMLDecodeError as error:
        line = text[: blocks[0].start()].count("\n") + 1
        raise ConfigError(
            f"the `# /// script` block is not TOML: {error}", path=str(file), line=line
        ) from None


def _requirements(file: Path, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError("`dependencies` of the script block must be a list of texts", path=str(file))
    for text in texts:
        try:
            parse(text)
        except ConfigError as error:
            raise ConfigError(error.message, path=str(file), hint=error.hint) from None
    return tuple(texts)
