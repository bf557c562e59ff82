"""Families as files: what is read, and what is refused with file, line and nearest name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import orchestrator
from orchestrator.environments import Catalog
from orchestrator.environments.catalog import builtin_root
from orchestrator.environments.family import read_family
from orchestrator.environments.requirements import conditional, in_torch_layer, overlay
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings


def test_everything_declared_is_read(machine):
    family = machine.declare(
        "old-clip",
        ["torch>=2.2", "transformers==4.36.2"],
        python=">=3.9,<3.13",
        project='description = "Pictures"\noptional-dependencies = { gptq = ["optimum"] }',
        uv='constraint-dependencies = ["pillow<11"]\noverride-dependencies = ["six==1.16"]\nexclude-newer = "2024-01-20"',
        orchestrator='checkpoints = ["openai/*"]\nprobe = ["transformers.CLIPModel"]\nlink-mode = "copy"\nsandbox = true\n'
        '[tool.orchestrator.defaults]\ndtype = "float32"\n[tool.orchestrator.environment]\nA = "1"\n'
        '[tool.orchestrator.when]\n"transformers<4.42" = ["numpy<2"]',
    )
    assert family.dependencies == ("torch>=2.2", "transformers==4.36.2")
    assert family.requires_python == "<3.13,>=3.9"
    assert family.all_constraints == ("pillow<11", "numpy<2")
    assert family.overrides == ("six==1.16",)
    assert family.exclude_newer == "2024-01-20"
    assert family.defaults == {"dtype": "float32"}
    assert family.environment == {"A": "1"}
    assert family.probe == ("transformers.CLIPModel",)
    assert family.link_mode == "copy"
    assert family.sandbox
    assert family.description == "Pictures"
    assert family.worker_file == machine.project / "workers" / "old-clip.py"
    assert family.worker_class == "Worker"
    assert set(family.requirements) >= {"pyzmq>=25.1", "msgpack>=1.0.5", "numpy>=1.21"}


@pytest.mark.parametrize(
    ("section", "text", "words", "hint"),
    [
        (
            "orchestrator",
            "checkpionts = []",
            "unknown key 'checkpionts' in [tool.orchestrator]",
            "'checkpoints'",
        ),
        ("uv", 'exclude_newer = "2024"', "unknown key 'exclude_newer' in [tool.uv]", "'exclude-newer'"),
        ("project", "dependancies = []", "unknown key 'dependancies' in [project]", "'dependencies'"),
        ("orchestrator", "sandbax = true", "unknown key 'sandbax' in [tool.orchestrator]", "'sandbox'"),
        ("orchestrator", 'sandbox = "yes"', "tool.orchestrator.sandbox: expected `bool`", None),
        ("orchestrator", "checkpoints = 3", "tool.orchestrator.checkpoints: expected `array`", None),
        ("orchestrator", "checkpoints = [1]", "tool.orchestrator.checkpoints: expected `str`", None),
        ("orchestrator", 'link-mode = "soft"', "tool.orchestrator.link-mode: invalid enum value", None),
        ("uv", 'constraint-dependencies = ["a b c"]', "'a b c' is not a requirement", "write it as pip does"),
    ],
)
def test_wrong_keys_are_refused_with_their_line(machine, section, text, words, hint):
    with pytest.raises(ConfigError) as caught:
        machine.declare("family", **{section: text})
    file = machine.project / "envs" / "family" / "pyproject.toml"
    line = 1 + file.read_text().splitlines().index(text)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert words in caught.value.message
    if hint:
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('name = "family"', 'name = "other"'), "not that of its folder"),
        (("family.py:Worker", "nothing.py:Worker"), "there is no"),
        (("family.py:Worker", "../family.py:Worker"), "cannot be read"),
        (("family.py:Worker", "family.py:not a class"), "cannot be read"),
        (('requires-python = ">=', 'requires-python = "~~'), "is not a range of versions"),
        (("[tool.uv]", "[projct]\n[tool.uv]"), "unknown table [projct]"),
        (('worker = "', "worker = nothing"), "not valid TOML"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(machine, change, words):
    machine.declare("family")
    file = machine.project / "envs" / "family" / "pyproject.toml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(ConfigError) as caught:
        machine.catalog.get("family")
    assert words in caught.value.message
    assert caught.value.line
    assert caught.value.path == str(file)


def test_a_worker_may_be_a_folder(machine):
    machine.declare("family")
    folder = machine.project / "workers" / "family"
    folder.mkdir()
    (folder / "__init__.py").touch()
    file = machine.project / "envs" / "family" / "pyproject.toml"
    file.write_text(file.read_text().replace("family.py:Worker", "family:Worker"))
    assert machine.catalog.get("family").worker_file == folder / "__init__.py"


def test_a_variant_replaces_adds_and_is_found_by_its_label(machine):
    machine.declare("family", ["transformers==5.23.0", "torch>=2"])
    variant = machine.catalog.get("family", ["transformers == 4.39.3", "six"])
    assert variant.direct == ("transformers==4.39.3", "torch>=2", "six")
    assert variant.label == "family[transformers==4.39.3, six]"
    assert machine.catalog.get(variant.label) == variant
    assert machine.catalog.get("family[transformers==4.39.3]", ["six"]) == variant


def test_a_label_keeps_ranges_with_commas(machine):
    machine.declare("family")
    variant = machine.catalog.get("family", ["numpy>=1.26,<2", "six"])
    assert machine.catalog.get(variant.label).with_ == variant.with_


@pytest.mark.parametrize("text", ["transformers==latest", "transformers == latest", "transformers"])
def test_latest_means_any_version(machine, text):
    machine.declare("family", ["transformers==5.23.0"])
    assert machine.catalog.get("family", [text]).direct == ("transformers",)


def test_an_extra_is_chosen_by_its_name(machine):
    machine.declare("family", ["a==1"], project='optional-dependencies = { gptq = ["optimum>=1"] }')
    variant = machine.catalog.get("family", ["gptq", "a==2"])
    assert variant.direct == ("a==2", "optimum>=1")
    assert variant.label == "family[gptq, a==2]"
    assert machine.catalog.get(variant.label) == variant


def test_a_wrong_overlay_is_refused(machine):
    machine.declare("family")
    with pytest.raises(ConfigError, match="'a b' is not a requirement"):
        machine.catalog.get("family", ["a b"])


def test_conditions_hold_for_pins_only():
    rules = {"transformers<4.42": ["numpy<2"], "Torch>=2.5": ["sympy>1"]}
    assert conditional(rules, ["transformers==4.36.2", "torch==2.13.0"]) == ("numpy<2", "sympy>1")
    assert conditional(rules, ["transformers==4.42", "torch>=2.5"]) == ()


def test_overlays_keep_extras_and_replace_every_entry_of_the_name():
    base = [
        "Transformers[torch]==5.0; python_version<'3.12'",
        "transformers==4.57; python_version>='3.12'",
        "a",
    ]
    assert overlay(base, ["transformers==4.39.3"]) == ("transformers[torch]==4.39.3", "a")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("torch", True), ("Torch_Vision", False), ("torchvision", True), ("nvidia-cublas-cu12", True), ("cuda-bindings", True),
     ("triton", True), ("pytorch-triton-rocm", True), ("pytorch-lightning", False), ("torchmetrics", False), ("numpy", False)],
)  # fmt: skip
def test_the_torch_layer_is_torch_and_what_its_builds_bring(name, expected):
    assert in_torch_layer(name) is expected


def test_an_unknown_family_is_answered_with_the_nearest(machine):
    machine.declare("sentence-embedding")
    with pytest.raises(ConfigError) as caught:
        machine.catalog.get("sentence-embeding")
    assert caught.value.hint == "did you mean 'sentence-embedding'?"


def test_the_project_goes_before_the_built_in_families(machine):
    built_in = Catalog.default(Settings(home=machine.home, project=None))
    assert "python" in built_in.names()
    machine.declare("python", ["six"])
    catalog = Catalog.default(machine.settings)
    assert catalog.get("python").folder == machine.project / "envs" / "python"
    assert set(built_in.names()) <= set(catalog.names())


def test_a_changed_declaration_is_read_again(machine):
    catalog = machine.catalog
    machine.declare("family", ["a==1"])
    assert catalog.get("family").dependencies == ("a==1",)
    machine.declare("family", ["a==22"])
    assert catalog.get("family").dependencies == ("a==22",)


def test_a_checkpoint_selects_its_family_by_the_longest_pattern(machine):
    machine.declare("general", orchestrator='checkpoints = ["openai/*"]')
    machine.declare("clip", orchestrator='checkpoints = ["openai/clip-*"]')
    assert machine.catalog.for_checkpoint("openai/CLIP-vit").name == "clip"
    assert machine.catalog.for_checkpoint("openai/whisper").name == "general"
    assert machine.catalog.for_checkpoint("other/model") is None


def test_the_built_in_folders_are_found_in_a_wheel(machine, monkeypatch):
    package = machine.root / "site-packages" / "orchestrator"
    (package / "_data" / "envs").mkdir(parents=True)
    (machine.root / "site-packages" / "envs").mkdir()  # somebody else's package of that name
    monkeypatch.setattr(orchestrator, "__file__", str(package / "__init__.py"))
    assert builtin_root() == package / "_data"


def test_nothing_of_a_project_is_importable(machine):
    machine.declare("family")
    Catalog.default(machine.settings).get("family")
    assert not [part for part in sys.path if str(machine.project) in part]
    assert not [part for part in sys.path if Path(part).name in {"envs", "workers"}]


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("class _Base:\n    pass\n\nclass Mine(_Base):\n    pass\n", "Mine"),
        ("def f():\n    pass\n", "has no public class"),
        ("class A:\n    pass\n\nclass B:\n    pass\n", "has 2 public classes (A, B)"),
        ("x = 1\nclass A(:\n", "my_own.py, line 2: invalid syntax"),
        (None, "there is no"),
    ],
)
def test_without_a_worker_line_it_is_the_one_public_class_of_its_file(tmp_path, source, outcome):
    folder, workers = tmp_path / "envs" / "my-own", tmp_path / "workers"
    folder.mkdir(parents=True)
    workers.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "my-own"\n')
    if source is not None:
        (workers / "my_own.py").write_text(source)
    if outcome == "Mine":
        family = read_family(folder, workers)
        assert (family.worker_file, family.worker_class) == (workers / "my_own.py", "Mine")
        return
    with pytest.raises(ConfigError, match=re.escape(outcome)):
        read_family(folder, workers)
