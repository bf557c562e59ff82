"""Locks: what is in them, when they are stale, and what cannot be resolved."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.environments import lock as lock_module
from orchestrator.environments.interpreters import find_interpreter
from orchestrator.environments.lock import inputs_of, is_stale, make_lock, read_lock
from orchestrator.environments.recipe import recipe_for
from orchestrator.environments.records import write_text
from orchestrator.errors import ResolutionError


@pytest.fixture
def locked(machine):
    """Locks a family as `env lock` does, and returns the lock."""

    def make(family, **options):
        interpreter = find_interpreter(machine.settings, family.requires_python)
        made = make_lock(machine.settings, family, interpreter, **options)
        write_text(family.lock_file, made.text)
        return made

    return make


@pytest.fixture
def compilations(monkeypatch):
    """The runs of `uv pip compile`."""
    seen = []
    real = lock_module.compile_requirements

    def counted(settings, args, *rest, **options):
        seen.append(args)
        return real(settings, args, *rest, **options)

    monkeypatch.setattr(lock_module, "compile_requirements", counted)
    return seen


def test_a_lock_pins_everything_with_hashes_and_names_no_place(machine, locked):
    machine.wheel("model", "1.0", requires=["helper>=1"])
    machine.wheel("helper", "1.5")
    made = locked(machine.declare("family", ["model"]), portable=True)
    assert list(made.blocks) == ["helper", "model", "msgpack", "numpy", "pyzmq"]
    assert all(block.count("--hash=sha256:") == 1 for block in made.blocks.values())
    assert str(machine.root) not in made.text
    assert not [line for line in made.text.splitlines() if line.startswith("-")]
    assert "via family" in made.text
    assert read_lock(machine.catalog.get("family").lock_file) == made


def test_torch_and_what_its_build_brings_are_left_out(machine, locked):
    machine.wheel("torch", "2.5.0", requires=["nvidia-cublas-cu12", "triton", "sympy"])
    machine.wheel("nvidia-cublas-cu12", "12.1")
    machine.wheel("triton", "3.0")
    machine.wheel("sympy", "1.14")
    made = locked(machine.declare("family", ["torch>=2"]))
    assert set(made.blocks) == {"sympy", "msgpack", "numpy", "pyzmq"}
    assert made.torch == ("torch==2.5.0",)
    assert read_lock(machine.catalog.get("family").lock_file).torch == ("torch==2.5.0",)


def test_the_build_on_the_locking_machine_is_not_recorded(machine, locked):
    machine.wheel("torch", "2.5.0+cpu")
    assert locked(machine.declare("family", ["torch==2.5.0"])).torch == ("torch==2.5.0",)


@pytest.mark.parametrize(
    "change",
    [
        {"dependencies": ["model==2.0"]},
        {"uv": 'constraint-dependencies = ["helper<2"]'},
        {"uv": 'override-dependencies = ["helper==1"]'},
        {"uv": 'exclude-newer = "2024-01-20"'},
        {"python": ">=3.7"},
        {"orchestrator": '[tool.orchestrator.when]\n"model<2" = ["helper<2"]'},
    ],
)
def test_a_lock_is_stale_when_its_inputs_change(machine, locked, change):
    machine.wheel("model", "1.0")
    family = machine.declare("family", ["model==1.0"])
    assert is_stale(family) == "there is no lock"
    locked(family)
    assert is_stale(family) is None
    assert is_stale(machine.declare("family", **{"dependencies": ["model==1.0"], **change}))


def test_a_lock_is_not_stale_for_what_does_not_matter(machine, locked):
    machine.wheel("model", "1.0")
    locked(machine.declare("family", ["model==1.0"]))
    family = machine.declare("family", ["model == 1.0"], orchestrator='checkpoints = ["a/*"]')
    assert is_stale(family) is None


def test_a_foreign_file_is_not_taken_for_a_lock(machine):
    family = machine.declare("family")
    family.lock_file.write_text("numpy==1.26.4\n")
    assert is_stale(family) == "it was not made by `orchestrator env lock`"


def test_constraints_overrides_and_conditions_are_obeyed(machine, locked):
    for version in ("1.0", "2.0", "3.0"):
        machine.wheel("helper", version)
        machine.wheel("other", version)
    machine.wheel("model", "1.0", requires=["helper>=2", "other"])
    made = locked(
        machine.declare(
            "family",
            ["model==1.0"],
            uv='override-dependencies = ["helper==1.0"]\nconstraint-dependencies = ["other<3"]',
            orchestrator='[tool.orchestrator.when]\n"model<2" = ["other<2"]',
        )
    )
    assert "helper==1.0" in made.blocks["helper"]
    assert "other==1.0" in made.blocks["other"]


def test_a_variant_keeps_what_it_can_of_the_familys_lock(machine, locked, compilations):
    machine.wheel("model", "1.0", requires=["helper"])
    machine.wheel("model", "2.0", requires=["helper"])
    machine.wheel("helper", "1.0")
    family = machine.declare("family", ["model==1.0"])
    locked(family)
    machine.wheel("helper", "2.0")  # published after the family was locked
    recipe = recipe_for(machine.settings, family.variant(["model"]), make=True)
    assert "helper==1.0" in recipe.requirements
    assert "model==2.0" in recipe.requirements  # what the variant is about is not kept back
    compilations.clear()
    assert recipe_for(machine.settings, family.variant(["model"]), make=False) == recipe
    assert not compilations


def test_a_committed_lock_is_used_as_it_is(machine, locked, compilations):
    machine.wheel("model", "1.0")
    locked(machine.declare("family", ["model"]))
    machine.wheel("model", "2.0")
    compilations.clear()
    assert "model==1.0" in recipe_for(machine.settings, machine.catalog.get("family"), make=True).requirements
    assert not compilations


def test_a_stale_lock_is_replaced_in_the_store_and_left_in_the_project(machine, locked):
    machine.wheel("model", "1.0")
    machine.wheel("model", "2.0")
    before = locked(machine.declare("family", ["model==1.0"])).text
    family = machine.declare("family", ["model==2.0"])
    assert recipe_for(machine.settings, family, make=False) is None
    assert "model==2.0" in recipe_for(machine.settings, family, make=True).requirements
    assert family.lock_file.read_text() == before


def test_two_families_that_resolve_alike_have_one_environment(machine):
    machine.wheel("model", "1.0")
    one = recipe_for(machine.settings, machine.declare("one", ["model==1.0"]), make=True)
    two = recipe_for(machine.settings, machine.declare("two", ["model>=1"]), make=True)
    assert one.id == two.id
    private = machine.declare("three", ["model"], orchestrator='link-mode = "copy"')
    assert recipe_for(machine.settings, private, make=True).id != one.id


def test_an_impossible_pin_is_explained_and_remembered(machine, compilations):
    machine.wheel("model", "1.0", requires=["helper<2"])
    machine.wheel("helper", "1.0")
    machine.wheel("helper", "2.0")
    family = machine.declare("family", ["model==1.0", "helper==2.0"])
    with pytest.raises(ResolutionError) as caught:
        machine.ensure(family)
    assert "helper==2.0, we can conclude" in caught.value.message
    assert "No solution found" in caught.value.log
    with pytest.raises(ResolutionError, match="not tried again"):
        machine.ensure(family)
    assert len(compilations) == 1
    with pytest.raises(ResolutionError):
        machine.ensure(family, retry=True)
    assert len(compilations) == 2
    assert not machine.leftovers()


def test_a_change_lifts_the_quarantine(machine, monkeypatch, compilations):
    family = machine.declare("family", ["model==1.0"])
    with pytest.raises(ResolutionError):
        machine.ensure(family)
    more = machine.root / "more"
    more.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{machine.wheels} {more}")
    with pytest.raises(ResolutionError):
        machine.ensure(family)
    assert len(compilations) == 2
    machine.wheel("model", "1.0")
    assert machine.ensure(family, retry=True).versions["model"] == "1.0"


def test_an_unreachable_index_is_not_taken_for_an_impossible_pin(machine, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(Exception, match="the index does not answer") as caught:
        machine.ensure(machine.declare("family", ["model==1.0"]))
    assert type(caught.value).__name__ == "InstallError"
    assert "127.0.0.1:9" in caught.value.log
    assert "secret" not in caught.value.log + str(caught.value)
    assert not (machine.home / "state" / "quarantine").exists()


def test_inputs_do_not_depend_on_the_order(machine):
    family = machine.declare("family", ["a", "b"])
    turned = dataclasses.replace(family, dependencies=("b", "a"))
    assert inputs_of(family) == inputs_of(turned)
