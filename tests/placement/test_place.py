"""Where models go: properties over random models and machines, maps on request, refusals that help."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.devices import GIB, Holder, Inventory
from orchestrator.errors import ConfigError, PlacementError
from orchestrator.placement import SHAPES, estimate_from_config, needs_of, place, place_replicas, threads_for
from orchestrator.placement.amount import NOTHING, Amount
from orchestrator.placement.fill import sequential
from orchestrator.placement.needs import Block, Needs
from orchestrator.placement.place import RUNTIME

unhurried = settings(
    deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)  # on any machine
MIB = 2**20
SIZES = st.integers(0, 2000).map(lambda n: n * MIB)


@st.composite
def models(draw):
    layers = draw(st.lists(st.tuples(SIZES, st.integers(0, 50)), min_size=1, max_size=24))
    blocks = [Block("model.visual", "tower", Amount(0, draw(SIZES)))] if draw(st.booleans()) else []
    blocks.append(Block("model.embed", "embedding", Amount(0, draw(SIZES))))
    blocks += [
        Block(f"model.layers.{i}", "layer", Amount(0, weight), Amount(0, state * MIB))
        for i, (weight, state) in enumerate(layers)
    ]
    blocks.append(Block("lm_head", "head", Amount(0, draw(SIZES))))
    return Needs("random", tuple(blocks), "float16", Amount(0, draw(st.integers(0, 300)) * MIB))


@st.composite
def machines(draw):
    sizes = draw(st.lists(st.integers(1, 24 * 1024), min_size=1, max_size=6))
    return Inventory.parse(",".join(f"{size}MiB" for size in sizes) + ",cpu:64GiB", cores=8)


MODES = st.sampled_from(["sequential", "balanced", "auto", "single"])


def attempt(needs, inventory, **options):
    try:
        return place(needs, inventory, **options)
    except PlacementError:
        return None


@unhurried
@given(models(), machines(), MODES, st.booleans())
def test_no_device_over_its_budget_and_everything_once_in_order(needs, inventory, mode, offload):
    placement = attempt(needs, inventory, device_map=mode, offload=offload)
    if placement is None:
        return
    assert [b.name for share in placement.shares for b in share.blocks] == [b.name for b in needs.blocks]
    for share in placement.shares:
        assert share.used <= share.budget <= share.device.free
    assert sum(share.state for share in placement.shares) == needs.state()
    first = {b.name for b in placement.shares[0].blocks}
    assert {b.name for b in needs.blocks if b.first} <= first
    assert offload or all(share.device.kind == "cuda" for share in placement.shares)


@unhurried
@given(models(), machines(), MODES)
def test_the_same_question_has_the_same_answer(needs, inventory, mode):
    assert attempt(needs, inventory, device_map=mode) == attempt(needs, inventory, device_map=mode)


@settings(unhurried, max_examples=200)
@given(models(), machines(), MODES, st.booleans(), st.data())
def test_more_memory_never_makes_it_fail(needs, inventory, mode, offload, data):
    if attempt(needs, inventory, device_map=mode, offload=offload) is None:
        return
    grown = [
        replace(d, total=d.total + extra, free=d.free + extra)
        for d in inventory.accelerators
        for extra in [data.draw(st.integers(0, 8 * 1024)) * MIB]
    ]
    more = data.draw(machines()).accelerators if data.draw(st.booleans()) else ()
    for device in more:
        grown.append(replace(device, index=len(grown), uuid=f"more-{len(grown)}"))
    bigger = replace(inventory, accelerators=tuple(grown))
    assert attempt(needs, bigger, device_map=mode, offload=offload) is not None


@unhurried
@given(models(), machines(), MODES)
def test_what_the_worker_is_handed_makes_accelerate_come_to_this_plan(needs, inventory, mode):
    """accelerate counts weights, and keeps room on its first device; `sequential(reserve=True)` is its rule."""
    placement = attempt(needs, inventory, device_map=mode)
    if placement is None or len(placement.shares) == 1:
        return
    bare = replace(needs, blocks=tuple(replace(b, state=NOTHING) for b in needs.blocks))
    plan = sequential(bare, list(placement.max_memory.values()), reserve=True)
    if plan is None or [len(p) for p in plan] != [len(s.blocks) for s in placement.shares]:
        # It cannot leave one last block alone for the other devices; a zero-sized one goes where it likes.
        later = [b for share in placement.shares[1:] for b in share.blocks]
        assert len(later) == 1 or any(b.weights.fixed == 0 for b in needs.blocks)


@unhurried
@given(models(), machines())
def test_balanced_is_never_fuller_than_sequential(needs, inventory):
    filled = attempt(needs, inventory)
    spread = attempt(needs, inventory, device_map="balanced")
    assert (filled is None) == (spread is None)
    if filled is not None and spread is not None:
        load = [max(s.weights + s.state for s in p.shares) for p in (spread, filled)]
        lead = [p.shares[0].device.index for p in (spread, filled)]
        assert load[0] <= load[1] or lead[0] != lead[1]


def made(*layers, embed=1.0, head=1.0, state=0.0):
    """Needs in GiB."""
    blocks = [Block("embed", "embedding", Amount(0, int(embed * GIB)))]
    blocks += [
        Block(f"layers.{i}", "layer", Amount(0, int(size * GIB)), Amount(0, int(state * GIB)))
        for i, size in enumerate(layers)
    ]
    blocks.append(Block("head", "head", Amount(0, int(head * GIB))))
    return Needs("made", tuple(blocks), "float16")


def test_one_device_when_it_fits_and_the_worker_needs_no_map():
    placement = place(made(2, 2), Inventory.parse("4GiB,12GiB,12GiB"))
    assert placement.devices == ("imagined-1",)
    assert (placement.device, placement.device_map) == ("cuda:0", {"": "cuda:0"})  # as the worker sees it
    assert list(placement.max_memory) == ["0"]
    assert "one device" in placement.explanation


def test_sequential_fills_one_after_the_other():
    placement = place(made(*[2] * 8), Inventory.parse("12GiB,12GiB"), headroom=0.0)
    assert placement.device_map == "sequential"
    assert placement.devices == ("imagined-0", "imagined-1")
    assert [len(s.blocks) for s in placement.shares] == [5, 5]  # 1 + 4 x 2, and room for a layer; the rest


def test_the_room_for_a_layer_is_given_up_where_it_fits_only_so():
    needs = made(*[2] * 9, embed=0.5, head=0.5)
    placement = place(needs, Inventory.parse("9.6GiB,11GiB"), headroom=0.0)
    assert [s.weights / GIB for s in placement.shares] == [8.5, 10.5]
    # accelerate takes the largest layer off its first device: it is handed that much more
    assert 10.5 <= placement.max_memory["0"] / GIB < 12.5


def test_mixtral_fits_four_cards_where_accelerate_spills_to_disk():
    needs = replace(estimate_from_config(SHAPES["mixtral-8x7b"], "float16", context=512), workspace=NOTHING)
    placement = place(needs, Inventory.parse("4x24GiB"), headroom=0.0)
    assert [len(s.blocks) for s in placement.shares] == [9, 8, 8, 10]


def test_a_first_device_too_small_for_what_must_be_first_does_not_lead():
    placement = place(made(*[3] * 4, embed=5), Inventory.parse("4GiB,10GiB,4GiB,5GiB"), headroom=0.0)
    assert placement.devices[0] == "imagined-1"


def test_balanced_spreads():
    inventory = Inventory.parse("4x24GiB")
    for mode in ("balanced", "auto"):
        placement = place(made(*[1] * 14), inventory, device_map=mode)
        assert [round(s.weights / GIB) for s in placement.shares] == [4, 4, 4, 4]
        assert placement.device_map == "sequential"  # the budgets make the worker come to it


def test_pinned_devices_and_budgets():
    inventory = Inventory.parse("4x24GiB")
    assert place(made(2), inventory, devices=[2]).devices == ("imagined-2",)
    assert place(made(2), inventory, device_map="cuda:3").devices == ("imagined-3",)
    assert place(made(2), inventory, device_map=1).devices == ("imagined-1",)
    limited = place(made(*[2] * 4), inventory, max_memory={1: "7GiB", "cuda:3": "10GiB"})
    assert limited.devices == ("imagined-1", "imagined-3")
    assert limited.shares[0].budget == 7 * GIB
    over = place(made(2), inventory, max_memory={0: "900GiB"})
    assert over.shares[0].budget == 24 * GIB  # never more than is free


def test_offload_is_refused_unless_asked_for():
    inventory = Inventory.parse("8GiB,cpu:64GiB")
    with pytest.raises(PlacementError, match="does not fit"):
        place(made(*[2] * 6), inventory)
    for options in ({"offload": True}, {"max_memory": {0: "8GiB", "cpu": "60GiB"}}, {"devices": [0, "cpu"]}):
        placement = place(made(*[2] * 6), inventory, **options)
        assert [s.label for s in placement.shares] == ["cuda:0", "cpu"]
        assert set(placement.max_memory) == {"0", "cpu"}
        assert placement.devices == ("imagined-0",)


def test_offloaded_layers_keep_their_cache_on_the_accelerator():
    placement = place(made(*[1] * 12, state=0.25), Inventory.parse("8GiB,cpu:64GiB"), offload=True)
    assert [s.state / GIB for s in placement.shares] == [3.0, 0.0]
    assert placement.shares[0].used <= placement.shares[0].budget


def test_a_key_that_only_the_library_knows_is_handed_on():
    """transformers 5 calls `model.language_model.layers.1` what the files call `model.layers.1`."""
    wanted = {"": 1, "model.language_model.layers.1": 0}
    found = place(made(2, 2, 2), Inventory.parse("2x24GiB"), device_map=wanted)
    assert found.device_map == {"": "cuda:0", "model.language_model.layers.1": "cuda:1"}
    assert found.devices == ("imagined-1", "imagined-0")


def test_an_explicit_map_is_checked_and_renamed():
    inventory = Inventory.parse("3x24GiB")
    placement = place(
        made(2, 2, 2), inventory, device_map={"": 2, "layers.1": "cuda:1", "head": "imagined-1"}
    )
    assert placement.devices == ("imagined-2", "imagined-1")
    assert placement.device_map == {"": "cuda:0", "layers.1": "cuda:1", "head": "cuda:1"}
    with pytest.raises(PlacementError):
        place(made(2, 30), inventory, device_map={"": 0})
    for wrong, words in [
        ({"layers": 0}, "embed"),
        ({"": "disk"}, "disk"),
        ({"": "cuda:7"}, "cuda:7"),
        ({"": 0, "layers.1.attention": 1}, "splits 'layers.1'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            place(made(2, 2), inventory, device_map=wrong)


@pytest.mark.parametrize("options", [{"device_map": "everywhere"}, {"headroom": 1.0}, {"devices": [9]},
                                     {"max_memory": {0: "lots"}}, {"dtype": "int3"}])  # fmt: skip
def test_wrong_options(options):
    with pytest.raises(ConfigError):
        place(made(2), Inventory.parse("24GiB"), **options)


def test_the_cpu_is_a_device_like_another():
    inventory = Inventory.parse("cpu:16GiB", cores=4)
    for device_map in (None, "auto", "sequential", "cpu"):
        placement = place(made(2), inventory, device_map=device_map)
        assert (placement.device, placement.devices, placement.device_map) == ("cpu", ("cpu",), "cpu")
        assert placement.threads == 4
    assert place(made(2), Inventory.parse("24GiB,cpu:64GiB"), device_map="cpu").device == "cpu"
    with pytest.raises(PlacementError, match="cpu"):
        place(made(20), inventory)


def test_mig_instances_hold_whole_models_only():
    inventory = Inventory.parse("10GiB,10GiB")
    parts = replace(inventory, accelerators=tuple(replace(d, alone=True) for d in inventory.accelerators))
    assert place(made(2), parts).devices == ("imagined-0",)
    assert place(made(*[3] * 4), inventory).shares[1].blocks
    with pytest.raises(PlacementError):
        place(made(*[3] * 4), parts)


def test_nothing_known_goes_anywhere_even_on_a_full_machine():
    inventory = Inventory.parse("24GiB")
    full = inventory.with_devices([replace(inventory.accelerators[0], free=0)])
    assert place(needs_of(None), full).reservations == {"imagined-0": 0}


def test_dtype_is_handed_on_and_counted():
    needs = estimate_from_config(SHAPES["llama-7b"], "float16")
    inventory = Inventory.parse("80GiB")
    assert place(needs, inventory).dtype == "auto"
    single = place(needs, inventory, dtype="fp32")
    assert single.dtype == "float32"
    assert single.shares[0].weights == 2 * needs.weights()


def test_replicas_go_one_per_device():
    inventory = Inventory.parse("3x24GiB,cpu:64GiB")
    found = place_replicas(made(2), inventory, 3)
    assert [p.devices for p in found] == [("imagined-0",), ("imagined-1",), ("imagined-2",)]
    assert {p.device for p in found} == {"cuda:0"}  # each worker sees its own only
    with pytest.raises(PlacementError, match="3 of 4 replicas") as caught:
        place_replicas(made(2), inventory, 4)
    assert "replicas=3" in str(caught.value.hint)
    pairs = place_replicas(made(*[3] * 10), Inventory.parse("4x24GiB"), 2)
    assert [p.devices for p in pairs] == [("imagined-0", "imagined-1"), ("imagined-2", "imagined-3")]


def test_replicas_on_a_cpu_share_cores_and_memory():
    found = place_replicas(made(2), Inventory.parse("cpu:24GiB", cores=8), 4)
    assert [p.threads for p in found] == [2, 2, 2, 2]
    with pytest.raises(PlacementError, match="5 of 9"):
        place_replicas(made(2), Inventory.parse("cpu:24GiB", cores=8), 9)


@unhurried
@given(st.integers(1, 256), st.integers(1, 64))
def test_threads_are_never_more_than_cores(cores, workers):
    each = threads_for(cores, workers)
    assert each >= 1
    assert each * min(workers, cores) <= cores


def refused(needs, inventory, **options):
    with pytest.raises(PlacementError) as caught:
        place(needs, inventory, **options)
    return caught.value


def test_a_refusal_says_what_is_needed_free_and_held():
    inventory = Inventory.parse("24GiB")
    held = (Holder("captioner", 10 * GIB, 4242, deployment=True), Holder("python", 4 * GIB, 77))
    busy = inventory.with_devices([replace(inventory.accelerators[0], free=10 * GIB, holders=held)])
    error = refused(estimate_from_config(SHAPES["llama-7b"], name="llama-7b"), busy)
    for words in ("llama-7b needs 14.11 GiB in float16", "weights 12.55 GiB", "KV cache 1.00 GiB",
                  "10.00 GiB free of 24.00 GiB", "captioner 10.00 GiB", "python (pid 77) 4.00 GiB"):  # fmt: skip
        assert words in error.message
    assert "with captioner evicted" in str(error.hint)
    assert error.exit_code == 4


def test_remedies_are_tried_before_they_are_named():
    seven = estimate_from_config(SHAPES["llama-7b"], "float32")
    hint = str(refused(seven, Inventory.parse("16GiB")).hint)
    assert "bfloat16" in hint
    assert "8 bits" in hint
    assert "1 more device of 16.00 GiB" in hint
    assert "evicted" not in hint
    mixtral = estimate_from_config(SHAPES["mixtral-8x7b"])
    hint = str(refused(mixtral, Inventory.parse("16GiB")).hint)
    assert "bits" not in hint  # 27 GiB at 4 bits
    assert "6 more devices" in hint
    hint = str(refused(mixtral, Inventory.parse("2x16GiB"), device_map="single").hint)
    assert "no single change" in hint


def test_several_evictions_together():
    inventory = Inventory.parse("24GiB")
    held = tuple(Holder(name, 10 * GIB, 1, deployment=True) for name in ("a", "b"))
    busy = inventory.with_devices([replace(inventory.accelerators[0], free=4 * GIB, holders=held)])
    assert "with a, b all evicted" in str(refused(made(*[2] * 8), busy).hint)


def test_the_runtime_is_counted_on_each_device():
    placement = place(made(*[2] * 8), Inventory.parse("12GiB,12GiB"))
    assert [s.runtime for s in placement.shares] == [RUNTIME["cuda"]] * 2
    assert placement.reservations == {s.device.uuid: s.used for s in placement.shares}
