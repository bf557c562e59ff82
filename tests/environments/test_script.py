"""Families from one file: the target's form, the PEP 723 block, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.environments import Catalog
from orchestrator.environments.script import script_target
from orchestrator.errors import ConfigError
from orchestrator.settings import load_settings

SCRIPT = """# /// script
# requires-python = ">=3.9"
# dependencies = ["numpy<2", "tomli"]
#
# [tool.orchestrator.defaults]
# start = 3
# ///
class Model:
    pass
"""


@pytest.fixture
def families() -> Catalog:
    return Catalog.default(load_settings())


def script(folder: Path, text: str = SCRIPT) -> Path:
    path = folder / "my_model.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "name"), [("./m.py:Model", "Model"), ("/a/m.py", ""), ("m.py:function", "function")]
)
def test_targets(text: str, name: str) -> None:
    target = script_target(text)
    assert target is not None
    assert target[0].is_absolute()
    assert target[1] == name


@pytest.mark.parametrize(
    "text", ["sentence-embedding", "python", "causal-lm[transformers==4.36.2]", "m.py:a.b"]
)
def test_other_names_are_not_targets(text: str) -> None:
    assert script_target(text) is None


def test_the_block_decides_the_environment(tmp_path: Path, families: Catalog) -> None:
    path = script(tmp_path)
    family = families.get(f"{path}:Model", ["numpy==1.26.4"])
    assert family.direct == ("numpy==1.26.4", "tomli")
    assert family.requires_python == ">=3.9"
    assert family.defaults == {"start": 3, "target": f"{path}:Model"}
    assert family.worker_file == families.get("python").worker_file


def test_a_block_may_name_the_family_whose_environment_it_uses(tmp_path: Path, families: Catalog) -> None:
    path = script(tmp_path, '# /// script\n# [tool.orchestrator]\n# family = "causal-lm"\n# ///\n')
    assert families.get(str(path)).dependencies == families.get("causal-lm").dependencies


def test_without_a_block_it_is_the_python_family(tmp_path: Path, families: Catalog) -> None:
    assert families.get(str(script(tmp_path, "def f(): pass\n"))).dependencies == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# /// script\n# dependencies = [\n# ///\n", r"my_model\.py:1: .*not TOML"),
        ('# /// script\n# dependencies = "numpy"\n# ///\n', "must be a list"),
        ('# /// script\n# dependencies = ["numpy=!2"]\n# ///\n', "numpy=!2"),
        ("# /// script\n# [tool.orchestrator]\n# famly = 1\n# ///\n", "famly"),
        ("# /// script\n# x = 1\n# ///\npass\n" * 2, "two"),
    ],
)
def test_wrong_blocks_are_named(tmp_path: Path, families: Catalog, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        families.get(str(script(tmp_path, text)))


def test_a_missing_file_is_named(tmp_path: Path, families: Catalog) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        families.get(str(tmp_path / "none.py"))
