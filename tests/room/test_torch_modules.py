"""After a load: nothing on meta, the map and the memory told; tensors on two devices named with their module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import Orchestrator, Settings
from orchestrator.deployments import Deployment
from orchestrator.environments import Catalog
from orchestrator.errors import DeviceMismatch, LoadError, RemoteError
from orchestrator.scheduling import Call
from orchestrator.specification import Specification

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def load(settings: Settings, catalog: Catalog) -> Iterator[Callable[..., Deployment]]:
    """Loads the class in `torch_models.py` in the environment of a family that has torch."""
    with Orchestrator(settings=settings) as orc:
        family = replace(
            catalog.get("causal-lm"), worker_file=HERE / "torch_models.py", worker_class="Torchy"
        )
        environment = orc.environments.ensure(family)
        names = iter(range(100))

        def load(**options: object) -> Deployment:
            what = Specification(
                f"torchy-{next(names)}", family, environment, None, options, device_map="cpu"
            )
            return orc._coordinator._deploy(what)

        yield load


@pytest.fixture(scope="module")
def torchy(load: Callable[..., Deployment]) -> Deployment:
    return load()


def test_the_load_report_tells_where_everything_is_and_what_it_takes(torchy: Deployment) -> None:
    report = torchy.report
    assert report is not None
    assert report.devices == {"loaded.language": "cpu", "loaded.towers.0": "cpu"}
    weights = 8 * 4 + 3 * (4 * 4 + 4 + 4) + (2 * 2 + 2)  # the tied head once
    assert report.memory["cpu"]["model"] == 4 * weights
    assert 0 < report.memory["cpu"]["used"] < report.memory["cpu"]["total"]


def test_what_is_left_on_meta_is_an_error_that_names_it(load: Callable[..., Deployment]) -> None:
    with pytest.raises(LoadError, match="2 parameters and buffers have no memory after loading") as caught:
        load(meta="layers.2.linear")
    assert caught.value.remote_type.endswith("LeftOnMeta")
    assert (
        "loaded.language.layers.2.linear.weight, loaded.language.layers.2.linear.bias" in caught.value.message
    )
    assert "orchestrator place" in (caught.value.hint or "")


def test_what_accelerate_offloads_on_purpose_is_no_error(torchy: Deployment) -> None:
    assert torchy.call(Call("offloaded")) == {"meta": True, "map": {"net": "cpu"}}


def test_two_devices_in_one_operation_are_named_with_the_module(torchy: Deployment) -> None:
    with pytest.raises(DeviceMismatch) as caught:
        torchy.call(Call("spread_and_run"))
    assert caught.value.details["module"] == "loaded.language.layers.1"
    assert sorted(caught.value.details["devices"]) == ["cpu", "meta"]
    assert "in loaded.language.layers.1" in caught.value.message
    with pytest.raises(RemoteError) as other:
        torchy.call(Call("plain_mistake"))
    assert type(other.value) is RemoteError


def test_inputs_go_to_the_first_layers_device(torchy: Deployment) -> None:
    assert torchy.call(Call("bring")) == {"x": "meta", "more": ["meta"], "plain": 3}


def test_results_come_home(torchy: Deployment) -> None:
    assert torchy.call(Call("run")).shape == (2, 8)


def test_torch_takes_the_threads_of_the_placement(torchy: Deployment) -> None:
    placement = torchy.replicas[0].placement
    assert placement is not None
    assert torchy.call(Call("thread_count")) == placement.threads
