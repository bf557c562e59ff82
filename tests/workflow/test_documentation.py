"""docs/workflows.md: every example runs, in real workers, and gives what the page says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Orchestrator
from orchestrator.settings import Settings
from orchestrator.workflow import Workflow, schema

PAGE = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n# example: (\w+)\n(.*?)```\n```json\n(.*?)```", PAGE, re.DOTALL)
BEGINNING = "version: 1\nname: example\nmodels: {mine: {family: ./steps.py}}\n"
DATA = {
    "a.txt": "a note",
    "b.txt": "b",
    "people.csv": "name,age\nAda,36\n",
    "facts.jsonl": '{"what": "first"}\n{"what": "second"}\n',
}


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text", "lines"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES])
def test_an_example_gives_what_the_page_says(
    orc: Orchestrator, here: Path, name: str, text: str, lines: str
) -> None:
    (steps,) = re.findall(r"```python\n# steps\.py\n(.*?)```", PAGE, re.DOTALL)
    (here / "steps.py").write_text(steps)
    (here / "data").mkdir()
    for file, content in DATA.items():
        (here / "data" / file).write_text(content)
    done = Workflow.parse(BEGINNING + text, name=name, base=here).run(orc, out=here / "out")
    expected = [json.loads(line) for line in lines.splitlines()]
    found: list[dict[str, Any]] = [
        {key: value for key, value in row.items() if key not in ("item", "errors")} for row in done.results()
    ]
    if (here / "out" / "summary.json").exists():
        found.append(json.loads((here / "out" / "summary.json").read_text()))
    assert found == expected


def test_the_whole_file_is_a_workflow_and_every_key_is_told() -> None:
    (whole,) = re.findall(r"```yaml\n(version: 1.*?)```", PAGE, re.DOTALL)
    assert [step.id for step in Workflow.parse(whole).file.steps] == ["translation"]
    for kind in (schema.Step, schema.Model, schema.Input):
        for field in kind.__struct_fields__:
            word = field.rstrip("_")
            assert re.search(rf"\b{word}\b", PAGE), f"{kind.__name__}.{word} is not on the page"
    assert len(EXAMPLES) == 4
