"""Any plain class or function of a user's file, in any environment."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, List, Optional


def load(checkpoint: Optional[str] = None, *, placement: Any, target: str, **options: Any) -> Any:
    """The object whose public methods the client calls.

    `target` is "/path/file.py:Class" (an instance of it, made with the options that its `__init__` takes),
    "/path/file.py:function" (called by its own name) or "/path/file.py" (all its public functions). The file's folder
    is importable, as when Python runs the file itself.
    """
    path, name = split_target(target)
    module = load_file(path)
    if not name:
        return functions_of(module)
    found = getattr(module, name, None)
    if inspect.isclass(found):
        return build(found, dict(options, checkpoint=checkpoint, placement=placement), set(options))
    if callable(found):
        refuse_unused(target, set(options), [])
        return SimpleNamespace(**{name: found})
    own = [
        key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    public = ", ".join(sorted(key for key in own if not key.startswith("_"))) or "nothing"
    raise AttributeError(f"{path} has no class or function {name!r}; it has {public}")


class Python:
    """The face of `load` for a catalog that wants a class."""

    def __new__(cls, checkpoint: Optional[str] = None, *, placement: Any, target: str, **options: Any) -> Any:
        return load(checkpoint, placement=placement, target=target, **options)

    @staticmethod
    def self_test() -> Dict[str, Any]:
        """Builds a class from a file and calls it."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "adder.py")
            with open(path, "w", encoding="utf-8") as file:
                file.write("class Adder:\n    def __init__(self, start): self.sum = start\n")
                file.write("    def add(self, x):\n        self.sum += x\n        return self.sum\n")
            total = load(placement=None, target=path + ":Adder", start=40).add(2)
        return {"ok": total == 42, "max_abs": abs(total - 42), "tolerance": 0}


def split_target(target: str) -> tuple[str, str]:
    path, colon, name = target.rpartition(":")
    if not colon or name.endswith(".py") or os.sep in name:
        path, name = target, ""
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"target {target!r}: there is no file {os.path.abspath(path)}")
    return os.path.abspath(path), name


def load_file(path: str) -> ModuleType:
    """The file as a module of its own name, so that its objects can be pickled by its own children."""
    name = os.path.splitext(os.path.basename(path))[0]
    sys.path.insert(0, os.path.dirname(path))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def build(made: Callable[..., Any], offered: Dict[str, Any], given: set[str]) -> Any:
    """An instance, with those of `offered` that its constructor takes; `given` ones that it does not take are errors."""
    parameters = inspect.signature(made).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return made(**offered)
    known = [key for key in parameters if key not in ("checkpoint", "placement")]
    refuse_unused(getattr(made, "__qualname__", str(made)), given - set(parameters), known)
    return made(**{name: value for name, value in offered.items() if name in parameters})


def refuse_unused(target: str, options: set[str], known: List[str]) -> None:
    if options:
        names = ", ".join(sorted(options))
        raise TypeError(f"{target} takes no option {names}; it takes {', '.join(known) or 'none'}")


def functions_of(module: ModuleType) -> SimpleNamespace:
    """The module's own public functions (not those it imported)."""
    return SimpleNamespace(
        **{
            name: value
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        }
    )
