"""What may go, why, what stays because it is in use, and what that frees."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from orchestrator.environments.sizes import scan

MEGABYTE = "x" * 1_000_000


@pytest.fixture
def two(machine):
    """Two environments; their big file is shared with uv's cache."""
    machine.wheel("model", "1.0", files={"model/__init__.py": "", "model/data.txt": MEGABYTE})
    machine.wheel("model", "2.0", files={"model/__init__.py": "", "model/data.txt": MEGABYTE})
    old = machine.ensure(machine.declare("old", ["model==1.0"]))
    new = machine.ensure(machine.declare("new", ["model==2.0"]))
    long_ago = time.time() - 100 * 86400
    os.utime(machine.home / "state" / "used" / f"{old.id}.json", (long_ago, long_ago))
    return old, new


def test_shared_and_own_bytes_are_told_apart(machine, two):
    size = scan([two[0].path]).size()
    assert size.shared > 1_000_000
    assert 0 < size.own < 300_000
    copied = machine.ensure(machine.declare("copy", ["model==1.0"], orchestrator='link-mode = "copy"'))
    assert scan([copied.path]).size().own > 1_000_000


def test_a_file_that_only_the_counted_folders_share_is_their_own(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "f").write_text(MEGABYTE)
    os.link(tmp_path / "a" / "f", tmp_path / "b" / "f")
    assert scan([tmp_path / "a"]).size().own == 0
    both = scan([tmp_path / "a", tmp_path / "b"]).size()
    assert both.own == both.total >= 1_000_000


def test_by_age(machine, two):
    old, new = two
    pruned = machine.store.prune(older_than=30 * 86400)
    assert [c.environment.id for c in pruned.candidates] == [old.id]
    assert pruned.candidates[0].reason == "not used for 100 days"
    assert [environment.id for environment in machine.store.list()] == [new.id]


def test_a_dry_run_changes_nothing(machine, two):
    pruned = machine.store.prune(older_than=0, dry_run=True)
    assert len(pruned.candidates) == 2
    assert pruned.freed > 0
    assert len(machine.store.list()) == 2


def test_a_dry_run_tells_of_unfinished_builds_too(machine, two):
    half = machine.store.folder / f".building-{'0' * 16}-half"
    half.mkdir()
    (half / "part").write_bytes(bytes(100_000))
    told = machine.store.prune(dry_run=True)
    assert (told.leftovers, told.freed >= 100_000, half.exists()) == ((half,), True, True)
    assert machine.store.prune().freed == told.freed
    assert not half.exists()


def test_what_it_says_it_frees_is_freed(machine, two):
    promised = machine.store.prune(older_than=0, dry_run=True).freed
    before = scan([machine.home / "environments"]).size().own
    assert machine.store.prune(older_than=0).freed == promised
    after = scan([machine.home / "environments"]).size().own
    assert before - after == promised


def test_by_size_the_least_recently_used_goes_first(machine):
    copy = 'link-mode = "copy"'
    machine.wheel("model", "1.0", files={"model/__init__.py": "", "model/data.txt": MEGABYTE})
    machine.wheel("model", "2.0", files={"model/__init__.py": "", "model/data.txt": MEGABYTE})
    one = machine.ensure(machine.declare("one", ["model==1.0"], orchestrator=copy))
    two = machine.ensure(machine.declare("two", ["model==2.0"], orchestrator=copy))
    os.utime(machine.home / "state" / "used" / f"{two.id}.json", (1, 1))
    assert machine.store.prune(max_bytes=10_000_000).candidates == ()
    assert [c.environment.id for c in machine.store.prune(max_bytes=1_500_000).candidates] == [two.id]
    assert [environment.id for environment in machine.store.list()] == [one.id]


def test_what_no_family_wants_any_more(machine, two):
    old, new = two
    variant = machine.ensure(machine.catalog.get("new", ["model==1.0"]))
    assert variant.id == old.id  # the variant of one family is what the other asks for
    machine.declare("old", ["model==2.0"])
    assert machine.store.prune(machine.catalog, dry_run=True).candidates == ()
    os.remove(machine.project / "envs" / "new" / "pyproject.toml")
    (candidate,) = machine.store.prune(machine.catalog).candidates
    assert (candidate.environment.id, candidate.reason) == (old.id, "no family wants it any more")
    assert [environment.id for environment in machine.store.list()] == [new.id]


def test_what_a_process_runs_in_stays(machine, two):
    old, _ = two
    process = subprocess.Popen([old.python, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        pruned = machine.store.prune(older_than=30 * 86400)
        assert pruned.candidates[0].held_by == (process.pid,)
        assert pruned.freed == 0
        assert old.path.exists()
    finally:
        process.communicate()
    assert machine.store.prune(older_than=30 * 86400).freed > 0
    assert not old.path.exists()


def test_what_an_environment_leaves_elsewhere_goes_too(machine, two):
    old, _ = two
    old.modules_cache.mkdir(parents=True)
    confined = machine.home / "sandbox" / old.id  # what its sandboxed workers kept
    confined.mkdir(parents=True)
    machine.store.prune(older_than=0)
    assert not old.modules_cache.exists()
    assert not confined.exists()
    assert not list((machine.home / "bytecode").rglob("*.pyc"))
    assert not list((machine.home / "state" / "used").iterdir())
