"""Damage is found, told with its reach, and repaired even where uv's cache has it too."""

from __future__ import annotations

import os
import shutil

import pytest

from orchestrator.environments.environment import site_packages
from orchestrator.errors import InstallError


@pytest.fixture
def environment(machine):
    machine.wheel("model", "1.0", files={"model/__init__.py": "x = 1\n", "model/other.py": "y = 2\n"})
    return machine.ensure(machine.declare("family", ["model"]))


def test_a_whole_environment(machine, environment):
    result = machine.store.verify(environment)
    assert result.ok
    assert result.files >= 8
    assert result.bytes > 100


def test_a_missing_module_and_a_truncated_file(machine, environment):
    site = site_packages(environment.path)
    (site / "model" / "other.py").unlink()
    os.truncate(site / "msgpack" / "unused.py", 0)
    (site / "zmq" / "unused.py").write_text("changed = True\n")
    result = machine.store.verify(environment)
    found = {
        (fault.distribution, fault.kind, fault.file.split("site-packages/")[1]) for fault in result.faults
    }
    assert found == {("model", "missing", "model/other.py"), ("pyzmq", "changed", "zmq/unused.py")}


def test_truncation_is_found(machine, environment):
    os.truncate(site_packages(environment.path) / "model" / "other.py", 2)
    (fault,) = machine.store.verify(environment).faults
    assert (fault.kind, fault.shared) == ("changed", True)


def test_a_distribution_without_its_record(machine, environment):
    shutil.rmtree(next(site_packages(environment.path).glob("model-*.dist-info")))
    (fault,) = machine.store.verify(environment).faults
    assert (fault.distribution, fault.kind) == ("model", "missing")


def test_the_probe_finds_what_no_hash_shows(machine, environment):
    hiding = site_packages(environment.path) / "hiding.pth"  # Debian's Python has a sitecustomize of its own
    hiding.write_text("import sys; sys.modules['model'] = None\n")
    result = machine.store.verify(environment)
    assert not result.faults
    assert "model cannot be imported" in result.probe_error
    assert not result.ok
    assert machine.store.verify(environment, probe=False).ok


def test_repair_brings_back_what_was_deleted(machine, environment):
    (site_packages(environment.path) / "model" / "other.py").unlink()
    repaired = machine.store.repair(environment)
    assert repaired.path == environment.path
    assert machine.store.verify(repaired).ok
    assert not machine.leftovers()


def test_repair_mends_the_cache_that_shares_the_damage(machine, environment):
    """Files are hard links: what is written into one environment is in uv's cache and in all others."""
    machine.wheel("helper", "1")
    twin = machine.ensure(machine.declare("twin", ["model", "helper"]))
    other = site_packages(environment.path) / "model" / "other.py"
    with other.open("r+") as file:
        file.write("z")
    assert [fault.shared for fault in machine.store.verify(twin).faults] == [True]
    assert machine.store.verify(machine.store.repair(environment)).ok
    assert machine.store.verify(machine.store.repair(twin)).ok


def test_an_environment_with_a_damaged_record_is_refused(machine, environment):
    marker = environment.path / "orchestrator.json"
    marker.write_text(marker.read_text().replace("model==1.0", "model==6.6"))
    with pytest.raises(InstallError, match="is damaged"):
        machine.store.repair(environment)
