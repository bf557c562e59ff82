"""Nested loops: credits at every depth, whatever waits for whatever; and nothing stays that nobody can ask for."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_models import FakeModels

from orchestrator.errors import ConfigError
from orchestrator.workflow import Workflow
from orchestrator.workflow.calls import Caller
from orchestrator.workflow.calls import Memory as NoMemory
from orchestrator.workflow.engine import Engine, Sink
from orchestrator.workflow.models import Roster
from orchestrator.workflow.scope import Scope

BEGINNING = "version: 1\nname: w\nmodels: {m: {family: one, concurrency: 4}}\n"

FRAMES = """
in_flight: 3
inputs: {videos: {type: list, default: [0, 1, 2, 3, 4]}}
steps:
- {id: frames, model: m, call: split, for_each: {v: "${videos}"}, with: {x: "${v}"}}
- {id: seen, model: m, call: look, for_each: {v: "${videos}", f: "${frames}"}, with: {x: "${f}"}}
- {id: said, model: m, call: tell, for_each: {v: "${videos}", f: "${frames}"}, with: {x: "${seen}"}}
- {id: mean_of_video, call: mean, for_each: {v: "${videos}"}, with: {values: "${said}"}}
- {id: offset, model: m, call: tell, for_each: {v: "${videos}", f: "${frames}"}, with: {x: "${mean_of_video}"}}
- {id: all, call: mean, with: {values: "${mean_of_video}"}}
outputs: {f: "${f}", said: "${said}", offset: "${offset}", all: "${all}"}
"""


def test_the_items_of_an_inner_loop_are_let_in_a_few_at_a_time(here: Path) -> None:
    lock, alive, most = threading.Lock(), Counter[int](), Counter[int]()

    def look(x: int) -> int:
        with lock:
            alive[x // 100] += 1
            most[x // 100] = max(most[x // 100], alive[x // 100])
        return x

    def tell(x: float) -> float:
        if isinstance(x, int):
            with lock:
                alive[x // 100] -= 1
        return x

    models = FakeModels(one={"split": lambda x: [100 * x + k for k in range(40)], "look": look, "tell": tell})
    done = Workflow.parse(BEGINNING + FRAMES).run(models, out=here / "out")
    rows = list(done.results())
    assert [row["index"] for row in rows] == [[v, f] for v in range(5) for f in range(40)]
    assert all(row["said"] == 100 * v + f for row in rows for v, f in [row["index"]])
    assert all(row["offset"] == 100 * v + 19.5 for row in rows for v, f in [row["index"]])
    assert max(most.values()) <= 3
    assert not any(alive.values())


def test_values_and_items_of_inner_loops_are_let_go(here: Path) -> None:
    left: list[int] = []

    class Watching(Sink):
        def row(self, *_: Any) -> None:
            held = sum(
                outcome.value is not None
                for name in ("frames", "seen", "said", "offset")
                for outcome in engine.scope.outcomes[name].values()
            )
            lists = sum(isinstance(items, list) for items in engine.scope.domains.values())
            left.append(held + lists)

    models = FakeModels(one={"split": lambda x: list(range(30)), "look": lambda x: x, "tell": lambda x: x})
    workflow = Workflow.parse(BEGINNING + FRAMES.replace("in_flight: 3", "in_flight: 1"))
    inputs = {"videos": list(range(6))}
    roster = Roster(models, workflow.file.models, inputs, here)
    caller = Caller(NoMemory(), lambda _: None, "stop")
    engine = Engine(workflow.graph, Scope(workflow.graph, inputs), roster, caller, Watching(), lambda _: None)
    engine.run()
    assert len(left) == 6 * 30
    assert max(left) <= 30 + 12  # what a join inside one video collects, and a handful


def made_up(seed: int) -> str:
    """A workflow of random loops, joins and references; now and then one that is refused."""
    pick = random.Random(seed)
    lines = ["inputs: {p: {type: list, default: [1, 2, 3]}, q: {type: list, default: [5, 7]}}", "steps:"]
    names: list[str] = []
    for number in range(pick.randint(3, 9)):
        depth = pick.choice([0, 1, 1, 2, 2, 3])
        over = pick.sample(["p", "q", *names], min(depth, 2 + len(names)))
        loops = ", ".join(f'v{place}: "${{{source}}}"' for place, source in enumerate(over))
        used = pick.sample(names, min(len(names), pick.randint(0, 3))) + [
            f"v{place}" for place in range(depth)
        ]
        values = ", ".join(f'"${{{name}}}"' for name in used)
        each = f"for_each: {{{loops}}}, " if loops else ""
        batch = f"batch: {pick.choice([2, 3])}, " if loops and values and pick.random() < 0.2 else ""
        call = "some" if not batch else "several"
        lines.append(f"- {{id: s{number}, model: m, call: {call}, {each}{batch}with: {{x: [{values}]}}}}")
        names.append(f"s{number}")
    return BEGINNING + "\n".join(lines)


def some(x: Any) -> list[int]:
    return [k + len(str(x)) % 7 for k in range(len(str(x)) % 3)]


def results(text: str, in_flight: int, out: Path) -> Any:
    models = FakeModels(one={"some": some, "several": lambda x: [some(each) for each in x]})
    done = Workflow.parse(f"{text}\nin_flight: {in_flight}").run(models, out=out)
    summary = out / "summary.json"
    return [*done.results(), summary.read_text() if summary.exists() else ""]


@pytest.mark.parametrize("seed", range(20))
def test_credits_never_change_what_comes_out_nor_stop_it(here: Path, seed: int) -> None:
    text = made_up(seed)
    try:
        Workflow.parse(text)
    except ConfigError:
        return
    found = [results(text, allowed, here / str(allowed)) for allowed in (1, 2, 1000)]
    assert found[0] == found[1] == found[2]


def test_an_item_that_is_a_list_can_be_gone_over_itself(here: Path) -> None:
    text = """
inputs: {table: {type: list, default: [[1, 2], [3]]}}
steps:
- {id: parts, model: m, call: split, for_each: {row: "${table}"}, with: {x: "${row}"}}
- {id: cells, call: collect, for_each: {row: "${table}", cell: "${row}"}, with: {values: "${cell}"}}
- {id: a, call: collect, for_each: {row: "${table}", part: "${parts}"}, with: {values: "${part}"}}
- {id: b, call: collect, for_each: {mine: "${parts}", part: "${mine}"}, with: {values: "${part}"}}
outputs: {cell: "${cells}", a: "${a}", b: "${b}"}
"""
    models = FakeModels(one={"split": lambda x: [10 * n for n in x]})
    rows = list(Workflow.parse(BEGINNING + text).run(models, out=here / "out").results())
    cells = [row for row in rows if row["over"] == ["table", "table.*"]]
    parts = [row for row in rows if row["over"] == ["table", "parts"]]
    assert [(row["index"], row["cell"]) for row in cells] == [([0, 0], 1), ([0, 1], 2), ([1, 0], 3)]
    assert [(row["a"], row["b"]) for row in parts] == [(10, 10), (20, 20), (30, 30)]
