"""Hints are written as Python takes it, `keyword=value`; here they become what the command that runs takes."""

from __future__ import annotations

import ast
import re
import shlex

import click

__all__ = ["ARGUMENTS", "CLASS_OPTIONS", "KEYWORD", "WORKFLOW_KEYS", "in_words_of", "option_names"]

KEYWORD = re.compile(
    r"(?<![-\w.])(?P<name>[a-z]\w*)=(?!=)(?P<value>'[^']*'|\[[^\]]*\]|[\w.+/:-]*\w)?"
    r"|(?<![-\w.`])(?P<bare>[a-z]+(?:_[a-z]+)+)\b(?![(=])"
)
"""A keyword with its value or with none (`timeout=`), or a name that can be no English word (`max_memory`)."""

OVERLAYS = re.compile(r"--with (?:'[^']*'|[\w.-]+)(?: --with (?:'[^']*'|[\w.-]+))*")
"""Of an overlay hints speak as the command line does, which says more in fewer signs."""

CLASS_OPTIONS = {"attn_implementation", "entailment"}
"""What hints name of a family's class: `call` takes it by `--option`, a workflow under `options`."""

ARGUMENTS = {
    "inputs_embeds", "messages", "prompt", "return_token_type_ids", "strict", "use_cache", "video_fps",
}  # fmt: skip
"""What hints name of a method: written as in Python by `call` too."""

WORKFLOW_KEYS = {
    "allow_ignored_keys", "checkpoint", "device_map", "devices", "dtype", "max_memory", "python", "replicas", "sandbox",
    "timeout", "trust_remote_code", "with_",
}  # fmt: skip
"""What the files of `run`, `matrix` and `bisect` have a key for, in Python's spelling."""

FILE_COMMANDS = ("bisect", "matrix", "run")


def in_words_of(command: click.Command | None, hint: str) -> str:
    """A hint with each keyword as the command's option or as its file's key; others stay as they are."""
    options = {} if command is None else option_names(command)
    of_file = command is not None and command.name in FILE_COMMANDS
    takes_options = "options" in options

    def words(found: re.Match[str]) -> str:
        name, value = found["name"] or found["bare"], found["value"]
        if name in options and name != "options":
            return _as_option(*options[name], value)
        if of_file and name in WORKFLOW_KEYS | CLASS_OPTIONS:
            key = name.rstrip("_")
            return key if found["bare"] else f"{key}: {_as_yaml(value)}".rstrip(" ")
        if takes_options and name in CLASS_OPTIONS and value:
            return f"-o {name}={_unquoted(value)}"
        return found[0]

    told = KEYWORD.sub(words, hint)
    return OVERLAYS.sub(_as_list, told) if of_file else told


def option_names(command: click.Command) -> dict[str, tuple[str, str]]:
    """The command's long options by Python's name, each with what turns it off (empty where nothing does)."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.name is not None:
            off = option.secondary_opts[-1] if option.secondary_opts else ""
            found[option.name] = (max(option.opts, key=len), off)
    return found


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
