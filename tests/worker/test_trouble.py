"""Exceptions as text, also those that resist."""

from __future__ import annotations

from orchestrator.worker.context import Placement, cancelled, progress
from orchestrator.worker.limits import MAX_TEXT
from orchestrator.worker.trouble import describe_error
from orchestrator.worker.wire import encode


def caught(function):
    try:
        function()
    except BaseException as error:
        return describe_error(error)
    raise AssertionError


def test_chain_notes_and_lineage():
    def fail():
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise OSError("second")  # noqa: B904
        except OSError as error:
            problem = FileNotFoundError("third")
            problem.add_note("a note")
            raise problem from error

    account = caught(fail)
    assert account["type"] == "FileNotFoundError"
    assert account["lineage"][:2] == ["OSError", "Exception"]
    assert account["notes"] == ["a note"]
    assert [cause["message"] for cause in account["causes"]] == ["second", "'first'"]
    assert "third" in account["traceback"]
    encode(account)


class Resisting(Exception):
    def __str__(self):
        raise RuntimeError


def test_an_exception_whose_message_cannot_be_made():
    def fail():
        raise Resisting

    assert "could not be made" in caught(fail)["message"]


def test_long_and_broken_text_is_cut_and_mended():
    def fail():
        raise ValueError("\udcff" + "x" * 10 * MAX_TEXT)

    account = caught(fail)
    assert len(account["message"]) < MAX_TEXT + 100
    assert "left out" in account["message"]
    encode(account)


def test_a_chain_that_bites_its_tail():
    def fail():
        error = ValueError("x")
        error.__cause__ = other = TypeError("y")
        other.__cause__ = error
        raise error

    assert [cause["type"] for cause in caught(fail)["causes"]] == ["TypeError"]


def test_outside_of_a_worker_nothing_happens():
    progress("x", 1, 2)
    assert not cancelled()


def test_placements():
    placement = Placement(device="cuda:0", devices=["GPU-1"], more=1)
    assert (placement.device, placement.devices, placement.dtype, placement.more) == (
        "cuda:0",
        ("GPU-1",),
        "auto",
        1,
    )
    assert Placement().max_memory is not Placement().max_memory
