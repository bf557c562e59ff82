"""Hints are written once, as Python takes them; every command shows them as it takes them itself."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator.cli import call, env, matrix, run
from orchestrator.cli.wording import (
    ARGUMENTS,
    CLASS_OPTIONS,
    KEYWORD,
    file_keys,
    in_words_of,
    option_names,
)

PACKAGE = Path(call.__file__).parents[1]
NO_KEYWORDS = {"cpu", "seccomp", "systempaths"}
"""What looks like one: a budget (`cpu=60GiB`) and two words of a container's own options."""


@pytest.mark.parametrize(
    ("command", "hint", "told"),
    [
        (call.command, "raise timeout=", "raise --timeout"),
        (run.command, "raise timeout=", "raise timeout:"),
        (call.command, "replicas=2, or: more", "--replicas 2, or: more"),
        (call.command, "take python='3.10': it is here", "take --python 3.10: it is here"),
        (run.command, "take python='3.10'", "take python: '3.10'"),
        (call.command, "with_=['transformers==4.39.3']", "--with transformers==4.39.3"),
        (call.command, "sandbox=False, allow_ignored_keys=True", "--no-sandbox, --allow-ignored-keys"),
        (matrix.command, "allow_ignored_keys=True, dtype=auto", "--allow-ignored-keys, dtype: auto"),
        (run.command, "allow_ignored_keys=True", "allow_ignored_keys: true"),
        (call.command, "larger max_memory=, `max_memory: x`", "larger --max-memory, `max_memory: x`"),
        (matrix.command, "known: allow_ignored_keys, axes", "known: allow_ignored_keys, axes"),
        (call.command, "attn_implementation='sdpa'", "-o attn_implementation=sdpa"),
        (run.command, "attn_implementation='sdpa' (or 'eager')", "options: {attn_implementation: 'sdpa'} (or 'eager')"),
        (matrix.command, "sandbox=False, timeout=", "sandbox=False, timeout:"),
        (call.command, "give prompt= instead", "give prompt= instead"),
        (call.command, "--with 'numpy<2'", "--with 'numpy<2'"),
        (run.command, "--with a --with 'numpy<2'.", "with: ['a', 'numpy<2']."),
        (call.command, "numpy>=1.26,<2 or ORCHESTRATOR_OFFLINE=1", "numpy>=1.26,<2 or ORCHESTRATOR_OFFLINE=1"),
        (env.command, "raise timeout=", "raise timeout="),
        (None, "raise timeout=", "raise timeout="),
    ],
)  # fmt: skip
def test_a_hint_is_told_in_the_words_of_the_command(
    command: click.Command | None, hint: str, told: str
) -> None:
    assert in_words_of(command, hint) == told


def hints() -> Iterator[tuple[str, str]]:
    """Where a hint stands, and its text; of names in a hint what their module assigns to them."""
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        values = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "hint"
        ]
        used = {node.id for value in values for node in ast.walk(value) if isinstance(node, ast.Name)}
        values += [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and {name_of(target) for target in node.targets} & {*used, "hint"}
        ]
        for value in values:
            for part in ast.walk(value):
                if isinstance(part, ast.JoinedStr):
                    yield f"{file}:{part.lineno}", ast.unparse(part)[2:-1]
                elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield f"{file}:{part.lineno}", part.value
    table = tomllib.loads((PACKAGE / "diagnosis_table.toml").read_text(encoding="utf-8"))
    for entry in [*table["failure"], *table["trap"]]:
        yield f"diagnosis_table.toml: {entry['id']}", f"{entry['cause']} {entry['remedy']}"


def name_of(target: ast.expr) -> str:
    return (
        target.id
        if isinstance(target, ast.Name)
        else target.attr
        if isinstance(target, ast.Attribute)
        else ""
    )


def test_every_keyword_in_a_hint_is_known() -> None:
    options = set(option_names(call.command))
    found = {(match[1], where) for where, text in hints() for match in KEYWORD.finditer(text)}
    named = {name for name, _ in found}
    assert {
        "timeout",
        "replicas",
        "checkpoint",
        "sandbox",
        "attn_implementation",
    } <= named  # all are looked at
    known = (options & file_keys(run.command)) | CLASS_OPTIONS | ARGUMENTS | NO_KEYWORDS
    assert {place for place in found if place[0] not in known} == set()
    assert named >= CLASS_OPTIONS | ARGUMENTS, "no hint names it any more"


def test_a_keyword_in_a_hint_is_written_with_its_sign() -> None:
    """Of names alone nobody can tell whether a keyword is meant, or the key of some file."""
    names = "|".join(name for name in option_names(call.command) if "_" in name.rstrip("_"))
    bare = re.compile(rf"(?<![-\w.`'])({names})\b(?![=:])")
    assert [(where, text) for where, text in hints() if bare.search(text.partition("known: ")[0])] == []


def test_no_hint_repeats_itself_in_the_words_of_the_command_line() -> None:
    """Of an overlay alone `--with` is the common word; and a hint may name a whole command."""
    options = option_names(call.command)
    flags = {options[name][0] for name in file_keys(run.command) & set(options)} - {"--with"}
    outside = [
        (where, re.sub(r"`orchestrator [^`]*`", "", text))
        for where, text in hints()
        if f"{PACKAGE / 'cli'}/" not in where
    ]
    assert [(where, text) for where, text in outside if flags & set(re.findall(r"--[a-z-]+", text))] == []
