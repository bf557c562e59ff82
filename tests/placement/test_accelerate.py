"""Equal to accelerate's own sequential device maps, except where we differ on purpose.

`data/accelerate_maps.json` was recorded by `accelerate_maps.py`; the slow test asks accelerate again. Where we
differ, each shown by a test here or in `test_place.py`:

1. what does not fit is refused; accelerate puts the tail on "disk" and says nothing;
2. where a model fits only without the room that accelerate keeps for its largest layer, that room is given up,
   and the worker is handed budgets that make accelerate give it up too;
3. towers, projectors and embeddings must be on the first device, and are counted first wherever they are defined;
4. beside weights the KV cache, logits, activations, the runtime and a headroom are counted (off in this file);
5. "balanced" and "auto" make the fullest device as empty as can be; accelerate gives each an equal part and 1.25
   layers, the last one what is left.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.devices import Inventory
from orchestrator.errors import PlacementError
from orchestrator.placement import SHAPES, estimate_from_config, place
from orchestrator.placement.amount import NOTHING
from orchestrator.placement.fill import sequential

RECORDED = json.loads((Path(__file__).parent / "data" / "accelerate_maps.json").read_text())
ANSWERS = {answer["name"]: answer for answer in RECORDED["answers"]}
CASES = [
    pytest.param(name, case["budgets"], case["starts"], id=f"{name}-{i}")
    for name, answer in ANSWERS.items()
    for i, case in enumerate(answer["maps"])
]
SLACK = 4096  # bytes of rotary caches, which are in no checkpoint, and of alignment


def renamed(name):
    """A module of transformers 5 by the name that it has in the checkpoint."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def bare(name):
    """Weights only, as accelerate counts."""
    needs = estimate_from_config(SHAPES[name], "float16", name=name)
    blocks = tuple(replace(block, state=NOTHING) for block in needs.blocks)
    return replace(needs, blocks=blocks, workspace=NOTHING)


def starts(plan):
    """Where each device's layers begin."""
    return [(blocks[0].name, device) for device, blocks in enumerate(plan) if blocks]


def expected(recorded, needs):
    """The recorded starts by block: what must be first is one piece, a tied head is with its embeddings."""
    names = {block.name: block for block in needs.blocks}
    found = []
    for name, device in ((renamed(n), d) for n, d in recorded):
        block = next((b for n, b in names.items() if name == n or name.startswith(n + ".")), None)
        if block is not None and block.tied:
            continue
        first = block is None or block.first
        found.append((needs.blocks[0].name if first else block.name, device))
    return found


@pytest.mark.parametrize("name", ANSWERS)
def test_our_sizes_are_those_of_the_real_modules(name):
    needs = bare(name)
    ours = {block.name: block.weights.bytes("float16") for block in needs.blocks}
    theirs = {renamed(module): size for module, size in ANSWERS[name]["modules"]}
    assert abs(sum(ours.values()) - sum(theirs.values())) < SLACK
    for module, size in ours.items():
        inside = sum(s for m, s in theirs.items() if m == module or m.startswith(module + "."))
        assert abs(size - inside) < SLACK, module


@pytest.mark.parametrize(("name", "budgets", "recorded"), CASES)
def test_sequential_is_accelerates(name, budgets, recorded):
    needs = bare(name)
    plan = sequential(needs, budgets, reserve=True)
    if recorded[-1][1] == "disk":
        assert plan is None  # difference 1
        return
    assert starts(plan) == expected(recorded, needs)


@pytest.mark.parametrize(("name", "budgets", "recorded"), CASES)
def test_what_is_handed_to_the_worker_is_what_was_planned(name, budgets, recorded):
    """With everything counted: accelerate's rule on the handed budgets gives the plan that was printed."""
    needs = estimate_from_config(SHAPES[name], "float16", context=256)
    machine = Inventory.parse(",".join(f"{b}b" for b in budgets))
    try:
        placement = place(needs, machine)
    except PlacementError:
        return
    if len(placement.shares) > 1:
        plan = sequential(bare(name), list(placement.max_memory.values()), reserve=True)
        assert [[b.name for b in p] for p in plan] == [[b.name for b in s.blocks] for s in placement.shares]


def test_there_are_cases_of_each_sort():
    ends = [case.values[2][-1][1] for case in CASES]
    assert ends.count("disk") >= 4
    assert ends.count(0) >= 5
    assert sum(isinstance(end, int) and end > 0 for end in ends) >= 15


def test_mixtral_on_four_cards_is_disk_there_and_a_place_here():
    """Difference 2: 87 GiB on 4 x 24 GiB."""
    budgets = [24 * 2**30] * 4
    recorded = next(c["starts"] for c in ANSWERS["mixtral-8x7b"]["maps"] if c["budgets"] == budgets)
    assert recorded[-1][1] == "disk"
    assert starts(sequential(bare("mixtral-8x7b"), budgets)) == [
        ("model.embed_tokens", 0),
        ("model.layers.8", 1),
        ("model.layers.16", 2),
        ("model.layers.24", 3),
    ]


@pytest.mark.slow
def test_accelerate_still_says_so(accelerate_python):
    """Asks the accelerate of a real environment, on meta tensors, and on our own handed budgets too."""
    handed = place(
        estimate_from_config(SHAPES["mixtral-8x7b"], "float16", context=256), Inventory.parse("4x26GiB")
    )
    requests = [
        {"name": name, "config": dict(SHAPES[name]), "budgets": [case["budgets"] for case in answer["maps"]]}
        for name, answer in ANSWERS.items()
    ]
    requests.append({"name": "handed", "config": dict(SHAPES["mixtral-8x7b"]),
                     "budgets": [list(handed.max_memory.values())]})  # fmt: skip
    script = Path(__file__).parent / "accelerate_maps.py"
    run = subprocess.run(
        [accelerate_python, "-I", str(script)], input=json.dumps(requests), capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    *answers, mine = json.loads(run.stdout)["answers"]
    for answer in answers:
        assert [c["starts"] for c in answer["maps"]] == [c["starts"] for c in ANSWERS[answer["name"]]["maps"]]
    assert [(n, d) for n, d in mine["maps"][0]["starts"]] == starts([s.blocks for s in handed.shares])
    sys.stderr.write(run.stderr[-200:])
