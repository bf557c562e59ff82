"""What is remembered, what is computed again, and that a cache never gives a wrong value."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conditions import until
from fake_models import FakeModels

from orchestrator.environments import Catalog
from orchestrator.errors import WorkflowError
from orchestrator.workflow import Run, Workflow
from orchestrator.workflow.cache import SMALL, Cache, CacheMemory
from orchestrator.workflow.calls import Job
from orchestrator.workflow.identity import Identifier, code_of
from orchestrator.workflow.scope import Outcome

TEXT = """
version: 1
name: w
inputs:
  words: {type: list, default: [a, bb, ccc]}
  prompt: {type: text, default: say}
models:
  first: {family: one, checkpoint: "pypi:weights==1", options: {k: 1}}
  second: {family: two}
steps:
- {id: size, model: first, call: size, for_each: "${words}", with: {x: "${item}"}}
- {id: said, model: second, call: say, for_each: "${words}", with: {x: "${size}", prompt: "${prompt}"}}
- {id: all, call: collect, with: {values: "${said}"}}
"""


class House:
    """A cache in a folder, and what was called."""

    def __init__(self, folder: Path) -> None:
        self.cache = Cache(folder / "results", 10**8)
        self.families: dict[str, dict[str, Callable[..., Any]]] = {
            "one": {"size": len_of},
            "two": {"say": lambda x, prompt: f"{prompt} {x}"},
        }
        self.models = FakeModels(**self.families)

    def run(self, text: str = TEXT, *, fresh: bool = False, **arguments: Any) -> tuple[Run, list[str]]:
        built, worker, revision = self.models.built, self.models.worker_file, self.models.revision
        self.models = FakeModels(**self.families)
        self.models.built.update(built)
        self.models.worker_file, self.models.revision = worker, revision
        memory = CacheMemory(self.cache, Identifier(self.models), fresh=fresh)
        done = Workflow.parse(text).run(self.models, memory=memory, **arguments)
        return done, sorted(f"{method}:{kwargs['x']}" for _, method, kwargs in self.models.log)


@pytest.fixture
def house(here: Path) -> Iterator[House]:
    made = House(here)
    yield made
    made.cache.close()


def test_a_second_run_computes_nothing_and_loads_nothing(house: House) -> None:
    first, calls = house.run()
    assert calls == ["say:1", "say:2", "say:3", "size:a", "size:bb", "size:ccc"]
    second, calls = house.run()
    assert calls == []
    assert house.models.loads == []
    assert (second.folder / "results.jsonl").read_text() == (first.folder / "results.jsonl").read_text()
    assert second.record["steps"]["said"]["cached"] == 3
    assert second.record["models"]["first"]["environment"]["id"] == "env-one"
    assert "env-one" in second.report.read_text()


@pytest.mark.parametrize(
    ("old", "new", "calls"),
    [
        ("default: say}", "default: tell}", ["say:1", "say:2", "say:3"]),
        ("default: [a, bb, ccc]}", "default: [a, bb, dddd]}", ["say:4", "size:dddd"]),
        ("options: {k: 1}", "options: {k: 2}", ["size:a", "size:bb", "size:ccc"]),
        ("weights==1", "weights==2", ["size:a", "size:bb", "size:ccc"]),
        ("pypi:weights==1", "hf:a/b@" + "0" * 40, ["size:a", "size:bb", "size:ccc"]),
        ("family: one,", "family: one, dtype: float16,", ["size:a", "size:bb", "size:ccc"]),
        ("name: w", "name: other", []),
    ],
)
def test_a_change_recomputes_only_what_depends_on_it(
    house: House, old: str, new: str, calls: list[str]
) -> None:
    house.run()
    assert old in TEXT
    assert house.run(TEXT.replace(old, new))[1] == calls


def test_another_environment_or_family_code_is_another_result(house: House, tmp_path: Path) -> None:
    house.run()
    house.models.built["one"] = "env-new"
    assert house.run()[1] == ["size:a", "size:bb", "size:ccc"]
    code = tmp_path / "worker.py"
    code.write_text("one = 1")
    house.models.worker_file = code
    assert len(house.run()[1]) == 6
    assert house.run()[1] == []
    code.write_text("one = 2")
    assert len(house.run()[1]) == 6


def test_of_our_own_code_only_what_a_family_imports_counts(
    house: House, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orchestrator.worker

    ours = here / "worker"
    shutil.copytree(str(orchestrator.worker.__path__[0]), ours)
    monkeypatch.setattr(orchestrator.worker, "__path__", [str(ours)])
    code = here / "family.py"
    code.write_text(
        "from orchestrator.worker import progress\nfrom orchestrator.worker.images import load_image\n"
    )
    house.models.worker_file = code
    assert len(house.run()[1]) == 6
    for name in ("segments", "channel", "inference", "tiny"):
        (ours / f"{name}.py").write_text("changed = 1")
    assert house.run()[1] == []
    (ours / "images.py").write_text("from orchestrator.worker.inference import CPU")
    assert len(house.run()[1]) == 6
    (ours / "inference.py").write_text("changed = 2")
    assert len(house.run()[1]) == 6
    monkeypatch.setattr("orchestrator.workflow.identity.PROTOCOL", 99)
    assert len(house.run()[1]) == 6


def test_what_the_users_code_imports_from_its_folder_counts(house: House, here: Path) -> None:
    (here / "mine.py").write_text("import json\nfrom near import f\nimport pack.part")
    (here / "near.py").write_text("from further import g")
    (here / "further.py").write_text("g = 1")
    (here / "other.py").write_text("1")
    (here / "pack").mkdir()
    (here / "pack" / "__init__.py").write_text("")
    (here / "pack" / "part.py").write_text("1")
    text = TEXT.replace("{k: 1}", f'{{target: "{here / "mine.py"}:Class"}}')
    house.run(text)
    (here / "other.py").write_text("2")
    assert house.run(text)[1] == []
    for changed in ("further.py", "pack/part.py"):
        (here / changed).write_text("g = 2")
        assert house.run(text)[1] == ["size:a", "size:bb", "size:ccc"]


def test_the_users_own_code_behind_an_option_counts(house: House, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("1")
    text = TEXT.replace("{k: 1}", f'{{target: "{mine}:Class"}}')
    house.run(text)
    assert house.run(text)[1] == []
    mine.write_text("22")
    assert house.run(text)[1] == ["size:a", "size:bb", "size:ccc"]


def test_a_family_that_is_a_file_of_the_users_own_is_known_by_its_content(
    catalog: Catalog, here: Path
) -> None:
    def code() -> str:
        return code_of(catalog.get(f"{here / 'steps.py'}:Mine"), {})

    (here / "steps.py").write_text("import near\nclass Mine: ...\n")
    (here / "near.py").write_text("g = 1")
    first = code()
    assert code() == first
    (here / "near.py").write_text("g = 2")
    second = code()
    (here / "steps.py").write_text("import near\nclass Mine: pass\n")
    assert len({first, second, code()}) == 3


def test_a_files_content_counts_not_its_name(house: House, here: Path) -> None:
    (here / "f.txt").write_text("a")
    text = TEXT.replace("{type: list, default: [a, bb, ccc]}", '{type: files, default: "*.txt"}')
    house.run(text)
    (here / "f.txt").rename(here / "g.txt")
    assert house.run(text)[1] == []
    (here / "g.txt").write_text("b")
    assert house.run(text)[1] == [f"size:{here / 'g.txt'}"]


def test_what_is_not_known_before_loading_is_kept_and_found_later(house: House) -> None:
    del house.models.built["one"], house.models.built["two"]
    house.run()
    assert house.run()[1] == []


def test_an_unpinned_checkpoint_is_loaded_first_and_then_found_by_its_revision(house: House) -> None:
    text = TEXT.replace("pypi:weights==1", "pypi:weights")
    house.models.revision = "1"
    assert len(house.run(text)[1]) == 6
    assert house.run(text)[1] == []
    assert [family for family, _ in house.models.loads if family == "one"] == ["one"]
    house.models.revision = "2"
    assert house.run(text)[1] == ["size:a", "size:bb", "size:ccc"]


def test_fresh_and_cache_false_compute_again(house: House) -> None:
    house.run()
    assert len(house.run(fresh=True)[1]) == 6
    text = TEXT.replace("call: say,", "call: say, cache: false,")
    assert house.run(text)[1] == ["say:1", "say:2", "say:3"]


def test_failures_are_not_remembered(house: House) -> None:
    house.families["one"] = {"size": lambda x: 1 // 0}
    for _ in range(2):
        with pytest.raises(WorkflowError):
            house.run()
        assert house.models.log


def test_a_plan_knows_what_is_cached_and_does_nothing(house: House) -> None:
    memory = CacheMemory(house.cache, Identifier(house.models))
    plan = Workflow.parse(TEXT).plan(house.models, memory=memory)
    assert [(s.id, s.cached, s.run) for s in plan.steps] == [("size", 0, 3), ("said", 0, 3), ("all", 0, 1)]
    assert [m.load for m in plan.models] == [True, True]
    assert house.models.log == []
    house.run()
    memory = CacheMemory(house.cache, Identifier(house.models))
    changed = Workflow.parse(TEXT.replace("default: say}", "default: tell}")).plan(
        house.models, memory=memory
    )
    assert [(s.id, s.cached, s.run) for s in changed.steps] == [("size", 3, 0), ("said", 0, 3), ("all", 0, 1)]
    assert [m.load for m in changed.models] == [False, True]
    assert not Path("runs/none").exists()


def test_a_plan_over_unknown_items_says_so(house: House) -> None:
    text = (
        TEXT
        + '- {id: each, model: second, call: say, for_each: {w: "${words}", s: "${size}"}, with: {x: "${s}"}}\n'
    )
    plan = Workflow.parse(text).plan(house.models, memory=CacheMemory(house.cache, Identifier(house.models)))
    assert [(s.id, s.run, s.open) for s in plan.steps][-1] == ("each", 0, True)


def test_a_plan_does_not_count_the_items_of_a_join_that_is_not_known(house: House) -> None:
    text = TEXT + '- {id: each, model: second, call: say, for_each: "${all}", with: {x: "${item}"}}\n'
    plan = Workflow.parse(text).plan(house.models, memory=CacheMemory(house.cache, Identifier(house.models)))
    assert [(s.id, s.run, s.open) for s in plan.steps][-2:] == [("all", 1, False), ("each", 0, True)]


def test_pieces_and_a_whole_answer_are_two_results(house: House) -> None:
    house.families["two"] = {"say": lambda x, prompt: ["a", "b"]}
    assert house.run()[0].failed == 0
    done, calls = house.run(TEXT.replace("call: say,", "call: say, stream: true,"))
    assert calls == ["say:1", "say:2", "say:3"]
    assert json.loads((done.folder / "results.jsonl").read_text().splitlines()[0])["said"] == "ab"


ARRAY = np.arange(SMALL, dtype=np.float32)


@pytest.mark.parametrize(
    "value", [{"a": [1, None]}, {"v": ARRAY, "w": [ARRAY[:3]]}, "é" * SMALL, np.float32(2)]
)
def test_values_come_back_exactly(house: House, value: Any) -> None:
    assert house.cache.put("k" * 40, value, 1.5, "x")
    back, seconds = house.cache.get("k" * 40) or (None, 0)
    assert seconds == 1.5
    np.testing.assert_equal(back, value)


def test_a_damaged_file_is_noticed_and_forgotten(house: House, caplog: pytest.LogCaptureFixture) -> None:
    key = "ab" + "0" * 38
    house.cache.put(key, {"v": ARRAY}, 1.0, "x")
    (path,) = house.cache.folder.glob("arrays/ab/*.arrays")
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)
    assert house.cache.get(key) is None
    assert "damaged" in caplog.text
    assert not path.exists()
    house.cache.put(key, {"v": ARRAY}, 1.0, "x")
    path.unlink()
    assert house.cache.get(key) is None


def test_a_damaged_small_value_is_noticed(house: House) -> None:
    house.cache.put("a" * 40, [1], 1.0, "x")
    base = sqlite3.connect(next(house.cache.folder.glob("*.sqlite")))
    base.execute("UPDATE results SET body = ?", (b"\x05\0\0\0\0\0\0\0[2,[]]",))
    base.commit()
    base.close()
    assert house.cache.get("a" * 40) is None


def test_a_damaged_table_is_begun_anew(here: Path) -> None:
    (here / "c").mkdir()
    (here / "c" / "results-2.sqlite").write_bytes(b"no table" * 1000)
    cache = Cache(here / "c", 10**6)
    assert cache.put("a" * 40, 1, 0.0, "x")
    assert cache.get("a" * 40) == (1, 0.0)
    assert (here / "c" / "results-2.damaged").exists()
    cache.close()


def test_a_folder_that_cannot_be_used_is_no_error(here: Path) -> None:
    (here / "file").write_text("")
    cache = Cache(here / "file" / "c", 10**6)
    assert cache.put("a" * 40, 1, 0.0, "x") is False
    assert cache.get("a" * 40) is None


def test_the_least_recently_used_go_when_it_is_full(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(here / "c", 10 * SMALL * 4 + 10_000)
    clock = SimpleNamespace(time=lambda: clock.now, now=0.0)
    monkeypatch.setattr("orchestrator.workflow.cache.time", clock)
    for number in range(30):
        clock.now += 10_000
        cache.put(f"{number:02}" + "0" * 38, ARRAY, 0.0, "x")
        cache.get("00" + "0" * 38)
    assert cache.size() <= cache.limit
    assert cache.get("00" + "0" * 38) is not None
    assert cache.get("01" + "0" * 38) is None
    assert cache.get("29" + "0" * 38) is not None
    assert len(list(cache.folder.glob("arrays/*/*"))) <= 10
    assert cache.put("z" * 40, np.zeros(10**6), 0.0, "x") is False
    cache.close()


SCRIPT = """
import sys, time, types
sys.path.insert(0, {tests!r})
from pathlib import Path
from fake_models import FakeModels
from orchestrator.workflow import Workflow
from orchestrator.workflow.cache import Cache, CacheMemory
from orchestrator.workflow.identity import Identifier, code_of

def slow(x):
    with open("calls.txt", "a") as log:
        log.write(f"{{x}}\\n")
    while x == 20 and Path("hold").exists():
        time.sleep(0.01)
    return x * x

models = FakeModels(one={{"f": slow}})
memory = CacheMemory(Cache(Path("cache"), 10**8), Identifier(models))
Workflow.read("w.yaml").start(models, out="out", memory=memory, again=True).run()
"""


def test_kill_9_loses_only_what_was_under_way(here: Path) -> None:
    (here / "w.yaml").write_text(
        "version: 1\nname: w\ninputs: {n: {type: list, default: [" + ", ".join(map(str, range(40))) + "]}}\n"
        "models: {m: {family: one}}\n"
        'steps: [{id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}]\n'
    )
    command = [sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent))]
    log, rows = here / "calls.txt", here / "out" / "results.jsonl"
    (here / "hold").touch()
    with subprocess.Popen(command, cwd=here, start_new_session=True) as process:
        try:  # an item whose thread was late waits behind the one that holds, so there may be fewer than 21
            until(lambda: log.exists() and "20" in log.read_text().split())
            until(lambda: rows.read_text().count("\n") == len(log.read_text().split()) - 1)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    before = log.read_text().split()
    (here / "hold").unlink()
    assert json.loads((here / "out" / "run.json").read_text())["state"] == "running"
    log.unlink()
    subprocess.run(command, cwd=here, check=True, timeout=120)
    after = log.read_text().split()
    assert len(set(before) & set(after)) <= 1
    assert len(set(before) | set(after)) == 40
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["a"] for row in kept] == [n * n for n in range(40)]


def len_of(x: str) -> int:
    return len(Path(x).name) if x.startswith("/") else len(x)


def test_a_model_goes_on_while_its_results_are_being_kept(house: House) -> None:
    called = threading.Semaphore(0)

    class Slow(CacheMemory):
        def keep(self, job: Job, outcome: Outcome) -> None:
            if job.index == (0,):
                assert called.acquire(timeout=60), "the next call waits for the last result to be written"
            super().keep(job, outcome)

    models = FakeModels(one={"f": lambda x: x if x == 0 else called.release()})
    text = """
version: 1
name: w
models: {m: {family: one}}
inputs: {n: {type: list, default: [0, 1]}}
steps: [{id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}]
"""
    done = Workflow.parse(text).run(models, memory=Slow(house.cache, Identifier(models)))
    assert [row["a"] for row in done.results()] == [0, None]


def test_random_weights_are_known_without_making_them(house: House, tmp_path: Path) -> None:
    from orchestrator.checkpoints.tiny import TinyStore

    def run() -> list[str]:
        fake = FakeModels(one=house.families["one"], two=house.families["two"])
        fake.checkpoints.tiny = TinyStore(tmp_path / "tiny")
        memory = CacheMemory(house.cache, Identifier(fake))
        Workflow.parse(TEXT.replace("pypi:weights==1", "tiny:clip@3")).run(fake, memory=memory)
        return [method for _, method, _ in fake.log]

    assert len(run()) == 6
    assert run() == []
    assert not (tmp_path / "tiny").exists()
