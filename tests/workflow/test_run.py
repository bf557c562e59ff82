"""Runs with fake models: what is called with what, in which order, and what is written."""

from __future__ import annotations

import _thread
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_models import FakeModels

from orchestrator.environments.commands import check_cancelled
from orchestrator.errors import ConfigError, InstallError, LoadError, WorkflowError
from orchestrator.events import Event
from orchestrator.workflow import Run, Workflow
from orchestrator.workflow.cache import Cache, CacheMemory
from orchestrator.workflow.identity import Identifier

Method = Callable[..., Any]


def run(text: str, methods: Mapping[str, Method], **arguments: Any) -> tuple[Run, FakeModels]:
    models = FakeModels(python=methods)
    document = "version: 1\nname: w\nmodels: {m: {family: python}}\n" + text
    return Workflow.parse(document).run(models, **arguments), models


def rows(done: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (done.folder / "results.jsonl").read_text().splitlines()]


def summary(done: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.folder / "summary.json").read_text())
    return found


def test_a_reference_keeps_its_type_and_inside_a_text_is_formatted(here: Path) -> None:
    _, models = run(
        """
inputs: {n: {type: integer, default: 3}, f: {type: number, default: 0.5}, d: {type: any, default: {k: [1, {z: é}]}}}
steps:
- {id: a, model: m, call: f, with: {whole: "${n}", deep: "${d.k.1.z}", text: "n=${n} f=${f} d=${d} $${n}", plain: 4}}
""",
        {"f": lambda **given: given},
    )
    assert models.calls("f") == [
        {"whole": 3, "deep": "é", "text": 'n=3 f=0.5 d={"k": [1, {"z": "é"}]} ${n}', "plain": 4}
    ]


def test_steps_over_the_same_loop_see_each_others_value_of_the_same_item(here: Path) -> None:
    done, _ = run(
        """
inputs: {words: {type: list, default: [a, bb, ccc]}}
steps:
- {id: size, model: m, call: size, for_each: "${words}", with: {x: "${item}"}}
- {id: said, model: m, call: say, for_each: {word: "${words}"}, with: {x: "${word}", n: "${size}", i: "${index}"}}
""",
        {"size": len_of, "say": lambda x, n, i: f"{i}:{x}*{n}"},
    )
    assert [row["said"] for row in rows(done)] == ["0:a*1", "1:bb*2", "2:ccc*3"]
    assert rows(done)[1] == {"index": [1], "item": {"item": "bb", "word": "bb"}, "size": 2, "said": "1:bb*2"}


def test_nested_loops_products_joins_and_loops_over_results(here: Path) -> None:
    done, models = run(
        """
inputs: {words: {type: list, default: [ab, c]}, marks: {type: list, default: ["!", "?"]}}
steps:
- {id: letters, model: m, call: letters, for_each: "${words}", with: {x: "${item}"}}
- {id: said, model: m, call: join, for_each: {word: "${words}", mark: "${marks}"}, with: {a: "${word}", b: "${mark}"}}
- {id: again, model: m, call: join, for_each: "${said}", with: {a: "${item}", b: "${letters.0}"}}
- {id: each, model: m, call: join, for_each: {word: "${words}", letter: "${letters}"}, with: {a: "${letter}", b: "${said}"}}
- {id: all, call: collect, with: {values: "${said}"}}
- {id: late, model: m, call: join, for_each: "${words}", with: {a: "${item}", b: "${all.0.0}"}}
outputs: {said: "${said}", again: "${again}", all: "${all}", each: "${each}", late: "${late}"}
""",
        {"letters": letters_of, "join": lambda a, b: f"{a}{b}"},
    )
    by_said = [row for row in rows(done) if row["over"] == ["words", "marks"]]
    assert [row["said"] for row in by_said] == ["ab!", "ab?", "c!", "c?"]
    assert [row["again"] for row in by_said] == ["ab!a", "ab?a", "c!c", "c?c"]
    by_letter = [row for row in rows(done) if row["over"] == ["words", "letters"]]
    assert [row["each"] for row in by_letter] == ["a['ab!', 'ab?']", "b['ab!', 'ab?']", "c['c!', 'c?']"]
    assert [row["late"] for row in by_letter] == ["abab!", "abab!", "cab!"]
    assert summary(done)["all"] == [["ab!", "ab?"], ["c!", "c?"]]
    assert len(models.calls("join")) == 4 + 4 + 3 + 2


def test_joins_across_two_loops_do_not_wait_for_each_other_for_ever(here: Path) -> None:
    done, _ = run(
        """
in_flight: 1
inputs: {a: {type: list, default: [1, 2, 3]}, b: {type: list, default: [10, 20, 30]}}
steps:
- {id: w, model: m, call: same, for_each: "${a}", with: {x: "${item}"}}
- {id: y, model: m, call: same, for_each: "${b}", with: {x: "${item}"}}
- {id: z, model: m, call: total, for_each: {q: "${b}"}, with: {x: "${q}", others: "${w}"}}
- {id: v, model: m, call: total, for_each: {p: "${a}"}, with: {x: "${p}", others: "${y}"}}
outputs: {z: "${z}", v: "${v}"}
""",
        {"same": lambda x: x, "total": lambda x, others: x + sum(others)},
    )
    assert sorted(row.get("z", row.get("v")) for row in rows(done)) == [16, 26, 36, 61, 62, 63]


def test_items_move_on_as_soon_as_their_own_inputs_are_there(here: Path) -> None:
    order: list[str] = []

    def note(step: str) -> Method:
        def method(x: int) -> int:
            order.append(f"{step}{x}")
            return x

        return method

    models = FakeModels(first={"f": note("a")}, second={"f": note("b")})
    Workflow.parse(
        """
version: 1
name: w
in_flight: 2
inputs: {n: {type: list, default: [0, 1, 2, 3, 4, 5]}}
models: {one: {family: first}, two: {family: second}}
steps:
- {id: a, model: one, call: f, for_each: "${n}", with: {x: "${item}"}}
- {id: b, model: two, call: f, for_each: "${n}", with: {x: "${a}"}}
"""
    ).run(models)
    assert order.index("b0") < order.index("a3")


def test_no_more_items_are_under_way_than_credits_allow(here: Path) -> None:
    alive, most = set(), 0
    lock = threading.Lock()

    def open_(x: int) -> int:
        nonlocal most
        with lock:
            alive.add(x)
            most = max(most, len(alive))
        return x

    def close(x: int) -> None:
        time.sleep(0.002)
        with lock:
            alive.discard(x)

    models = FakeModels(first={"f": open_}, second={"f": close})
    done = Workflow.parse(
        """
version: 1
name: w
in_flight: 3
inputs: {n: {type: list}}
models: {one: {family: first}, two: {family: second}}
steps:
- {id: a, model: one, call: f, for_each: "${n}", with: {x: "${item}"}}
- {id: b, model: two, call: f, for_each: "${n}", with: {x: "${a}"}}
"""
    ).run(models, inputs={"n": list(range(60))})
    assert done.rows == 60
    assert most <= 3


def test_batches_are_full_but_the_last_and_give_each_item_its_own(here: Path) -> None:
    done, models = run(
        """
inputs: {words: {type: list, default: [a, bb, ccc, dddd, eeeee]}}
steps:
- {id: slow, model: m, call: same, for_each: "${words}", with: {x: "${item}"}}
- {id: vec, model: m, call: vec, batch: 2, for_each: "${words}", with: {texts: "${slow}", k: 3}}
""",
        {"same": lambda x: x, "vec": lambda texts, k: np.array([[len(t)] * k for t in texts], np.float32)},
    )
    assert [call["texts"] for call in models.calls("vec")] == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]
    assert {call["k"] for call in models.calls("vec")} == {3}
    found = np.load(done.folder / "arrays" / "vec.npz")
    assert [found[str(i)].tolist() for i in range(5)] == [[n] * 3 for n in range(1, 6)]
    assert rows(done)[4]["vec"] == {"$array": "arrays/vec.npz", "key": "4", "dtype": "float32", "shape": [3]}


def test_an_array_that_several_rows_share_is_written_once(here: Path) -> None:
    done, _ = run(
        """
inputs: {words: {type: list, default: [a, bb]}, marks: {type: list, default: ["!", "?"]}}
steps:
- {id: vec, model: m, call: vec, for_each: "${words}", with: {x: "${item}"}}
- {id: both, model: m, call: join, for_each: {w: "${words}", k: "${marks}"}, with: {a: "${w}", b: "${k}"}}
""",
        {"vec": lambda x: np.full(3, len(x)), "join": lambda a, b: a + b},
    )
    assert [(row["both"], row["vec"]["key"]) for row in rows(done)] == [
        ("a!", "0"), ("a?", "0"), ("bb!", "1"), ("bb?", "1"),
    ]  # fmt: skip
    with np.load(done.folder / "arrays" / "vec.npz") as found:
        assert sorted(found) == ["0", "1"]


def test_values_that_nothing_needs_any_more_are_let_go(here: Path) -> None:
    models = FakeModels(python={"f": lambda x: [x]})
    execution = Workflow.parse(
        """
version: 1
name: w
inputs: {n: {type: list, default: [1, 2, 3]}}
models: {m: {family: python}}
steps:
- {id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}
- {id: b, model: m, call: f, for_each: "${n}", with: {x: "${a}"}}
- {id: all, call: collect, with: {values: "${b}"}}
"""
    ).start(models)
    execution.run()
    kept = {step: [o.value for o in table.values()] for step, table in execution.scope.outcomes.items()}
    assert kept["a"] == [None, None, None]
    assert kept["b"] == [[[1]], [[2]], [[3]]]


def test_a_batch_that_gives_too_few_is_an_error(here: Path) -> None:
    with pytest.raises(ConfigError, match="got a batch of 2 items and gave 1 values"):
        run(
            'inputs: {n: {type: list, default: [1, 2]}}\nsteps: [{id: a, model: m, call: f, batch: 2, for_each: "${n}", with: {x: "${item}"}}]',
            {"f": lambda x: [1]},
        )


def test_streamed_texts_are_shown_as_they_come_and_joined(here: Path) -> None:
    events: list[Event] = []
    done, _ = run(
        'steps: [{id: s, model: m, call: f, stream: true, with: {x: "ab "}}, {id: t, model: m, call: g, stream: true}]',
        {"f": lambda x: iter([x, "cd"]), "g": lambda: iter([1, 2])},
        listener=events.append,
    )
    assert summary(done) == {"s": "ab cd", "t": [1, 2]}
    assert rows(done) == [{"index": [], "item": {}, "s": "ab cd", "t": [1, 2]}]
    heard = [event.message for event in events if event.subject == "s" and event.total is None]
    assert heard == ["ab", "ab cd", "ab cd"]


def test_a_failing_item_stops_the_run_by_default_and_keeps_what_is_finished(here: Path) -> None:
    with pytest.raises(WorkflowError, match=r"step a\[2\] failed: ValueError: two") as caught:
        run(
            'in_flight: 1\ninputs: {n: {type: list, default: [0, 1, 2, 3]}}\nsteps: [{id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}]',
            {"f": fail_at(2)},
            out="out",
        )
    assert caught.value.exit_code == 1
    assert [json.loads(line)["a"] for line in Path("out/results.jsonl").read_text().splitlines()] == [0, 1]
    record = json.loads(Path("out/run.json").read_text())
    assert record["state"] == "failed"
    assert "two" in record["error"]
    assert "failed" in Path("out/report.html").read_text()


def test_a_skipped_failure_is_recorded_and_the_others_go_on(here: Path) -> None:
    done, _ = run(
        """
on_error: skip
inputs: {n: {type: list, default: [0, 1, 2, 3]}}
steps:
- {id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}
- {id: b, model: m, call: g, for_each: "${n}", with: {x: "${a}"}}
- {id: all, call: collect, with: {values: "${b}"}}
- {id: middle, call: mean, with: {values: "${b}"}}
""",
        {"f": fail_at(2), "g": lambda x: x * 10},
    )
    assert (done.exit_code, done.failed, done.rows) == (1, 1, 4)
    assert rows(done)[2] == {
        "index": [2], "item": {"item": 2}, "a": None, "b": None,
        "errors": {"a": "ValueError: two", "b": "a gave nothing"},
    }  # fmt: skip
    assert summary(done) == {"all": [0, 10, None, 30], "middle": pytest.approx(40 / 3)}
    assert done.record["errors"] == [{"step": "a", "index": [2], "error": "ValueError: two"}]


def test_retries_are_made_and_counted(here: Path) -> None:
    tries: list[int] = []

    def flaky(x: int) -> int:
        tries.append(x)
        if tries.count(x) < 3:
            raise OSError("not yet")
        return x

    done, _ = run(
        'inputs: {n: {type: list, default: [7]}}\nsteps: [{id: a, model: m, call: f, on_error: {retry: 2}, for_each: "${n}", with: {x: "${item}"}}]',
        {"f": flaky},
    )
    assert tries == [7, 7, 7]
    assert done.exit_code == 0
    done, _ = run(
        'inputs: {n: {type: list, default: [8]}}\nsteps: [{id: a, model: m, call: f, on_error: {retry: 1, then: skip}, for_each: "${n}", with: {x: "${item}"}}]',
        {"f": flaky},
    )
    assert done.exit_code == 1
    assert done.record["errors"][0]["attempts"] == 2


@pytest.mark.parametrize(
    ("when", "kept"),
    [
        ('"${item}"', [1, 2, 3]),
        ('{value: "${item}", at_least: 2}', [2, 3]),
        ('{value: "${item}", above: 0, below: 3}', [1, 2]),
        ('{value: "${item}", one_of: [0, 3]}', [0, 3]),
        ('{value: "${item}", not_equals: 1}', [0, 2, 3]),
        ('{value: "${item}", equals: "${chosen}"}', [2]),
    ],
)
def test_when_says_for_which_items_a_step_runs(here: Path, when: str, kept: list[int]) -> None:
    done, models = run(
        f"""
inputs: {{n: {{type: list, default: [0, 1, 2, 3]}}, chosen: {{type: integer, default: 2}}}}
steps:
- {{id: a, model: m, call: f, for_each: "${{n}}", when: {when}, with: {{x: "${{item}}"}}}}
- {{id: b, model: m, call: g, for_each: "${{n}}", with: {{x: "${{a}}"}}}}
""",
        {"f": lambda x: x, "g": lambda x: x},
    )
    assert [call["x"] for call in models.calls("f")] == kept
    assert [call["x"] for call in models.calls("g")] == kept
    assert done.exit_code == 0
    assert not any("errors" in row for row in rows(done))


def test_an_empty_list_gives_no_rows_and_empty_joins(here: Path) -> None:
    done, _ = run(
        'inputs: {n: {type: list, default: []}}\nsteps: [{id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}, {id: all, call: collect, with: {values: "${a}"}}]',
        {"f": lambda x: x},
    )
    assert done.rows == 0
    assert summary(done) == {"all": []}


def test_a_loop_over_something_that_is_no_list_names_the_place(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"for_each: \$\{a\} is not a list but int") as caught:
        run(
            'steps: [{id: a, model: m, call: f}, {id: b, model: m, call: f, for_each: "${a}"}]',
            {"f": lambda: 3},
        )
    assert caught.value.line == 4


def test_a_path_that_is_not_there_fails_the_item_and_says_what_there_is(here: Path) -> None:
    with pytest.raises(
        WorkflowError, match=r"\$\{a\.labl\} has no 'labl': \$\{a\} is a mapping with 'label'"
    ):
        run(
            'steps: [{id: a, model: m, call: f}, {id: b, model: m, call: g, with: {x: "${a.labl}"}}]',
            {"f": lambda: {"label": 1}, "g": lambda x: x},
        )


def test_models_are_loaded_at_once_and_their_errors_keep_their_exit_code(here: Path) -> None:
    barrier = threading.Barrier(2, timeout=60)

    class Together(FakeModels):
        def load(self, family: str, **arguments: Any) -> Any:
            barrier.wait()
            return super().load(family, **arguments)

    text = "version: 1\nname: w\nmodels: {one: {family: a}, two: {family: b}}\nsteps: [{id: s, model: one, call: f}, {id: t, model: two, call: f}]"
    Workflow.parse(text).run(Together(a={"f": lambda: 1}, b={"f": lambda: 1}))
    broken = FakeModels(a={"f": lambda: 1}, b={})
    broken.load_errors["b"] = InstallError("no room on the disk")
    with pytest.raises(InstallError, match="no room") as caught:
        Workflow.parse(text).run(broken, out="out")
    assert caught.value.exit_code == 3
    assert (
        json.loads(Path("out/run.json").read_text())["models"]["two"]["error"]
        == "model 'two': no room on the disk"
    )
    assert all(model.unloaded for model in broken.loaded)
    broken.load_errors["b"] = LoadError("two: no such key")
    with pytest.raises(LoadError, match=r"^two: no such key"):
        Workflow.parse(text).run(broken, out="again")


def test_a_method_that_the_model_has_not_is_refused_before_it_is_called(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"<text>:4:\d+: 'm' \(python\) has no method 'embd'") as caught:
        run("steps: [{id: a, model: m, call: embd}]", {"embed": lambda: 1})
    assert caught.value.hint == "did you mean 'embed'?"


def test_inputs_reach_models_and_load_arguments_are_exact(here: Path) -> None:
    models = FakeModels(python={"f": lambda: 1})
    Workflow.parse(
        """
version: 1
name: w
inputs: {weights: {type: text, default: "pypi:a"}, k: {type: integer, default: 4}}
models:
  m: {family: python, checkpoint: "${weights}", with: ["x==1"], options: {k: "${k}"}, dtype: float32, replicas: 2, max_memory: {"0": 2GiB, cpu: 5}}
steps: [{id: a, model: m, call: f}]
"""
    ).run(models, inputs={"weights": ["pypi:b"]})
    assert models.loads == [
        (
            "python",
            {"name": "m", "checkpoint": "pypi:b", "with_": ["x==1"], "k": 4, "dtype": "float32", "replicas": 2,
             "max_memory": {"0": "2GiB", "cpu": 5}},
        )
    ]  # fmt: skip


def test_a_family_that_is_not_there_is_refused_with_its_place(here: Path) -> None:
    text = "version: 1\nname: w\nmodels:\n  m: {family: pythn}\nsteps: [{id: a, model: m, call: f}]"
    with pytest.raises(ConfigError, match="no family 'pythn'") as caught:
        Workflow.parse(text).run(FakeModels(python={}), out="out")
    assert (caught.value.line, caught.value.column) == (4, 15)
    assert not Path("out").exists()


def test_paths_of_models_start_from_the_workflows_folder(here: Path) -> None:
    text = "version: 1\nname: w\nmodels: {m: {family: python, checkpoint: ./w, options: {target: ../s.py:C, k: a/b}}}\nsteps: [{id: a, model: m, call: f}]"
    models = FakeModels(python={"f": lambda: 1})
    Workflow.parse(text, base=Path("/base/x")).run(models)
    _, given = models.loads[0]
    assert (given["checkpoint"], given["target"], given["k"]) == ("/base/x/w", "/base/x/../s.py:C", "a/b")


def test_an_interrupt_cancels_and_keeps_the_finished_items(here: Path) -> None:
    started = threading.Event()

    def slow(x: int) -> Iterator[str]:
        if x == 2:
            started.set()
        for _ in range(100_000 if x == 2 else 1):
            yield "."
            time.sleep(0.005)

    class Interrupting:
        def __call__(self, event: Event) -> None:
            if started.is_set():
                started.clear()
                _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):  # the long stream would take longer than a test may
        run(
            'in_flight: 1\ninputs: {n: {type: list, default: [0, 1, 2, 3]}}\nsteps: [{id: a, model: m, call: f, stream: true, for_each: "${n}", with: {x: "${item}"}}]',
            {"f": slow},
            out="out",
            listener=Interrupting(),
        )
    assert len(Path("out/results.jsonl").read_text().splitlines()) == 2
    assert json.loads(Path("out/run.json").read_text())["state"] == "interrupted"


def test_a_long_run_of_skipped_items_does_not_exhaust_the_stack(here: Path) -> None:
    done, _ = run(
        'inputs: {n: {type: list}}\nsteps: [{id: a, model: m, call: f, when: false, for_each: "${n}", with: {x: "${item}"}}]',
        {"f": lambda x: x},
        inputs={"n": list(range(3000))},
    )
    assert done.rows == 3000


def test_an_existing_folder_is_never_written_into(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        run("steps: [{id: a, model: m, call: f}]", {"f": lambda: 1}, out="out")


def test_run_json_says_what_ran(here: Path) -> None:
    (here / "a.txt").write_text("hello")
    done, _ = run(
        'inputs: {f: {type: file, default: a.txt}}\nsteps: [{id: a, model: m, call: f, with: {x: "${f}", t: "${f.text}"}}]',
        {"f": lambda x, t: t},
    )
    record = json.loads((done.folder / "run.json").read_text())
    assert record["state"] == "finished"
    assert record["models"]["m"]["environment"]["versions"]["transformers"] == "4.36.2"
    assert record["inputs"]["f"]["digest"]
    assert record["workflow"]["text"].startswith("version: 1")
    assert record["steps"]["a"]["calls"] == 1
    assert not list(done.folder.glob(".*"))


def test_what_json_has_no_number_for_is_null_in_every_file(here: Path) -> None:
    nan, inf = float("nan"), float("inf")
    value = {"n": nan, "deep": [inf, {"k": -inf}, np.float32(nan)], "array": np.array([nan, 1.0])}
    done, _ = run(
        """
inputs: {x: {type: any}}
steps: [{id: a, model: m, call: f, for_each: "${x}", with: {x: "${item}"}}, {id: b, call: collect, with: {values: "${x}"}}]
outputs: {a: "${a}", b: "${b}"}
report: {figures: [{label: n, value: "${b}"}]}
""",
        {"f": lambda x: value},
        inputs={"x": [nan, inf]},
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for name in ("results.jsonl", "summary.json", "run.json"):
        for text in (
            (done.folder / name).read_text().splitlines()
            if name.endswith("l")
            else [(done.folder / name).read_text()]
        ):
            json.loads(text, parse_constant=refuse)
    assert rows(done)[0]["a"] | {"array": None} == {
        "n": None,
        "deep": [None, {"k": None}, None],
        "array": None,
    }
    assert (rows(done)[0]["item"], summary(done)["b"]) == ({"item": None}, [None, None])
    assert np.isnan(done.results()[0]["a"]["array"][0])


def len_of(x: str) -> int:
    return len(x)


def letters_of(x: str) -> list[str]:
    return list(x)


def fail_at(n: int) -> Method:
    def method(x: int) -> int:
        if x == n:
            raise ValueError("two")
        return x

    return method


def test_a_full_disk_is_a_typed_error_and_the_run_can_be_gone_on_with(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "results.jsonl").symlink_to("/dev/full")
    cache = Cache(here / "cache", 10**8)
    text = """
version: 1
name: w
inputs: {n: {type: list, default: [1, 2, 3]}}
models: {m: {family: one}}
steps: [{id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}]
"""

    def go_on() -> tuple[Run, FakeModels]:
        models = FakeModels(one={"f": lambda x: x * np.ones(3)})
        memory = CacheMemory(cache, Identifier(models))
        return Workflow.parse(text).run(models, out=here / "out", again=True, memory=memory), models

    with pytest.raises(WorkflowError, match=r"cannot write to .*out: No space left on device") as caught:
        go_on()
    assert caught.value.hint is not None
    assert "make room" in caught.value.hint
    assert json.loads((here / "out" / "run.json").read_text())["state"] == "failed"
    assert (here / "out" / "report.html").exists()
    (here / "out" / "results.jsonl").unlink()
    done, models = go_on()
    assert [row["a"].tolist() for row in done.results()] == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert len(models.log) < 3
    cache.close()


def test_the_locks_of_the_environments_are_kept(here: Path) -> None:
    (here / "envs" / "env-python").mkdir(parents=True)
    (here / "envs" / "env-python" / "requirements.lock").write_text("numpy==1.26.4 --hash=sha256:0")
    models = FakeModels(python={"f": lambda: 1})
    models.store = here / "envs"
    text = "version: 1\nname: w\nmodels: {m: {family: python}}\nsteps: [{id: a, model: m, call: f}]"
    done = Workflow.parse(text).run(models, out=here / "out")
    assert (here / "out" / "locks" / "env-python.lock").read_text().startswith("numpy==1.26.4")
    assert done.record["models"]["m"]["environment"]["id"] == "env-python"
    assert len(done.record["models"]["m"]["code"]) == 40


def test_a_picture_is_an_array_whether_pillow_is_here_or_not(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Image:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.full((2, 3, 3), 7, np.uint8)

    monkeypatch.setitem(sys.modules, "PIL.Image", SimpleNamespace(Image=Image))
    done, _ = run(
        "steps: [{id: a, model: m, call: f}]",
        {"f": lambda: {"picture": [Image()], "name": "x"}},
        out=here / "o",
    )
    told = summary(done)["a"]
    assert told["name"] == "x"
    assert told["picture"][0]["shape"] == [2, 3, 3]


def test_two_runs_never_write_to_one_folder(here: Path) -> None:
    text = "version: 1\nname: w\nmodels: {m: {family: one}}\nsteps: [{id: a, model: m, call: f}]"
    workflow, refused = Workflow.parse(text), []

    def meanwhile() -> int:
        try:
            workflow.run(FakeModels(one={"f": lambda: 2}), out=here / "out", again=True)
        except ConfigError as error:
            refused.append(error.message)
        return 1

    done = workflow.run(FakeModels(one={"f": meanwhile}), out=here / "out")
    assert refused == [f"another run is writing to {here / 'out'}"]
    assert summary(done) == {"a": 1}
    assert workflow.run(FakeModels(one={"f": lambda: 3}), out=here / "out", again=True).exit_code == 0
    assert not (here / "out" / ".lock").exists()
    with pytest.raises(ConfigError, match="not an empty folder") as caught:
        workflow.run(FakeModels(one={"f": lambda: 3}), out=here / "out")
    assert "--resume" in (caught.value.hint or "")


def test_a_part_of_what_was_skipped_is_nothing_and_no_error(here: Path) -> None:
    text = """
inputs: {n: {type: list, default: [1, 2]}}
steps: [{id: a, model: m, call: f, for_each: "${n}", when: {value: "${item}", above: 1}, with: {x: "${item}"}}]
outputs: {part: "${a.part}"}
"""
    done, _ = run(text, {"f": lambda x: {"part": x}}, out=here / "out")
    first, second = rows(done)
    assert (first["part"], second["part"]) == (None, 2)
    assert "errors" not in first
    assert "errors" not in second


def test_a_condition_that_cannot_be_tested_fails_its_item(here: Path) -> None:
    done, _ = run(
        """
on_error: skip
inputs: {rows: {type: list, default: [{age: 3}, {age: "36"}, {age: 40}]}}
steps: [{id: a, model: m, call: f, for_each: "${rows}", when: {value: "${item.age}", above: 30}, with: {x: "${item.age}"}}]
""",
        {"f": lambda x: x},
    )
    assert [row["a"] for row in rows(done)] == [None, None, 40]
    assert rows(done)[1]["errors"] == {"a": "when: above 30.0 cannot be asked of the text '36'"}
    assert done.exit_code == 1


def test_an_output_that_refers_to_what_is_not_there_is_a_failure(here: Path) -> None:
    steps = """
inputs: {n: {type: list, default: [1, 2]}}
steps: [{id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}, {id: b, model: m, call: f, with: {x: 1}}]
outputs: {good: "${a.k}", bad: "${a.l}", all: "${b.l}"}
"""
    done, _ = run(steps, {"f": lambda x: {"k": x}})
    assert (done.exit_code, done.failed) == (1, 3)
    assert [(e["step"], e["index"]) for e in done.record["errors"]] == [
        ("outputs.bad", [0]), ("outputs.bad", [1]), ("outputs.all", []),
    ]  # fmt: skip
    assert "no 'l'" in done.record["errors"][0]["error"]
    once, _ = run(
        "steps: [{id: b, model: m, call: f, with: {x: 1}}]\noutputs: {all: '${b.l}'}", {"f": lambda x: {}}
    )
    assert once.failed == 1


def test_the_first_failure_is_the_one_that_is_told(here: Path) -> None:
    text = 'inputs: {n: {type: list, default: [0, 1, 2]}}\nsteps: [{id: a, model: m, call: f, for_each: "${n}", batch: 3, with: {x: "${item}"}}]'
    with pytest.raises(WorkflowError, match=r"step a\[0\] failed") as caught:
        run(text, {"f": lambda x: x + 1})
    assert "a list for each argument" in (caught.value.hint or "")


def test_what_cannot_be_sent_is_told_with_its_step_and_place(here: Path) -> None:
    def refuse(x: int) -> None:
        raise ConfigError("an integer of 97 bits", hint="send it as str")

    with pytest.raises(ConfigError) as caught:
        run("steps: [{id: a, model: m, call: f, with: {x: 1}}]", {"f": refuse})
    assert caught.value.message == "<text>:4:9: step a: an integer of 97 bits"
    assert caught.value.hint == "send it as str"


def test_a_method_that_does_not_stream_is_told_from_one_that_does(here: Path) -> None:
    models = FakeModels(python={"f": lambda: 1})
    models.streams = False
    text = "version: 1\nname: w\nmodels: {m: {family: python}}\nsteps: [{id: a, model: m, call: f, stream: true}]"
    with pytest.raises(ConfigError, match="gives everything at once") as caught:
        Workflow.parse(text).run(models)
    assert (caught.value.line, caught.value.column) == (4, 36)


@pytest.mark.filterwarnings("error")
def test_the_mean_of_nothing_is_null(here: Path) -> None:
    done, _ = run(
        "steps: [{id: a, call: mean, with: {values: []}}, {id: b, call: mean, with: {values: [null, null]}}]",
        {},
    )
    assert summary(done) == {"a": None, "b": None}


def test_a_file_that_is_not_text_is_told_so(here: Path) -> None:
    (here / "x.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(WorkflowError, match=r"x\.bin is not UTF-8 text"):
        run(
            'inputs: {x: {type: file, default: x.bin}}\nsteps: [{id: a, call: collect, with: {values: "${x.text}"}}]',
            {},
        )


def test_an_interrupt_ends_the_loading_of_models_and_looks_for_nothing_any_more(here: Path) -> None:
    ended, looked = threading.Event(), 0

    class Building(FakeModels):
        def load(self, family: str, *, name: str, **arguments: Any) -> Any:
            self.environments.find = look
            _thread.interrupt_main()
            try:
                while not ended.wait(0.01):
                    check_cancelled()
            finally:
                ended.set()

    def look(_: Any) -> None:
        nonlocal looked
        looked += 1

    models = Building(python={})
    models.environments.find = lambda _: None
    text = "version: 1\nname: w\nmodels: {m: {family: python}}\nsteps: [{id: a, model: m, call: f}]"
    with pytest.raises(KeyboardInterrupt):
        Workflow.parse(text).run(models, out="out")
    try:
        assert ended.wait(60)
    finally:
        ended.set()
    assert looked == 0
    assert json.loads(Path("out/run.json").read_text())["state"] == "interrupted"
