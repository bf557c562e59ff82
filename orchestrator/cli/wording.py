"""Hints are written as Python takes it, `keyword=value`; here they become what the command that runs takes."""

from __future__ import annotations

import ast
import re
import shlex

import click

__all__ = ["ARGUMENTS", "CLASS_OPTIONS", "KEYWORD", "file_keys", "in_words_of", "option_names"]

KEYWORD = re.compile(r"(?<![-\w.])([a-z]\w*)=(?!=)('[^']*'|\[[^\]]*\]|[\w.+/:-]*\w)?")
"""A keyword with its value or with none (`timeout=`). A bare name stays: it may be the key of some file."""

OVERLAYS = re.compile(r"--with (?:'[^']*'|[\w.-]+)(?: --with (?:'[^']*'|[\w.-]+))*")
"""Of an overlay hints speak as the command line does, which says more in fewer signs."""

CLASS_OPTIONS = {"attn_implementation", "entailment"}
"""What hints name of a family's class: `call` takes it by `--option`, a workflow under `options`."""

ARGUMENTS = {
    "inputs_embeds", "messages", "prompt", "return_token_type_ids", "strict", "use_cache", "video_fps",
}  # fmt: skip
"""What hints name of a method: written as in Python by `call` too."""


def in_words_of(command: click.Command | None, hint: str) -> str:
    """A hint with each keyword as the command's option or as its file's key; others stay as they are."""
    options = {} if command is None else option_names(command)
    keys = set() if command is None else file_keys(command)

    def words(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name in options and name != "options":
            return _as_option(*options[name], value)
        if name in keys:
            return f"{name.rstrip('_')}: {_as_yaml(value)}".rstrip(" ")
        if name in CLASS_OPTIONS and keys and value:
            return f"options: {{{name}: {_as_yaml(value)}}}"
        if name in CLASS_OPTIONS and "options" in options and value:
            return f"-o {name}={_unquoted(value)}"
        return found[0]

    told = KEYWORD.sub(words, hint)
    return OVERLAYS.sub(_as_list, told) if keys else told


def option_names(command: click.Command) -> dict[str, tuple[str, str]]:
    """The command's long options by Python's name, each with what turns it off (empty where nothing does)."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.name is not None:
            off = option.secondary_opts[-1] if option.secondary_opts else ""
            found[option.name] = (max(option.opts, key=len), off)
    return found


def file_keys(command: click.Command) -> set[str]:
    """What the file that the command reads has keys for, in Python's spelling; empty where it reads none."""
    if command.name == "run":
        from orchestrator.workflow.schema import Model, Step

        return {*Model.__struct_fields__, *Step.__struct_fields__}
    if command.name in ("bisect", "matrix"):
        from orchestrator.matrix.schema import LOADING, MatrixFile

        return {*MatrixFile.__struct_fields__, *LOADING}
    return set()


def _as_option(name: str, off: str, value: str | None) -> str:
    if value is None or value == "True":
        return name
    if value == "False":
        return off or name
    return f"{name} {shlex.quote(_unquoted(value))}"


def _unquoted(value: str) -> str:
    """A text without its quotes; of a list its first entry."""
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return str(read[0] if isinstance(read, list) and read else read)


def _as_yaml(value: str | None) -> str:
    if value in ("True", "False"):
        return value.lower()
    return value or ""


def _as_list(found: re.Match[str]) -> str:
    texts = [word for word in shlex.split(found[0]) if word != "--with"]
    return f"with: [{', '.join(map(repr, texts))}]"
