"""Interpreters that are there already: used as they are, or lending their torch; changed never."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from orchestrator.environments.environment import site_packages
from orchestrator.environments.uv import find_uv
from orchestrator.errors import InstallError, InterpreterNotFound, ResolutionError


@pytest.fixture
def vendor(machine):
    """An image's Python: a torch that no index has, and other things that must not leak."""
    folder = machine.root / "vendor"
    wheels = machine.root / "vendor-wheels"
    wheels.mkdir()
    here = machine.wheels
    machine.wheel(
        "torch", "2.5.0+nv24", files={"torch/__init__.py": "", "torchgen/x.py": "", "torch/lib/a.so": "x"}
    )
    machine.wheel("torchvision", "0.20", requires=["torch"])
    machine.wheel("nvidia-cublas-cu12", "12.9", files={"nvidia/cublas/lib/b.so": "y"})
    machine.wheel("leak", "1.0")
    subprocess.run([find_uv(), "venv", "-q", "--python", sys.executable, folder], check=True)
    subprocess.run(
        [find_uv(), "pip", "install", "-q", "--no-index", "--find-links", here, "--python", folder / "bin" / "python",
         "torch", "torchvision", "nvidia-cublas-cu12", "leak", "pyzmq", "msgpack", "numpy"],
        check=True, env={**os.environ, "UV_LINK_MODE": "copy"},
    )  # fmt: skip
    for name in ("torch-2.5.0+nv24", "torchvision", "nvidia_cublas", "leak"):
        for wheel in here.glob(f"{name}*.whl"):
            wheel.rename(wheels / wheel.name)
    return folder / "bin" / "python"


def snapshot(python):
    root = python.parents[1]
    return {str(path): path.lstat().st_mtime_ns for path in sorted(root.rglob("*"))}


def test_a_family_runs_in_an_interpreter_that_exists(machine, vendor):
    before = snapshot(vendor)
    family = machine.declare("family", ["torch>=2.5", "leak"], orchestrator=f'python = "{vendor}"')
    environment = machine.ensure(family)
    assert environment.python == vendor
    assert environment.borrowed
    assert environment.versions["torch"] == "2.5.0+nv24"
    assert machine.store.find(family) == environment
    assert machine.store.list() == []
    assert snapshot(vendor) == before
    with pytest.raises(InstallError, match="is not ours"):
        machine.store.repair(environment)


def test_what_it_lacks_is_told_and_not_installed(machine, vendor):
    before = snapshot(vendor)
    family = machine.declare("family", ["torch==2.6.0", "absent"], orchestrator=f'python = "{vendor}"')
    with pytest.raises(InstallError) as caught:
        machine.ensure(family)
    assert (
        "torch==2.6.0 is wanted and 2.5.0+nv24 is installed; absent is not installed" in caught.value.message
    )
    assert "-m pip install 'torch==2.6.0' 'absent'" in caught.value.hint
    assert snapshot(vendor) == before


def test_it_must_work(machine, vendor):
    (site_packages(vendor.parents[1]) / "leak" / "__init__.py").write_text("import nothing\n")
    family = machine.declare("family", ["leak"], orchestrator=f'python = "{vendor}"')
    with pytest.raises(InstallError, match="leak cannot be imported"):
        machine.ensure(family)


@pytest.mark.parametrize(
    ("python", "requires", "words"),
    [("/no/such/python", ">=3.8", "there is no interpreter"), ("/bin/cat", ">=3.8", "is not a usable Python"),
     ("vendor", "==3.8.*", "needs Python ==3.8")],
)  # fmt: skip
def test_it_must_be_a_python_that_the_family_allows(machine, vendor, python, requires, words):
    path = vendor if python == "vendor" else python
    family = machine.declare("family", python=requires, orchestrator=f'python = "{path}"')
    with pytest.raises(InterpreterNotFound, match=words):
        machine.ensure(family)


def test_a_change_in_it_is_noticed(machine, vendor):
    family = machine.declare("family", ["leak"], orchestrator=f'python = "{vendor}"')
    machine.ensure(family)
    site = site_packages(vendor.parents[1])
    shutil.rmtree(next(site.glob("leak-*.dist-info")))
    with pytest.raises(InstallError, match="leak is not installed"):
        machine.store.find(family)


@pytest.fixture
def borrower(machine, vendor):
    """Locked where torch came from an index; this machine borrows."""
    machine.wheel("torch", "2.5.0")
    return machine.with_settings(torch_backend=f"borrow:{vendor}")


def test_torch_is_borrowed_and_nothing_else_leaks(borrower, machine, vendor):
    before = snapshot(vendor)
    machine.wheel("model", "1.0", requires=["torch"])
    environment = borrower.ensure(machine.declare("family", ["torch>=2.5", "model"]))
    assert environment.versions["torch"] == "2.5.0+nv24"
    assert environment.versions["nvidia-cublas-cu12"] == "12.9"
    assert "leak" not in environment.versions
    assert "torchvision" not in environment.versions
    site = site_packages(environment.path)
    assert (site / "torch" / "lib" / "a.so").samefile(
        site_packages(vendor.parents[1]) / "torch" / "lib" / "a.so"
    )
    assert (site / "nvidia" / "cublas" / "lib" / "b.so").exists()
    assert not (site / "leak").exists()
    assert borrower.store.find(machine.catalog.get("family")) == environment
    assert borrower.store.verify(environment).ok
    assert {
        path: stamp for path, stamp in snapshot(vendor).items() if "lib/a.so" in path
    }.items() <= before.items()
    assert set(snapshot(vendor)) == set(before)


def test_a_family_that_needs_torchvision_borrows_it_too(borrower, machine):
    machine.wheel("torchvision", "0.20")
    assert "torchvision" in borrower.ensure(machine.declare("family", ["torch", "torchvision"])).versions


def test_another_torch_in_the_lender_is_another_environment(borrower, machine, vendor):
    family = machine.declare("family", ["torch>=2.5"])
    first = borrower.ensure(family)
    record = next(site_packages(vendor.parents[1]).glob("torch-*.dist-info/RECORD"))
    text = record.read_text()
    record.unlink()  # its other name is in the first environment
    record.write_text(text + "torch/new.py,,\n")
    (record.parents[1] / "torch" / "new.py").touch()
    second = borrower.ensure(family)
    assert second.id != first.id
    assert (site_packages(second.path) / "torch" / "new.py").exists()


def test_a_lender_that_does_not_fit_is_refused(borrower, machine, vendor):
    machine.wheel("torch", "2.6.0")
    with pytest.raises(ResolutionError, match=r"needs torch==2\.6\.0, and .* has 2\.5\.0\+nv24"):
        borrower.ensure(machine.declare("family", ["torch==2.6.0"]))
    record = next(site_packages(vendor.parents[1]).glob("torch-*.dist-info/RECORD"))
    record.unlink()
    with pytest.raises(InstallError, match="has no RECORD"):
        borrower.ensure(machine.declare("family", ["torch==2.5.0"]))


def test_a_lender_that_lost_a_file_is_refused(borrower, machine, vendor):
    (site_packages(vendor.parents[1]) / "torch" / "lib" / "a.so").unlink()
    with pytest.raises(InstallError, match="cannot be borrowed"):
        borrower.ensure(machine.declare("family", ["torch"]))
    assert not borrower.leftovers()
