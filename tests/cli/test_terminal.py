"""Live progress and what is printed share a terminal: neither may spoil the other."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from terminal import on_terminal

from orchestrator.cli import console as console_module
from orchestrator.cli.console import Console, ConsoleHandler
from orchestrator.cli.live import LiveProgress
from orchestrator.events import Event

MODEL = """
# /// script
# dependencies = ["numpy==2.2.6"]
# ///
import time


class Model:
    def say(self):
        for n in range(8):
            time.sleep(0.15)  # longer than progress takes from one drawing to the next
            yield f"word{n} "

    def answer(self):
        return "forty-two"
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path


def after_the_last_escape(text: str) -> str:
    """What nothing could wipe out any more: the text after the last sequence, its own letters left out."""
    return text.rpartition("\x1b")[2].partition("h" if "\x1b[?25h" in text else "K")[2].lstrip("\r")


def test_a_streamed_text_is_not_wiped_out(model: Path) -> None:
    code, text = on_terminal("call", f"{model}:Model.say", "--stream")
    assert code == 0
    assert "load my_model" in text  # progress was live
    assert after_the_last_escape(text) == "".join(f"word{n} " for n in range(8)) + "\n"


def test_a_result_stands_on_a_line_of_its_own(model: Path, tmp_path: Path) -> None:
    _, text = on_terminal("call", f"{model}:Model.answer", columns=40)
    assert after_the_last_escape(text) == "forty-two\n"
    _, text = on_terminal("call", f"{model}:Model.answer", stdout=tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "forty-two\n"
    assert "forty-two" not in text


def test_talk_and_log_records_go_above_the_live_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    console = Console()
    monkeypatch.setattr(LiveProgress, "say", lambda _, text: said.append(text))
    monkeypatch.setattr(console_module.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    record = logging.LogRecord("somewhere", logging.WARNING, "", 0, "told [%s]", ("so",), None)
    with console.progress() as listener:
        listener(Event("load", "x", "loading"))
        console.talk("a word")
        ConsoleHandler(console).handle(record)
    assert said == ["a word", "told [so]"]
