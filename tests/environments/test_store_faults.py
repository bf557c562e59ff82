"""What goes wrong while an environment is made: each has its typed error, uv's words kept, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest

from orchestrator.environments import interpreters
from orchestrator.environments.interpreters import find_interpreter
from orchestrator.environments.lock import make_lock
from orchestrator.environments.records import write_text
from orchestrator.errors import InstallError, InterpreterNotFound, ProvisioningError

STAGES = {
    "venv made": "b._install = kill",
    "installed": "b._check = kill",
    "checked": "b.bytecode.reuse = kill",
    "before the marker": "b._mark = kill",
    "before the probe": "import orchestrator.environments.store as s; s.run_probe = kill",
    "before the rename": "import orchestrator.environments.store as s; s.os.rename = kill",
}


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_at_any_stage(machine, stage):
    family = machine.declare("family")
    process = machine.start(
        "import orchestrator.environments.build as b\ndef kill(*_): os.kill(os.getpid(), 9)\n"
        f"{STAGES[stage]}\nstore.ensure(family('family'))"
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert machine.leftovers()
    assert machine.store.find(family) is None
    assert machine.store.list() == []
    machine.ensure(family)
    assert not machine.leftovers()


def test_kill_9_between_taking_the_old_one_away_and_the_rename(machine):
    family = machine.declare("family")
    environment = machine.ensure(family)
    process = machine.start(
        "import orchestrator.environments.store as s\ndef kill(*_): os.kill(os.getpid(), 9)\n"
        "real = os.rename\n"
        "def rename(a, b): real(a, b) if 'discarded' in str(b) else kill()\n"
        "s.os.rename = rename\nstore.repair(store.list()[0])"
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert machine.store.find(family) is None
    assert machine.ensure(family).path == environment.path


def test_a_missing_interpreter_is_named_with_those_that_are_there(machine):
    with pytest.raises(InterpreterNotFound) as caught:
        machine.ensure(machine.declare("family", python="==3.29.*"))
    here = find_interpreter(machine.settings, ">=3.8")
    assert here.version in caught.value.message
    assert f"python='{here.minor}'" in caught.value.hint
    assert "`uv python install 3.29`" in caught.value.hint
    assert "ORCHESTRATOR_PYTHON_DOWNLOADS" in caught.value.hint
    assert caught.value.exit_code == 3


def test_a_python_that_no_worker_runs_on_is_not_to_be_installed(machine):
    with pytest.raises(InterpreterNotFound) as caught:
        find_interpreter(machine.settings, "==3.7.*", minor="3.11")
    assert "3.8 or later" in caught.value.hint
    assert "python install" not in caught.value.hint


def test_a_preferred_python_outside_of_the_range_is_not_downloaded(machine, monkeypatch):
    asked = []

    def run_uv(_, arguments, **options):
        asked.append(arguments)
        return subprocess.CompletedProcess(arguments, 2, "", "no such Python")

    monkeypatch.setattr(interpreters, "run_uv", run_uv)
    monkeypatch.setattr(interpreters, "installed_interpreters", lambda *_, **__: [])
    with pytest.raises(InterpreterNotFound):
        find_interpreter(machine.with_settings(python_downloads=True).settings, "==3.29.*", minor="3.11")
    assert asked == [["python", "install", "==3.29.*"]]


def test_a_broken_wheel(machine):
    wheel = machine.wheel("model", "1.0", files={"model/__init__.py": "x = 1\n" * 10_000})
    family = machine.declare("family", ["model"])
    machine.ensure(family)
    damage(wheel)
    other = machine.with_settings(home=machine.root / "other")
    subprocess.run(["rm", "-rf", os.environ["UV_CACHE_DIR"]], check=True)
    with pytest.raises(InstallError) as caught:
        other.ensure(family)
    assert "model" in caught.value.log
    assert not other.leftovers()


@pytest.mark.parametrize(
    "path", ["../../../../escaped", "../../../../../../escaped", "/tmp/escaped-by-a-test"]
)
def test_a_wheel_writes_nothing_outside_its_environment(machine, path):
    machine.wheel("evil", "1.0", files={"evil/__init__.py": "", path: "evil"})
    family = machine.declare("family", ["evil"])
    with contextlib.suppress(ProvisioningError):
        machine.ensure(family)
    assert not [found for found in machine.root.rglob("*escaped*") if "uv-cache" not in str(found)]
    assert not Path("/tmp/escaped-by-a-test").exists()


def damage(wheel: Path) -> None:
    """Changes bytes in the middle of a member; the directory of the archive stays readable."""
    with zipfile.ZipFile(wheel) as archive:
        at = archive.getinfo("model/__init__.py").header_offset + 60
    data = bytearray(wheel.read_bytes())
    data[at : at + 20] = b"\xff" * 20
    wheel.write_bytes(data)


def test_a_wheel_that_is_not_the_locked_one(machine):
    machine.wheel("model", "1.0")
    family = machine.declare("family", ["model"])
    machine.ensure(family)
    machine.wheel("model", "1.0", files={"model/__init__.py": "changed = True\n"})
    subprocess.run(["rm", "-rf", os.environ["UV_CACHE_DIR"], machine.home / "environments"], check=True)
    with pytest.raises(InstallError, match="Hash mismatch"):
        machine.ensure(family)
    assert not machine.leftovers()


def test_what_installs_but_cannot_be_imported(machine):
    machine.wheel("model", "1.0", files={"model/__init__.py": "import missing_thing\n"})
    with pytest.raises(InstallError) as caught:
        machine.ensure(machine.declare("family", ["model"]))
    assert (
        "model cannot be imported: ModuleNotFoundError: No module named 'missing_thing'"
        in caught.value.message
    )
    assert "Traceback" in caught.value.log
    assert "add the package" in caught.value.hint
    assert not machine.leftovers()
    assert machine.store.list() == []


def test_an_import_that_ends_the_process(machine):
    machine.wheel(
        "model", "1.0", files={"model/__init__.py": "import os, signal\nos.kill(os.getpid(), 11)\n"}
    )
    with pytest.raises(InstallError, match="model cannot be imported: the interpreter ended with -11"):
        machine.ensure(machine.declare("family", ["model"]))


def test_an_import_that_never_ends(machine, monkeypatch):
    monkeypatch.setattr("orchestrator.environments.probe.TIMEOUT", 0.5)
    machine.wheel("model", "1.0", files={"model/__init__.py": "import time\ntime.sleep(60)\n"})
    with pytest.raises(InstallError, match="did not end within"):
        machine.ensure(machine.declare("family", ["model"]))


def test_garbage_on_stdout_at_import_does_no_harm(machine):
    machine.wheel(
        "model", "1.0", files={"model/__init__.py": "print('x' * 200_000)\nprint('target nothing')\n"}
    )
    assert machine.ensure(machine.declare("family", ["model"]))


def test_what_was_installed_must_fit_together(machine):
    """The lock was made with another build of torch, which needs less."""
    machine.wheel("torch", "2.5.0", requires=["sympy"])
    machine.wheel("sympy", "1.14")
    machine.wheel("sympy", "2.0")
    family = machine.declare("family", ["torch==2.5.0"], uv='constraint-dependencies = ["sympy<2"]')
    interpreter = find_interpreter(machine.settings, ">=3.8")
    write_text(family.lock_file, make_lock(machine.settings, family, interpreter).text)
    machine.wheel("torch", "2.5.0+cpu", requires=["sympy>=2"])
    with pytest.raises(InstallError, match="does not fit together") as caught:
        machine.ensure(family)
    assert "sympy>=2" in caught.value.log
    assert not machine.leftovers()


def test_an_override_is_meant(machine):
    machine.wheel("model", "1.0", requires=["helper<2"])
    machine.wheel("helper", "2.0")
    family = machine.declare("family", ["model"], uv='override-dependencies = ["helper==2.0"]')
    assert machine.ensure(family).versions["helper"] == "2.0"


def test_an_index_that_goes_away_after_locking(machine, monkeypatch):
    machine.wheel("model", "1.0")
    family = machine.declare("family", ["model"])
    machine.ensure(family)
    subprocess.run(["rm", "-rf", os.environ["UV_CACHE_DIR"], machine.home / "environments"], check=True)
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(InstallError, match="the index does not answer"):
        machine.ensure(family)
    with pytest.raises(InstallError, match="not in the cache, and the network may not be asked"):
        machine.with_settings(offline=True).ensure(family)


def test_offline_works_from_the_cache(machine, monkeypatch):
    machine.wheel("model", "1.0")
    family = machine.declare("family", ["model"])
    machine.ensure(family)
    subprocess.run(["rm", "-rf", machine.home / "environments"], check=True)
    assert machine.with_settings(offline=True).ensure(family)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here: not root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a keeper may still be ending


def test_a_full_disk(machine, small_disk):
    noise = {"model/__init__.py": "", "model/data.bin": "x" * 8_000_000}
    machine.wheel("model", "1.0", files=noise)
    family = machine.declare("family", ["model"])
    with pytest.raises(InstallError) as caught:
        machine.with_settings(home=small_disk / "home").ensure(family)
    assert "No space left on device" in str(caught.value)
    assert "prune" in caught.value.hint
    assert not machine.with_settings(home=small_disk / "home").leftovers()


def test_a_disk_that_is_full_already(machine, small_disk):
    home = small_disk / "home"
    home.mkdir()
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(InstallError) as caught:
        machine.with_settings(home=home).ensure(machine.declare("family"))
    assert "No space left on device" in str(caught.value)


def test_a_store_that_cannot_be_written(machine):
    blocked = machine.root / "file"
    blocked.touch()
    with pytest.raises(InstallError, match="cannot be written"):
        machine.with_settings(home=blocked / "home").ensure(machine.declare("family"))


def test_uv_that_is_not_there(machine, monkeypatch):
    monkeypatch.setattr("orchestrator.environments.uv.find_uv", lambda: str(machine.root / "no-uv"))
    with pytest.raises(InstallError):
        machine.ensure(machine.declare("family"))
