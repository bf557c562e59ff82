"""A family's code: found by path, loaded under a private name, looked at for its methods."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import types
from typing import Any, Callable, Dict, Iterable

__all__ = ["call_with_known", "check_options", "import_family", "methods_of"]

OBEYED_ABOVE = ("allow_offload", "trust_remote_code")
"""Options that mean something whether or not the family asks for them: they are the placement's and the loader's."""

_PREFIX = "_family_"


def import_family(path: str, name: str) -> Any:
    """The class `name` of the file or folder at `path`, or the module if `name` is empty.

    A folder with an `__init__.py`, or a file in one, is a package: its relative imports work. The folder that holds
    it is never put on `sys.path`.

    Raises:
        Exception: whatever its import raises; `AttributeError` if it has no such class.
    """
    module = _load(path)
    if not name:
        return module
    found = getattr(module, name, None)
    if found is None:
        public = [
            n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__
        ]
        raise AttributeError(f"{path} has no class {name!r}; it has: {', '.join(public) or 'none'}")
    return found


def _load(path: str) -> Any:
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return _package(path)
    folder, file = os.path.split(path)
    stem = os.path.splitext(file)[0]
    if os.path.exists(os.path.join(folder, "__init__.py")):
        package = _package(folder)
        return package if stem == "__init__" else importlib.import_module(f"{package.__name__}.{stem}")
    return _run(_private(stem), path, None)


def _package(folder: str) -> Any:
    name = _private(os.path.basename(folder))
    if name in sys.modules:
        return sys.modules[name]
    return _run(name, os.path.join(folder, "__init__.py"), [folder])


def _private(stem: str) -> str:
    return _PREFIX + "".join(c if c.isalnum() else "_" for c in stem)


def _run(name: str, path: str, search: Any) -> Any:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=search)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def call_with_known(function: Callable[..., Any], **arguments: Any) -> Any:
    """Calls with those of the arguments that it takes.

    `checkpoint`, if there is no parameter of that name, is not passed by position: a family says what it wants.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a class written in C
        return function()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**arguments)
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return function(**{name: value for name, value in arguments.items() if name in known})


def check_options(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Refuses, before anything is loaded, options that `function` does not take: misspelt, they would do nothing.

    Raises:
        TypeError: names them and what there is.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.name not in ("self", "checkpoint", "placement")]
    unknown = [name for name in options if name not in known and name not in OBEYED_ABOVE]
    if unknown:
        raise TypeError(
            f"{getattr(function, '__name__', function)} takes no option {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(known) or 'none'}"
        )


def methods_of(instance: Any) -> Dict[str, Callable[..., Any]]:
    """The public methods of an instance, or functions of a module; without `close`."""
    if isinstance(instance, types.ModuleType):
        found: Dict[str, Any] = {
            name: value
            for name, value in vars(instance).items()
            if inspect.isfunction(value) and value.__module__.split(".")[0] == instance.__name__.split(".")[0]
        }
    else:
        # A function kept as an attribute is a method; a model or tokenizer that can be called is not.
        names = [
            name for name, value in getattr(instance, "__dict__", {}).items() if inspect.isroutine(value)
        ]
        for base in type(instance).__mro__[:-1]:
            names += [name for name, value in vars(base).items() if not isinstance(value, property)]
        found = {name: getattr(instance, name) for name in names if not name.startswith("_")}
    hidden = {name for name in found if name.startswith("_")} | {"close"}
    return {
        name: value
        for name, value in found.items()
        if name not in hidden and callable(value) and not inspect.isclass(value)
    }


def streams(function: Callable[..., Any]) -> bool:
    """Whether it gives its result in pieces."""
    return inspect.isgeneratorfunction(inspect.unwrap(function))
