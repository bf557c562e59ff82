"""Reservations: seen by every coordinator of the machine, gone with their owner, corrected by what is true."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from orchestrator.devices import CPU, GIB, Holder, Inventory
from orchestrator.errors import PlacementError
from orchestrator.placement import Ledger, estimate_from_config, place
from orchestrator.placement.shapes import SHAPES
from orchestrator.settings import Settings

NEEDS = estimate_from_config(SHAPES["gemma-2b"], "float16", name="gemma-2b")


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Settings(home=tmp_path))


def machine(text="2x24GiB,cpu:64GiB"):
    return replace(Inventory.parse(text), imagined=False)


def reservation_of(**reserved):
    return SimpleNamespace(reservations=reserved, growth={})


def free(ledger, inventory):
    return [d.free for d in ledger.free(inventory).accelerators]


def test_a_reservation_is_taken_off_and_given_back(ledger):
    placement = place(NEEDS, machine())
    with ledger.reserve("gemma", placement):
        reduced = ledger.free(machine())
        assert reduced.accelerators[0].free == 24 * GIB - placement.shares[0].used
        assert reduced.accelerators[1].free == 24 * GIB
        held = reduced.accelerators[0].holders
        assert [(h.name, h.size, h.deployment) for h in held] == [("gemma", placement.shares[0].used, True)]
    assert free(ledger, machine()) == [24 * GIB, 24 * GIB]


def test_closing_twice_is_no_error(ledger):
    reservation = ledger.reserve("a", place(NEEDS, machine()))
    reservation.close()
    reservation.close()
    assert ledger.entries() == []


def test_what_a_second_model_is_told(ledger):
    with ledger.reserve("first", place(NEEDS, machine("9GiB"))), pytest.raises(PlacementError) as caught:
        place(NEEDS, ledger.free(machine("9GiB")))
    assert "first 8" in caught.value.message
    assert "with first evicted" in str(caught.value.hint)


def test_an_imagined_machine_has_no_reservations(ledger):
    with ledger.reserve("a", place(NEEDS, machine())):
        assert free(ledger, Inventory.parse("2x24GiB")) == [24 * GIB, 24 * GIB]


def test_after_the_load_only_what_is_still_to_come_is_taken_off(ledger):
    placement = place(NEEDS, machine())
    growth = placement.growth["imagined-0"]
    reservation = ledger.reserve("gemma", placement)
    reservation.correct({"imagined-0": 6 * GIB}, worker=4242)
    loaded = machine().with_devices([replace(
        machine().accelerators[0], free=18 * GIB, holders=(Holder("python", 6 * GIB, 4242), Holder("x", GIB, 7)))])  # fmt: skip
    device = ledger.free(loaded).accelerators[0]
    assert device.free == 18 * GIB - growth
    assert [h.name for h in device.holders] == ["gemma", "x"]  # its process is not told twice
    assert device.holders[0].size == 6 * GIB + growth
    grown = loaded.with_devices([replace(
        loaded.accelerators[0], free=17 * GIB, holders=(Holder("python", 6 * GIB + growth, 4242),))])  # fmt: skip
    assert ledger.free(grown).accelerators[0].free == 17 * GIB  # it holds all that it will


def test_on_the_cpu_the_workers_own_memory_is_read(ledger):
    placement = place(NEEDS, machine("cpu:64GiB"))
    reservation = ledger.reserve("gemma", placement)
    reservation.correct({}, worker=os.getpid())
    resident = psutil.Process().memory_info().rss
    left = ledger.free(machine("cpu:64GiB")).host.free
    assert left == pytest.approx(64 * GIB - placement.reservations[CPU] + resident, abs=64 * 2**20)


OWNER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from orchestrator.placement import Ledger
from orchestrator.settings import Settings
ledger = Ledger(Settings(home=Path(sys.argv[1])))
kept = [ledger.reserve(f"theirs-{i}", SimpleNamespace(reservations={"imagined-0": 2**30}, growth={}))
        for i in range(int(sys.argv[2]))]
print("ready", flush=True)
sys.stdin.read()
"""


def other(home, count):
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(home), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_coordinators_see_each_other_and_the_dead_are_cleaned(ledger, tmp_path):
    with other(tmp_path, 3) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            assert free(ledger, machine()) == [21 * GIB, 24 * GIB]
        finally:
            process.kill()
            process.wait(60)
    assert free(ledger, machine()) == [24 * GIB, 24 * GIB]


def test_nothing_is_lost_when_many_reserve_at_once(ledger, tmp_path):
    with other(tmp_path, 15) as one, other(tmp_path, 15) as two:
        threads = [
            threading.Thread(
                target=lambda: [ledger.reserve("mine", reservation_of(**{"imagined-0": 1})) for _ in range(5)]
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        try:
            for process in (one, two):
                assert process.stdout.readline() == "ready\n"
            assert len(ledger.entries()) == 45
        finally:
            for process in (one, two):
                process.kill()
                process.wait(60)


def test_a_pid_that_was_given_to_another_process_does_not_count(ledger):
    ledger.reserve("mine", reservation_of(**{"imagined-0": GIB}))
    rows = json.loads(ledger.path.read_text())
    rows[0]["started"] -= 1000
    ledger.path.write_text(json.dumps(rows))
    assert ledger.entries() == []


@pytest.mark.parametrize("text", ["", "not json", '{"a": 1}', '[{"id": 1}]', "[1]"])
def test_a_damaged_file_is_no_obstacle(ledger, text):
    ledger.path.write_text(text)
    assert ledger.entries() == []
    ledger.reserve("mine", reservation_of(**{"imagined-0": GIB}))
    assert [e.name for e in ledger.entries()] == ["mine"]


def test_held_keeps_others_out_between_looking_and_reserving(ledger, tmp_path):
    with ledger.held(), other(tmp_path, 1) as process:
        ledger.reserve("mine", reservation_of(**{"imagined-0": GIB}))
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.7)
            assert [e.name for e in ledger.entries()] == ["mine"]
        finally:
            process.kill()
            process.wait(60)


def test_a_lock_that_is_never_given_back_is_an_error_with_words(tmp_path):
    holder, waiting = Ledger(Settings(home=tmp_path)), Ledger(Settings(home=tmp_path), lock_timeout=0.1)
    with holder.held(), pytest.raises(PlacementError, match="locked"):
        waiting.entries()
    assert waiting.entries() == []


def test_a_file_that_cannot_be_written_refuses_new_places_and_holds_up_no_end(ledger, tmp_path):
    held = ledger.reserve("a", reservation_of(**{"imagined-0": 4 * GIB}))
    (tmp_path / f"ledger.json.{os.getpid()}").mkdir()  # where a new version is written
    held.correct({"imagined-0": 5 * GIB})
    assert free(ledger, machine()) == [20 * GIB, 24 * GIB]
    held.close()
    assert free(ledger, machine()) == [24 * GIB, 24 * GIB]
    with pytest.raises(PlacementError, match="cannot be written: Is a directory"):
        ledger.reserve("b", reservation_of(**{"imagined-0": GIB}))
