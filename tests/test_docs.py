"""All pages: their Python compiles, their links lead somewhere, their commands have the options that they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from orchestrator.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    )
}
EACH_PAGE = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, languages: str) -> list[str]:
    return re.findall(rf"```(?:{languages})\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words after `orchestrator`, of lines in blocks and of what stands in the text."""
    lines = re.findall(
        r"^(?:\$ |\w+=\S+ )*orchestrator (.*)$", "\n".join(blocks(page, "sh|bash|console")), re.MULTILINE
    )
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    quoted = re.findall(rf"`(?:orchestrator )?((?:{'|'.join(COMMANDS)})(?: [^`]+)?)`", prose)
    return [shlex.split(line.split("…")[0], comments=True) for line in [*lines, *quoted]]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@EACH_PAGE
def test_python_compiles(page: str) -> None:
    for code in blocks(page, "python"):
        compile(code, page, "exec")


@EACH_PAGE
def test_links_lead_somewhere(page: str) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PAGES[page]):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}#{anchor}"


@EACH_PAGE
def test_commands_and_their_options_exist(page: str) -> None:
    for words in commands(page):
        parse(cli, words)


def parse(command: click.Command, words: list[str]) -> None:
    """Raises for a command or an option that does not exist; files need not."""
    context = click.Context(command)
    _, rest, _ = command.make_parser(context).parse_args(list(words))
    if rest and isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, words
        parse(found, rest[1:])
