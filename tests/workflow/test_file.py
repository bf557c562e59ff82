"""What is refused before anything starts, and where the complaint points."""

from __future__ import annotations

import json

import pytest

from orchestrator.errors import ConfigError
from orchestrator.workflow import Workflow
from orchestrator.workflow.schema import workflow_schema

HEAD = """\
version: 1
name: w
inputs:
  photos: {type: images, default: "*.png"}
  prompt: {type: text, default: say}
models:
  m: {family: python}
"""


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Workflow.parse(text, name="w.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "column", "words", "hint"),
    [
        ("", 1, 1, "a workflow is a mapping", None),
        ("a: [", 1, 5, "not valid YAML", None),
        ("version: 1\nname: w\nsteps: []", 3, 8, "expected a list of one or more", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, for_each: {a: "${photos}"}, with: {x: "${a}"}}]', 8, 47, "'a' cannot name an item: it names something else", None),
        (HEAD.replace("prompt", "item") + 'steps: [{id: a, model: m, call: f, for_each: "${photos}"}]', 8, 36, "'item' cannot name an item", None),
        (HEAD.replace("python}", "python, max_memory: {cpu: lots}}") + "steps: [{id: a, model: m, call: f}]", 7, 35, "models.m.max_memory: not a size", "write for example 20GiB, or a number of bytes"),
        ("version: 1\nname: w\nhost: {}\nworkflow: {}", 1, 1, "the record of a run, not a workflow", "orchestrator run --replay FILE"),
        ("version: 2\nname: w\nsteps: [{id: a, call: collect}]", 1, 10, "version", None),
        ("version: 1\nname: w\nname: v", 3, 1, "already given in line 2", None),
        (HEAD.replace("python}", "python, options: {dtype: a}}") + "steps: [{id: a, model: m, call: f}]", 7, 33, "'dtype' cannot be an option", "it is a key of the model, beside options"),
        (HEAD + "stepz: []", 8, 1, "unknown key 'stepz'", "did you mean 'steps'?"),
        (HEAD + "steps: [{id: a, call: f, modle: m}]", 8, 26, "unknown key 'modle' in steps[0]", "did you mean 'model'?"),
        (HEAD + "steps: [{id: a, model: n, call: f}]", 8, 24, "unknown model 'n'", "known: 'm'"),
        (HEAD + 'steps: [{id: a, model: m, call: f, with: {x: "${phots}"}}]', 8, 46, "unknown name 'phots'", "did you mean 'photos'?"),
        (HEAD + 'steps: [{id: a, model: m, call: f, with: {x: "${photos"}}]', 8, 46, "without its '}'", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, with: {x: "${a b}"}}]', 8, 46, "not a reference", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, for_each: "${prompt}"}]', 8, 46, "is text, not a list", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, for_each: "x ${photos}"}]', 8, 46, "needs one reference", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, for_each: {photos: "${photos}"}}]', 8, 47, "cannot name an item", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, for_each: "${photos}", with: {x: "${item.nmae}"}}]', 8, 69, "a file has no 'nmae'", "did you mean 'name'?"),
        (HEAD + 'steps: [{id: a, model: m, call: f, with: {x: "${item}"}}]', 8, 46, "unknown name 'item'", None),
        (HEAD + "steps: [{id: a, call: cosin}]", 8, 23, "no built-in function 'cosin'", "did you mean 'cosine'?"),
        (HEAD + "steps: [{id: a, call: cosine, with: {a: 1}}]", 8, 23, "needs the argument 'b'", None),
        (HEAD + "steps: [{id: a, call: mean, with: {values: 1, by: 2}}]", 8, 47, "has no argument 'by'", None),
        (HEAD + "steps: [{id: prompt, model: m, call: f}]", 8, 14, "an input's name", None),
        (HEAD + "steps: [{id: a, model: m, call: f}, {id: a, model: m, call: f}]", 8, 42, "already there", None),
        (HEAD + "steps: [{id: a, model: m, call: f, batch: 2}]", 8, 36, "needs 'for_each'", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, with: {x: "${b}"}}, {id: b, model: m, call: f, with: {x: "${a}"}}]', 8, 9, "a cycle: a needs b needs a", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, with: {x: "${a.0}"}}]', 8, 9, "a cycle: a needs a", None),
        ("version: 2\nname: w\nsteps: [{id: a, call: collect}]", 1, 10, "2 is none of 1", None),
        ("version: 1\nname: a b\nsteps: [{id: a, call: collect}]", 2, 7, "begins with a letter or digit", None),
        ("version: 1\nname: w\nsteps: [{id: 4a, call: collect}]", 3, 14, "begins with a letter or '_'", None),
        (HEAD.replace("text,", "txt,") + "steps: [{id: a, model: m, call: f}]", 5, 18, "inputs.prompt.type: 'txt' is none of images,", "did you mean 'text'?"),
        (HEAD + "on_error: ignore\nsteps: [{id: a, model: m, call: f}]", 8, 11, "'ignore' is none of stop, skip", None),
        (HEAD + "steps: [{id: a, model: m, call: f, for_each: [1, 2]}]", 8, 46, "got a list", "make the list an input of type list and refer to it: ${name}"),
        (HEAD + 'steps: [{id: a, model: m, call: f, when: "${prompt} > 3"}]', 8, 42, "'when' needs one reference", None),
        (HEAD + "steps: [{id: a, model: m, call: f, when: yes please}]", 8, 42, "'when' needs one reference", None),
        (HEAD + 'steps: [{id: a, model: m, call: f, when: {value: "${prompt}"}}]', 8, 42, "a value and no test", None),
        (HEAD + 'steps: [{id: a, model: m, call: f}]\noutputs: {y: "${q}"}', 9, 14, "unknown name 'q'", None),
        (HEAD + 'steps: [{id: a, model: m, call: f}]\noutputs: {index: "${a}"}', 9, 11, "a column that every row has", None),
        (HEAD + 'steps: [{id: a, model: m, call: f}]\nreport: {item: {titel: "${a}"}}', 9, 17, "unknown key 'titel'", "did you mean 'title'?"),
    ],
)  # fmt: skip
def test_refusals_say_where_and_what_to_do(
    text: str, line: int, column: int, words: str, hint: str | None
) -> None:
    error = refused(text)
    assert words in error.message
    assert (error.path, error.line, error.column) == ("w.yaml", line, column)
    assert error.message.startswith(f"w.yaml:{line}:{column}: ")
    if hint is not None:
        assert error.hint is not None
        assert error.hint.replace("'", "") == hint.replace("'", "")


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("with: [transformers==4.40.0, 4.40]", "models.my.model.with[1]: expected text, got a number"),
        ("dtype: 16", "models.my.model.dtype: expected text or nothing, got a whole number"),
        ("checkpoint: no", "models.my.model.checkpoint: expected text or nothing, got true or false"),
        ("checkpoint: 3.10", "models.my.model.checkpoint: expected text or nothing, got a number"),
    ],
)
def test_yaml_traps_are_told_by_name(model: str, what: str) -> None:
    error = refused(f"version: 1\nname: w\nmodels:\n  my.model:\n    family: f\n    {model}\nsteps: []")
    assert what in error.message
    assert error.line == 6
    assert "quote it" in (error.hint or "")


def test_a_boolean_as_a_name_is_refused() -> None:
    error = refused("version: 1\nname: w\nmodels: {on: {family: f}}\nsteps: []")
    assert error.hint == "quote it"
    assert error.line == 3


def test_an_unreadable_file_is_a_configuration_error(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="cannot read it"):
        Workflow.read(f"{tmp_path}/none.yaml")


def test_an_anchor_that_holds_itself_is_refused() -> None:
    assert "nested too deeply" in refused("version: 1\nname: w\nsteps: &a [*a]").message


def test_the_schema_names_every_key_and_is_draft_7() -> None:
    schema = workflow_schema()
    assert "draft-07" in schema["$schema"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) >= {"version", "name", "inputs", "models", "steps", "outputs", "report"}
    assert "with" in schema["definitions"]["Step"]["properties"]
    references = {part.split('"')[0] for part in json.dumps(schema).split("#/definitions/")[1:]}
    assert references <= set(schema["definitions"])


def test_a_matrix_is_told_from_a_workflow() -> None:
    with pytest.raises(ConfigError, match="a matrix, not a workflow") as caught:
        Workflow.parse("version: 1\nfamily: causal-lm\naxes: {transformers: [latest]}\ncall: {generate: {}}")
    assert "orchestrator matrix" in (caught.value.hint or "")
