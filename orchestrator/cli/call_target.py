"""Which class and method `orchestrator call` means, and what a source file tells of them without being run."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

from orchestrator.errors import ConfigError

__all__ = ["signature", "target"]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def target(family: str, method: str | None, arguments: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]]:
    """Resolves `./file.py:Class.method`, whose METHOD argument is then the first of the call's arguments.

    Raises:
        ConfigError: METHOD is missing, or the file has nothing of that name.
    """
    path, colon, name = family.rpartition(":")
    of_file = bool(colon) and path.endswith(".py")
    tree = _parsed(path if of_file else family)
    if of_file and tree is not None:
        _check_name(tree, path, name.partition(".")[0])
    if not of_file or name in _classes(tree):
        if method is None:
            raise ConfigError("METHOD is missing", hint=f"orchestrator family show {family}")
        if not of_file and tree is not None:
            _check_name(tree, family, method)
        return family, method, arguments
    if method is not None:
        arguments = (method, *arguments)
    owner, dot, attribute = name.rpartition(".")
    family, method = (f"{path}:{owner}", attribute) if dot else (path, name)
    return family, method, arguments


def signature(file: Path, class_name: str, method: str) -> str | None:
    """How a method is declared, `embed(texts, *, batch_size=32)`; None where the file itself does not say."""
    tree = _parsed(str(file))
    declaring = _classes(tree).get(class_name) if class_name else tree
    for node in declaring.body if declaring else ():
        if isinstance(node, Function) and node.name == method:
            taken = [word for word in ast.unparse(node.args).split(", ") if word != "self"]
            return f"{method}({', '.join(taken)})"
    return None


def _check_name(tree: ast.Module, path: str, name: str) -> None:
    """Whatever the file may bind in some way is left to its worker."""
    bound = _bound(tree)
    if bound is None or name in bound:
        return
    classes = _classes(tree)
    functions = [node.name for node in tree.body if isinstance(node, Function)]
    near = difflib.get_close_matches(name, [*classes, *functions], n=1)
    has = ", ".join([*(f"{path}:{c}" for c in classes), *(f"{path}:{f}" for f in functions)])
    raise ConfigError(
        f"{path} has no class and no function {name!r}",
        hint=f"did you mean {path}:{near[0]}?" if near else f"it has: {has or 'none'}",
    )


def _bound(tree: ast.Module) -> set[str] | None:
    """Every name that the module may get; None where it takes all of another one, or a function makes globals."""
    found: set[str] = set()
    for statement in tree.body:
        whole = not isinstance(statement, (Function, ast.ClassDef))
        for node in ast.walk(statement) if whole else [statement]:
            if isinstance(node, (Function, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.alias):
                found.add(node.asname or node.name.partition(".")[0])
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    made = any(isinstance(node, ast.Global) for node in ast.walk(tree))
    return None if made or "*" in found else found


def _classes(tree: ast.Module | None) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in (tree.body if tree else ()) if isinstance(node, ast.ClassDef)}


def _parsed(path: str) -> ast.Module | None:
    """The file's syntax tree; None where there is none: its worker, on the Python of its family, tells what is wrong."""
    if not path.endswith(".py"):
        return None
    try:
        return ast.parse(Path(path).expanduser().read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
