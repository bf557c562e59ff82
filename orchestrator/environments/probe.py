"""The import probe: what the family needs is imported once, in the environment, before anybody relies on it.

It finds what no resolver sees (a missing system library, a truncated file, two packages that agree on paper only),
and leaves the byte code of exactly what is imported: starting without it costs 2.5 times as long, and compiling
everything costs 30 times the installation.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.environments.commands import run_command
from orchestrator.environments.recipe import Recipe
from orchestrator.environments.requirements import name_of
from orchestrator.errors import InstallError
from orchestrator.events import Event, Listener

__all__ = ["probe", "probe_targets"]

TIMEOUT = 900.0
WIRE_MODULES = ("msgpack", "numpy", "zmq")
DROPPED = ("PYTHON", "UV_", "PIP_", "CONDA_", "VIRTUAL_ENV", "__PYVENV")
SCRIPT = """
import importlib, sys
for target in sys.argv[1:]:
    print("target", target, flush=True)
    parts, module, rest = target.split("."), None, []
    while parts:
        try:
            module = importlib.import_module(".".join(parts))
            break
        except ModuleNotFoundError as error:
            if len(parts) == 1 or error.name is None or not target.startswith(error.name):
                raise
            rest.insert(0, parts.pop())
    for name in rest:
        module = getattr(module, name)
"""


def probe(
    python: Path, sites: Sequence[Path], recipe: Recipe, work: Path, listener: Listener, *, write: bool = True
) -> None:
    """Imports the recipe's targets with an environment's interpreter, whose packages are in `sites`.

    Without `write` no byte code is left: the interpreter is somebody else's.

    Raises:
        InstallError: one cannot be imported; `log` holds its traceback.
    """
    targets = probe_targets(sites, recipe)
    listener(Event("environment", recipe.label, f"importing {', '.join(targets)}"))
    try:
        done = run_command(
            [str(python), "-I", *([] if write else ["-B"]), "-c", SCRIPT, *targets],
            environ=_environment(recipe, work),
            cwd=work,
            say=lambda _: None,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(
            f"{recipe.label}: importing {', '.join(targets)} did not end within {TIMEOUT:g} s",
            hint="a module that waits for a network or a device at import cannot be used in a worker",
        ) from None
    if done.returncode == 0:
        return
    done_targets = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("target ")]
    at = done_targets[-1] if done_targets else "the interpreter"
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    last = lines[-1].strip() if lines else f"the interpreter ended with {done.returncode}"
    raise InstallError(
        f"{recipe.label} was installed, but {at} cannot be imported: {last}",
        hint=_remedy(last),
        log=done.stderr,
    )


def probe_targets(sites: Sequence[Path], recipe: Recipe) -> list[str]:
    """The dotted names to reach: the family's own list, else the modules of its direct dependencies."""
    if recipe.probe:
        return [*WIRE_MODULES, *recipe.probe]
    modules = {name: found for site in reversed(sites) for name, found in top_modules(site).items()}
    named = [module for name in recipe.direct for module in modules.get(name, [])]
    return list(dict.fromkeys([*WIRE_MODULES, *named]))


def top_modules(site: Path) -> dict[str, list[str]]:
    """Distribution -> the modules that its users import: those that look like its name, else its first public one."""
    result: dict[str, list[str]] = {}
    for info in site.glob("*.dist-info"):
        name = name_of(info.name.removesuffix(".dist-info").rpartition("-")[0])
        found = _declared(info) or _recorded(info)
        alike = [module for module in found if module.replace("_", "-").lower() == name]
        public = [module for module in found if module.isidentifier() and not module.startswith("_")]
        result[name] = alike or public[:1]
    return result


def _declared(info: Path) -> list[str]:
    try:
        return (info / "top_level.txt").read_text(encoding="utf-8").split()
    except OSError:
        return []


def _recorded(info: Path) -> list[str]:
    found: dict[str, None] = {}
    try:
        lines = (info / "RECORD").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        parts = line.partition(",")[0].split("/")
        if len(parts) == 2 and parts[1] == "__init__.py":
            found[parts[0]] = None
        elif len(parts) == 1 and parts[0].endswith(".py"):
            found[parts[0][:-3]] = None
    return list(found)


def _environment(recipe: Recipe, work: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
    return {
        **kept,
        **recipe.variables,
        "HF_MODULES_CACHE": str(work / "modules"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TQDM_DISABLE": "1",
    }


def _remedy(last: str) -> str:
    remedies: Sequence[tuple[str, str]] = (
        ("cannot open shared object file", "a system library is missing: install the package that holds it"),
        ("GLIBC_", "a wheel was built for a newer system than this one"),
        ("NumPy 1.x cannot be run", "add 'numpy<2' to the family's dependencies"),
        ("_ARRAY_API not found", "add 'numpy<2' to the family's dependencies"),
        (
            "torchvision::nms",
            "torchvision's build is not that of torch: leave it out, or take both from one index",
        ),
        ("No module named 'pkg_resources'", "add 'setuptools<81' to the family's dependencies"),
        ("No module named", "add the package that holds this module to the family's dependencies"),
    )
    return next(
        (words for mark, words in remedies if mark in last),
        "`orchestrator env repair` rebuilds from fresh files",
    )
