"""Names that are safe for Python modules: transformers makes a module of a checkpoint folder's name.

A dot in it breaks remote code (`No module named 'transformers_modules.gte-Qwen2-1'`), and two checkpoints of one
name would share one folder of remote code.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

__all__ = ["safe_folder", "safe_name"]

SAFE = re.compile(r"[A-Za-z_][\w-]*$", re.ASCII)


def safe_name(name: str) -> str:
    """`name` with everything but letters, digits and `_` replaced by `_`, not beginning with a digit."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    return text if text[:1].isalpha() or text[:1] == "_" else f"_{text}"


def safe_folder(path: Path, names: Path, wanted: str | None = None) -> Path:
    """`path` under a safe name: itself when its name is safe, else a link to it in the folder `names`.

    Folders with remote code always get a link, so that no two share a name; so does `wanted`, a readable name for
    folders that are called after a hash. The links themselves are the readable mapping: `ls -l` shows it.
    """
    if not path.is_dir():
        return path
    has_code = any(path.glob("*.py"))
    if wanted is None and SAFE.match(path.name) and not has_code:
        return path
    name = safe_name(wanted or path.name)
    mark = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    links = (names / name, names / f"{name}_{mark}")
    return next(link for link in links if _links(link, path))


def _links(link: Path, path: Path) -> bool:
    """Whether `link` leads to `path`, made now if the name is free."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(path)  # fails if anybody else was first: no name ever changes its meaning
    except FileExistsError:
        return os.path.realpath(link) == os.path.realpath(path)
    return True
