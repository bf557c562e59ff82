"""`orchestrator checkpoint tiny`: small random checkpoints in published layouts, made without any environment."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import click

from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.environments.catalog import builtin_root
from orchestrator.errors import ConfigError

__all__ = ["styles", "tiny"]

Maker = Callable[[Path, int], None]


@click.command("tiny", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("style", required=False)
@click.argument("folder", metavar="DIR", required=False, type=click.Path(path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other weights.")
@click.option("--force", is_flag=True, help="Replace DIR if it exists.")
@json_option
@pass_console
def tiny(console: Console, style: str | None, folder: Path | None, seed: int, force: bool) -> None:
    """Make a tiny checkpoint of STYLE in DIR, which must not exist yet; without arguments, list the styles.

    The layout is the published one (names, shards, tokenizer, processor files); the weights are random, so answers mean
    nothing. What loads it loads the real one.

    \b
      orchestrator checkpoint tiny minigemini-7b ./tiny-7b
      orchestrator call auto generate --checkpoint ./tiny-7b prompt='What is this?' max_new_tokens=8
    """
    known = styles()
    if style is None:
        _list(console, known)
        return
    if style not in known:
        near = get_close_matches(style, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no style {style!r}", hint=f"{hint}styles are {', '.join(sorted(known))}")
    if folder is None:
        raise ConfigError("DIR is missing", hint=f"orchestrator checkpoint tiny {style} ./tiny-{style}")
    _make(known[style], folder, seed, force)
    if console.json_output:
        console.json({"style": style, "path": str(folder), "seed": seed, "bytes": _size(folder)})
    else:
        console.talk(
            f"{style} with random weights (seed {seed}), {_size(folder) / 1e6:.1f} MB: its answers mean nothing"
        )
        console.data(str(folder))


def styles() -> dict[str, Maker]:
    """What makes each style, from the `STYLES` of every module in `workers/tiny_checkpoints`."""
    from orchestrator.worker.tiny import load_styles

    found: dict[str, Maker] = {}
    for module in sorted((builtin_root() / "workers" / "tiny_checkpoints").glob("*.py")):
        found.update(load_styles(module))
    return found


def _list(console: Console, known: dict[str, Maker]) -> None:
    if console.json_output:
        console.json(sorted(known))
    else:
        console.table(["STYLE"], [[name] for name in sorted(known)])


def _make(make: Maker, folder: Path, seed: int, force: bool) -> None:
    """Into a folder beside the destination, which takes its place when it is whole."""
    if folder.exists() and not force and (folder.is_file() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists and is not empty", hint="choose another DIR, or --force to replace it"
        )
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir(parents=True)
        make(half, seed)
        _remove(folder)
        half.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
