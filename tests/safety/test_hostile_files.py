"""Workflow and matrix files that somebody else wrote: YAML that wants to make objects, or to grow."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.errors import ConfigError
from orchestrator.matrix.schema import read_matrix
from orchestrator.workflow.yaml_source import YamlSource

TAGS = ("!!python/object/apply:os.mkdir [{marker}]", "!!python/object/new:os.mkdir [{marker}]")


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_no_objects(tmp_path: Path, tag: str) -> None:
    marker, file = tmp_path / "ran", tmp_path / "matrix.yaml"
    text = f"version: 1\nname: {tag.format(marker=marker)}\n"
    file.write_text(text)
    for read in (lambda: YamlSource.parse(text), lambda: YamlSource.read(file), lambda: read_matrix(file)):
        with pytest.raises(ConfigError, match="could not determine a constructor"):
            read()
    assert not marker.exists()
    yaml.unsafe_load(text)  # the text is one that would
    assert marker.exists()


def test_yaml_does_not_grow_without_limit() -> None:
    """Nine anchors that hold nine of the one before: 400 million values in 500 characters."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="anchors that multiply"):
        YamlSource.parse("\n".join(lines))
    assert YamlSource.parse("a: &a [1, 2]\nb: [*a, *a]").data == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
