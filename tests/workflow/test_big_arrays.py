"""Arrays that are larger than what the coordinator may hold: from worker to worker, into the cache and out of it."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import FakeModels

from orchestrator.worker.wire import RawTensor
from orchestrator.workflow import Workflow
from orchestrator.workflow.cache import Cache
from orchestrator.workflow.pieces import pieces, write_npy

STEPS = """
import os
import numpy as np

class Maker:
    def make(self, megabytes, k):
        return {"a": np.full((megabytes, 1 << 20), k, np.uint8), "b": np.arange(10)}

class Taker:
    def total(self, a, k):
        a[0, 0] = 0  # its own: what others see of it stays as it was
        return [int(a[:, ::4096].sum(dtype=np.int64)), int(a.nbytes)]
    def end(self, a, k):
        if k == 2 and not os.path.exists("ended"):
            open("ended", "w").close()
            os._exit(3)
        return int(a[-1, -1])
"""

BIG = """
version: 1
name: big
in_flight: 2
inputs:
  n: {type: list, default: [1, 2]}
models:
  maker: {family: ./steps.py:Maker, with: ["numpy==1.26.4"]}
  taker: {family: ./steps.py:Taker, with: ["numpy==1.26.4"]}
steps:
  - {id: big, for_each: "${n}", model: maker, call: make, with: {megabytes: 256, k: "${item}"}}
  - {id: total, for_each: "${n}", model: taker, call: total, cache: CACHED, with: {a: "${big.a}", k: "${item}"}}
  - {id: last, for_each: "${n}", model: taker, call: end, on_error: {retry: 2, then: stop}, cache: false,
     with: {a: "${big.a}", k: "${item}"}}
outputs: {total: "${total}", last: "${last}"}
"""

SCRIPT = """
import gc, json, re, sys, time
from pathlib import Path
from orchestrator import Orchestrator
from orchestrator.workflow import Workflow
from orchestrator.workflow.cache import Cache, CacheMemory
from orchestrator.workflow.identity import Identifier

def megabytes(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

with Orchestrator() as orc:
    memory = CacheMemory(Cache(Path("cache"), 1 << 40), Identifier(orc))
    execution = Workflow.read("big.yaml").start(orc, out="out", again=True, memory=memory)
    unload, execution.roster.unload = execution.roster.unload, lambda: None
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    run = execution.run()
    peak = megabytes("VmHWM") - before
    links = [s.model._deployment.replicas[0].link for s in execution.roster.seats.values() if s.model is not None]
    execution.engine.scope = None
    del execution.scope.outcomes
    gc.collect()
    deadline = time.monotonic() + 60
    while (left := sum(link._post.views.held + link._post.pool.lent for link in links)) and time.monotonic() < deadline:
        time.sleep(0.05)
    unload()
    rows = [[row["total"], row["last"]] for row in run.results()]
    print(json.dumps({"peak": peak, "rows": rows, "left": left}))
"""

EXPECTED = [[[k * (65536 - 1), 256 << 20], k] for k in (1, 2)]


THREE = """
version: 1
name: w
in_flight: 3
inputs: {n: {type: list}}
models: {m: {family: one, concurrency: 4}}
steps:
  - {id: a, for_each: "${n}", model: m, call: make, with: {x: "${item}"}}
  - {id: b, for_each: "${n}", model: m, call: grow, with: {a: "${a}"}}
  - {id: c, for_each: "${n}", model: m, call: total, with: {a: "${b}"}}
outputs: {c: "${c}"}
"""


def coordinate(here: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=here, check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_arrays_pass_between_workers_without_the_coordinators_memory(here: Path) -> None:
    (here / "steps.py").write_text(STEPS)
    (here / "script.py").write_text(SCRIPT)
    (here / "big.yaml").write_text(BIG.replace("CACHED", "true"))
    first = coordinate(
        here
    )  # made, lent on, hashed and written; a worker dies once with an array in its hands
    assert first["rows"] == EXPECTED
    assert (here / "ended").exists()
    assert first["left"] == 0
    (here / "big.yaml").write_text(BIG.replace("CACHED", "false"))
    second = coordinate(here)  # read and lent on
    assert second["rows"] == EXPECTED
    assert max(first["peak"], second["peak"]) < 128, "the coordinator held an array of 256 MB"


def test_only_the_items_in_flight_have_their_arrays_alive(here: Path) -> None:
    gone: list[int] = []
    made: list[int] = []
    most = 0

    class Tracked(np.ndarray):
        """An array whose end is noticed."""

    def make(x: int) -> Any:
        nonlocal most
        array = np.full(1000, x).view(Tracked)
        weakref.finalize(array, gone.append, x)
        made.append(x)
        most = max(most, len(made) - len(gone))
        return array

    class Forgetful(list[Any]):
        def append(self, _: Any) -> None:
            """The fake's log would keep every argument."""

    models = FakeModels(
        one={"make": make, "grow": lambda a: make(int(a[0]) + 1), "total": lambda a: int(a.sum())}
    )
    models.log = Forgetful()
    done = Workflow.parse(THREE).run(models, inputs={"n": list(range(60))}, out=here / "out")
    assert [row["c"] for row in done.results()] == [1000 * (x + 1) for x in range(60)]
    assert len(made) == 120
    assert most <= 3 * 2 + 4  # two arrays for each of three items; what four threads hold for a moment longer


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24).reshape(4, 6)),
        np.arange(100).reshape(10, 10)[::2, ::3],
        np.array(3.5),
        np.zeros((0, 4)),
        np.array(["a", "bc"]),
        np.array(["2026-01-01"], "M8[D]"),
        np.broadcast_to(np.arange(3), (5, 3)),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_pieces_are_the_arrays_bytes(array: np.ndarray, tmp_path: Path) -> None:
    assert b"".join(map(bytes, pieces(array, 16))) == array.tobytes()
    with (tmp_path / "a.npy").open("wb") as stream:
        write_npy(stream, array)
    found = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    cache = Cache(tmp_path / "cache", 1 << 30)
    padding = np.zeros(1 << 16, np.uint8)  # makes it large enough for a file
    assert cache.put("k" * 40, [array, padding, {"x": array}], 0.0, "x")
    (value, _) = cache.get("k" * 40) or ([], 0)
    np.testing.assert_array_equal(value[0], array)
    np.testing.assert_array_equal(value[2]["x"], array)
    cache.close()


def test_tensors_that_numpy_does_not_know_are_cached_and_written(tmp_path: Path) -> None:
    from orchestrator.workflow.values import digest, plain

    raw = RawTensor("bfloat16", np.array([[0x3F80, 0x4000]], np.uint16))
    cache = Cache(tmp_path, 1 << 30)
    assert cache.put("k" * 40, {"t": raw}, 0.0, "x")
    (value, _) = cache.get("k" * 40) or ({}, 0)
    assert (value["t"].dtype, value["t"].data.tolist()) == ("bfloat16", raw.data.tolist())
    assert plain({"t": raw}) == {"t": [[1.0, 2.0]]}
    assert digest(raw) == digest(RawTensor("bfloat16", raw.data.copy())) != digest(raw.data)
    cache.close()
