"""The environments of the main job for real: three versions of transformers that cannot be one."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from orchestrator.environments import Environment
from orchestrator.environments.driver import cuda_driver
from orchestrator.environments.plan import make_plan
from orchestrator.environments.sizes import scan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
VERSIONS = ("4.36.2", "4.39.3", "5.23.0")
SHOW = (
    "import json, torch, numpy, transformers; from transformers.models.bert.modeling_bert import BertModel; "
    "print(json.dumps([transformers.__version__, numpy.__version__, torch.__version__, float(torch.ones(3).sum())]))"
)


@pytest.fixture(scope="module")
def families(catalog):
    return [catalog.get("sentence-embedding", [f"transformers=={version}"]) for version in VERSIONS]


@pytest.fixture(scope="module")
def environments(store, families):
    built = store.ensure_all(families)
    assert all(isinstance(environment, Environment) for environment in built), built
    return built


def test_each_has_its_transformers_and_the_numpy_that_suits_it(environments):
    for version, environment in zip(VERSIONS, environments, strict=True):
        done = subprocess.run(
            [environment.python, "-I", "-c", SHOW], capture_output=True, text=True, check=True
        )
        transformers, numpy, torch, total = json.loads(done.stdout.splitlines()[-1])
        assert (transformers, total) == (version, 3.0)
        assert numpy.startswith("1." if version.startswith("4") else "2.")
        assert environment.versions["torch"] == torch


def test_a_machine_without_a_gpu_has_no_cuda(environments):
    if cuda_driver():
        pytest.skip("there is an NVIDIA driver here")
    for environment in environments:
        assert not [name for name in environment.versions if name.startswith(("nvidia-", "cuda-"))]
        assert environment.versions["torch"].endswith("+cpu")


def test_they_are_found_at_once(store, families, environments):
    for family, environment in zip(families, environments, strict=True):
        seconds = []
        for _ in range(10):
            started = time.perf_counter()
            assert store.find(family) == environment
            seconds.append(time.perf_counter() - started)
        assert min(seconds) < 0.030  # a loaded machine does not count


def test_they_cost_less_than_half_of_three_copies(environments):
    sizes = [scan([environment.path]).size() for environment in environments]
    together = scan([environment.path for environment in environments]).size()
    assert together.total <= 0.5 * sum(size.total for size in sizes)


def test_they_are_whole(store, environments):
    for environment in environments:
        result = store.verify(environment)
        assert result.ok, (result.faults[:5], result.probe_error)


def test_the_plan_says_why_they_are_three(settings, families):
    plan = make_plan(settings, families)
    assert len(plan.environments) == 3
    assert {clash.package for clash in plan.clashes} == {"transformers"}
    assert len(plan.clashes) == 3
