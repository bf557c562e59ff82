"""The plan: who can share, the smallest set, and every clash in words."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.environments import plan as plan_module
from orchestrator.environments.clash import explain
from orchestrator.environments.interpreters import find_interpreter
from orchestrator.environments.plan import EXACT, make_plan, smallest_cover
from orchestrator.errors import InterpreterNotFound, ResolutionError


@pytest.fixture
def wheels(machine):
    machine.wheel("transformers", "4.36.2")
    machine.wheel("transformers", "4.45.2")
    machine.wheel("transformers", "5.23.0")
    machine.wheel("flagembedding", "1.4.2", requires=["transformers>=4.44.2,<6"])


def test_families_that_agree_share_and_clashes_show_both_chains(machine, wheels):
    plan = make_plan(
        machine.settings,
        [
            machine.declare("old", ["transformers==4.36.2"]),
            machine.declare("flag", ["flagembedding==1.4.2"]),
            machine.declare("new", ["transformers==5.23.0"]),
        ],
    )
    assert [environment.families for environment in plan.environments] == [("old",), ("flag", "new")]
    assert plan.compatible == (("flag", "new"),)
    assert plan.exact
    assert str(plan.clashes[0]) == (
        "old and flag disagree about transformers:\n"
        "  old needs transformers==4.36.2\n"
        "  flag needs flagembedding==1.4.2, which needs transformers>=4.44.2"
    )
    assert [chain.links for chain in plan.clashes[1].chains] == [
        ("transformers==4.36.2",),
        ("transformers==5.23.0",),
    ]
    assert "we can conclude" in plan.clashes[0].words
    assert "family-" not in plan.clashes[0].words
    assert not (machine.home / "environments").exists()


def test_answers_are_remembered_until_the_wheels_or_the_question_change(machine, wheels, monkeypatch):
    def asked(*families):
        runs.clear()
        plan = make_plan(machine.settings, list(families))
        return len(runs), [environment.families for environment in plan.environments], plan.clashes

    runs, uv = [], plan_module.compile_requirements
    monkeypatch.setattr(
        plan_module, "compile_requirements", lambda *args, **kw: runs.append(1) or uv(*args, **kw)
    )
    old, new = (
        machine.declare("old", ["transformers==4.36.2"]),
        machine.declare("new", ["transformers==5.23.0"]),
    )
    count, split, clashes = asked(old, new)
    assert (count, split) == (3, [("old",), ("new",)])
    assert asked(old, new) == (0, split, clashes)
    assert asked(new, old)[0] == 0
    count, _, (clash,) = asked(machine.declare("third", ["transformers==4.45.2"]), old)
    assert count == 2  # itself, and the pair
    assert "third" in clash.words or "third" in str(clash)
    machine.wheel("transformers", "4.99")
    assert asked(old, new)[0] == 3


def test_three_that_agree_in_pairs_but_not_together(machine):
    """Every pair has a version of x that suits both; no version suits all three."""
    for version in ("1", "2", "3"):
        machine.wheel("x", version)
    families = [
        machine.declare("a", ["x<3"]),
        machine.declare("b", ["x>1"]),
        machine.declare("c", ["x!=2"]),
    ]
    plan = make_plan(machine.settings, families)
    assert len(plan.compatible) == 3
    assert len(plan.environments) == 2
    assert plan.clashes == ()


def test_ranges_of_python_that_leave_nothing(machine):
    try:
        find_interpreter(machine.settings, "==3.8.*")
    except InterpreterNotFound:
        pytest.skip("no Python 3.8 on this machine")
    plan = make_plan(
        machine.settings, [machine.declare("a", python="==3.8.*"), machine.declare("b", python=">=3.11")]
    )
    assert str(plan.clashes[0]) == (
        "a and b disagree about Python:\n  a needs Python ==3.8.*\n  b needs Python >=3.11"
    )
    assert next(environment.python for environment in plan.environments) == "3.8"


def test_a_family_that_is_impossible_alone(machine):
    with pytest.raises(ResolutionError, match="cannot be resolved, even alone"):
        make_plan(machine.settings, [machine.declare("a", ["nothing==1"]), machine.declare("b")])
    with pytest.raises(InterpreterNotFound):
        make_plan(machine.settings, [machine.declare("c", python="==3.99.*")])


def test_conditions_and_overlays_count(machine, wheels):
    machine.wheel("numpy", "1.26")
    condition = '[tool.orchestrator.when]\n"transformers<4.42" = ["numpy<2"]'
    old = machine.declare("old", ["transformers==4.45.2"], orchestrator=condition)
    needy = machine.declare("needy", ["numpy>=2"])
    assert len(make_plan(machine.settings, [old, needy]).environments) == 1
    assert len(make_plan(machine.settings, [old.variant(["transformers==4.36.2"]), needy]).environments) == 2


graphs = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.just(n), st.sets(st.sampled_from(list(itertools.combinations(range(n), 2)) or [(0, 0)]))
    )
)


@settings(deadline=None, max_examples=60)
@given(graphs, st.sets(st.sampled_from(list(itertools.combinations(range(5), 3)))))
def test_the_cover_is_smallest(graph, bad_triples):
    count, bad_pairs = graph

    def together(group):
        members = sorted(group)
        pairs = itertools.combinations(members, 2)
        triples = itertools.combinations(members, 3)
        return not any(pair in bad_pairs for pair in pairs) and not any(t in bad_triples for t in triples)

    found = smallest_cover(count, together)
    assert sorted(member for group in found for member in group) == list(range(count))
    assert all(together(group) for group in found)
    assert len(found) == brute_force(count, together)


def brute_force(count, together):
    best = count
    for labels in itertools.product(range(count), repeat=count):
        groups = [[m for m in range(count) if labels[m] == label] for label in set(labels)]
        if len(groups) < best and all(together(group) for group in groups):
            best = len(groups)
    return best


def test_beyond_the_exact_size_a_cover_is_still_valid():
    count = EXACT + 4
    found = smallest_cover(count, lambda group: len({member % 3 for member in group}) == 1)
    assert len(found) == 3


UVS_WORDS = """error: No solution found when resolving dependencies
  cause: Because only family-0==0 is available and family-0==0 depends on flagembedding==1.4.2, we can conclude that all versions of family-0 depend on flagembedding==1.4.2. (1)

         Because flagembedding>=1.4.2 depends on transformers>=4.44.2,<6.0.0 and family-1==0 depends on transformers==4.36.2, we can conclude that family-1==0 and flagembedding>=1.4.2 are incompatible.
         And because we know from (1) that all versions of family-0 depend on flagembedding==1.4.2, we can conclude that all versions of family-0 and family-1==0 are incompatible.
         And because only family-1==0 is available, we can conclude that all versions of family-0 and all versions of family-1 are incompatible.
         And because you require family-0 and family-1, we can conclude that your requirements are unsatisfiable."""


def test_uvs_explanation_becomes_two_chains():
    clash = explain("flag", "old", "family-0", "family-1", UVS_WORDS)
    assert clash.package == "transformers"
    assert [chain.links for chain in clash.chains] == [
        ("flagembedding==1.4.2", "transformers>=4.44.2,<6.0.0"),
        ("transformers==4.36.2",),
    ]


def test_words_that_cannot_be_read_are_kept():
    clash = explain("a", "b", "family-0", "family-1", "error: something else about family-0")
    assert clash.chains == ()
    assert "something else about a" in str(clash)
