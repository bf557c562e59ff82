"""The torch layer: an explicit build, else a CPU build where there is no driver, else what fits the driver."""

from __future__ import annotations

import pytest

from orchestrator.environments import torch_layer as module
from orchestrator.errors import ResolutionError


@pytest.fixture
def cuda(machine):
    """A build as the registry has it, for CUDA 12."""
    machine.wheel("torch", "2.5.0", requires=["nvidia-cublas-cu12", "sympy"])
    machine.wheel("nvidia-cublas-cu12", "12.1")
    machine.wheel("sympy", "1.14")


@pytest.fixture
def cpu(machine):
    machine.wheel("torch", "2.5.0+cpu", requires=["sympy"])
    machine.wheel("sympy", "1.14")


@pytest.fixture
def driver(monkeypatch):
    """Sets the newest CUDA of the machine's driver."""
    return lambda version: monkeypatch.setattr(module, "cuda_driver", lambda: version)


@pytest.fixture
def family(machine):
    return machine.declare("family", ["torch==2.5.0"])


def test_without_a_driver_the_cpu_build_is_taken(machine, cuda, cpu, family):
    environment = machine.ensure(family)
    assert environment.versions["torch"] == "2.5.0+cpu"
    assert environment.torch_backend == "cpu"
    assert "nvidia-cublas-cu12" not in environment.versions


def test_without_a_driver_cuda_is_never_installed(machine, cuda, family):
    with pytest.raises(ResolutionError) as caught:
        machine.ensure(family)
    assert "no cpu build of torch==2.5.0" in caught.value.message
    assert "there is no NVIDIA driver here" in caught.value.message
    assert "ORCHESTRATOR_TORCH_BACKEND=cpu" in caught.value.hint
    assert not machine.leftovers()


def test_a_plain_build_that_brings_no_cuda_is_a_cpu_build(machine, family):
    machine.wheel("torch", "2.5.0")
    assert machine.ensure(family).versions["torch"] == "2.5.0"


def test_with_a_driver_the_build_that_fits_it_is_taken(machine, cuda, family, driver):
    driver("12.4")
    environment = machine.ensure(family)
    assert environment.versions["torch"] == "2.5.0"
    assert environment.versions["nvidia-cublas-cu12"] == "12.1"
    assert environment.torch_backend == "cuda"


def test_a_driver_that_is_too_old_is_told(machine, cuda, family, driver, monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    driver("11.8")
    with pytest.raises(ResolutionError) as caught:
        machine.ensure(family)
    assert "needs CUDA 12, and the driver here ends at CUDA 11.8" in caught.value.message
    assert "ORCHESTRATOR_TORCH_BACKEND" in caught.value.hint


def test_an_explicit_backend_goes_before_the_machine(machine, cuda, cpu, family, driver):
    driver("12.4")
    assert machine.with_settings(torch_backend="cpu").ensure(family).versions["torch"] == "2.5.0+cpu"


def test_the_users_setting_goes_before_the_familys(machine, cuda, cpu, driver):
    machine.wheel("torch", "2.5.0+cu121")
    driver("12.4")
    family = machine.declare("family", ["torch==2.5.0"], orchestrator='torch-backend = "cu121"')
    assert machine.ensure(family).versions["torch"] == "2.5.0+cu121"
    assert machine.with_settings(torch_backend="cpu").ensure(family).versions["torch"] == "2.5.0+cpu"


def test_a_range_takes_the_newest_cpu_build_at_hand(machine, cuda, cpu):
    machine.wheel("torch", "2.6.0", requires=["nvidia-cublas-cu12", "sympy"])
    machine.wheel("torch", "2.4.0+cpu", requires=["sympy"])
    family = machine.declare("family", ["torch>=2.4"])
    assert machine.ensure(family).versions["torch"] == "2.5.0+cpu"


def test_torch_that_only_comes_along_is_chosen_too(machine, cuda, cpu):
    machine.wheel("accelerate", "1.0", requires=["torch>=2"])
    assert machine.ensure(machine.declare("family", ["accelerate"])).versions["torch"] == "2.5.0+cpu"


def test_torchvision_without_a_cpu_build_is_installed_when_the_family_asks(machine, cpu):
    machine.wheel("torchvision", "0.20", requires=["torch==2.5.0"])
    family = machine.declare("family", ["torch==2.5.0", "torchvision"])
    versions = machine.ensure(family).versions
    assert (versions["torch"], versions["torchvision"]) == ("2.5.0+cpu", "0.20")


def test_what_only_this_build_needs_is_installed_beside_the_lock(machine):
    machine.wheel("torch", "2.5.0", requires=["sympy"])
    machine.wheel("torch", "2.5.0+cpu", requires=["sympy", "special"])
    machine.wheel("sympy", "1.14")
    machine.wheel("special", "1.0")
    family = machine.declare("family", ["torch==2.5.0"])
    assert machine.ensure(family).versions["special"] == "1.0"


def test_the_choice_is_made_once(machine, cpu, family, monkeypatch):
    first = machine.ensure(family)
    monkeypatch.setattr(module, "compile_requirements", None)  # calling it would fail
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert machine.store.find(family) == first


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({"torch": "torch==2.5.0+cu118"}, 11),
        ({"torch": "torch==2.5.0+cu126"}, 12),
        ({"torch": "torch==2.13.0", "nvidia-cudnn-cu13": "x"}, 13),
        ({"torch": "torch==2.5.0+cpu"}, None),
    ],
)
def test_the_cuda_of_a_build_is_read_off_its_name_and_requirements(blocks, expected):
    assert module._cuda_of(blocks) == expected
