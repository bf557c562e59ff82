"""What an input can be, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.workflow.inputs import parse_overrides, read_inputs
from orchestrator.workflow.schema import convert
from orchestrator.workflow.yaml_source import YamlSource


def read(
    inputs: str, base: Path, packages: dict[str, Path] | None = None, **overrides: Any
) -> dict[str, Any]:
    text = f"version: 1\nname: w\ninputs:\n  x: {inputs}\nsteps: [{{id: a, call: collect}}]"
    source = YamlSource.parse(text, name="w.yaml")
    return read_inputs(convert(source), source, overrides, lambda name: (packages or {})[name], base=base)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png", "sub/d.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("{type: images, default: data}", ["a.JPG", "b.png"]),
        ("{type: files, default: data}", ["a.JPG", "b.png", "c.txt"]),
        ('{type: files, default: "data/*.png"}', ["b.png"]),
        ('{type: files, default: "data/**/*.png"}', ["b.png", "d.png"]),
        ("{type: images, default: [data/b.png, data/a.JPG]}", ["b.png", "a.JPG"]),
        ("{type: images, default: data, limit: 1}", ["a.JPG"]),
        ('{type: images, default: "pypi:photos==1#inside/*.png"}', ["b.png"]),
        ('{type: images, default: "pypi:photos==1#inside"}', ["a.JPG", "b.png"]),
    ],
)
def test_files_come_from_folders_globs_lists_and_packages(folder: Path, spec: str, names: list[str]) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "inside").symlink_to(folder / "data")
    found = read(spec, folder, {"photos==1": folder / "package"})["x"]
    assert [file.name for file in found] == names


def test_a_files_origin_and_content_are_known(folder: Path) -> None:
    file = read('{type: file, default: "pypi:p#data/c.txt"}', folder, {"p": folder})["x"]
    assert file.origin == "pypi:p#data/c.txt"
    assert (file.stem, file.suffix, file.text, file.bytes) == ("c", ".txt", "c.txt", b"c.txt")
    before = file.digest
    Path(file.path).write_text("other words")
    assert file.digest != before


def test_rows_come_from_jsonl_csv_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('\ufeff{"a": 1}\n\n{"a": "x\u2028y"}\n', encoding="utf-8")
    assert read("{type: jsonl, default: r.jsonl}", tmp_path)["x"] == [{"a": 1}, {"a": "x\u2028y"}]
    (tmp_path / "r.csv").write_text('a,b\n1,"x, y"\n', encoding="utf-8")
    assert read("{type: csv, default: r.csv}", tmp_path)["x"] == [{"a": "1", "b": "x, y"}]
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": }\n')
    with pytest.raises(ConfigError, match=r"w\.yaml:4:29: .*bad\.jsonl:2:7: Expecting value"):
        read("{type: jsonl, default: bad.jsonl}", tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="pyarrow"):
        read("{type: parquet, default: r.parquet}", tmp_path)


def test_parquet_rows_come_from_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = SimpleNamespace(to_pylist=lambda: [{"a": 1}, {"a": 2}])
    parquet = SimpleNamespace(read_table=lambda path: table)
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet))  # type: ignore[arg-type]
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    assert read("{type: parquet, default: r.parquet}", tmp_path)["x"] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("spec", "given", "value"),
    [
        ("{type: text, default: a}", ["3.10"], "3.10"),
        ("{type: integer, default: 1}", ["7"], 7),
        ("{type: number, default: 1}", ["7.5"], 7.5),
        ("{type: boolean, default: true}", ["no"], False),
        ("{type: list, default: []}", ["[1, a]"], [1, "a"]),
        ("{type: list, default: []}", ["a"], ["a"]),
        ("{type: list, default: []}", ["a", "b"], ["a", "b"]),
        ("{type: any, default: 0}", ['{"k": [1]}'], {"k": [1]}),
        ("{type: any}", [json.dumps(None)], None),
    ],
)
def test_overrides_are_read_by_the_inputs_type(
    tmp_path: Path, spec: str, given: list[str], value: Any
) -> None:
    assert read(spec, tmp_path, x=given)["x"] == value


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{type: integer, default: a}", "w.yaml:4:31: expected integer, got 'a'"),
        ("{type: integer, default: true}", "expected integer, got True"),
        ("{type: text, default: 3.10}", "expected text, got 3.1"),
        ("{type: images, default: none}", "there is no none"),
        ('{type: images, default: "none/*.png"}', "nothing matches none/*.png"),
        ("{type: images, default: data/sub/deeper}", "no images in the folder"),
        ("{type: images, default: 3}", "expected a path or a list of paths"),
        ("{type: file, default: data}", "is not a file"),
        ("{type: file, default: [data/b.png, data/c.txt]}", "expected one file, found 2"),
        ('{type: files, default: "pypi:p#../x"}', "expected pypi:NAME"),
        ("{type: text}", "the input 'x' has no value"),
    ],
)
def test_wrong_inputs_are_refused_with_their_place(folder: Path, spec: str, words: str) -> None:
    (folder / "data" / "sub" / "deeper").mkdir()
    with pytest.raises(ConfigError) as caught:
        read(spec, folder, {"p": folder})
    assert words in caught.value.message
    assert caught.value.line == 4


def test_unknown_overrides_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read("{type: text, default: a}", tmp_path, xs=["1"])
    assert caught.value.hint == "did you mean 'x'?"
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        parse_overrides(["photos"])
    assert parse_overrides(["a=1", "a=x=y", "b="]) == {"a": ["1", "x=y"], "b": [""]}


def test_overrides_are_relative_to_the_current_folder_and_defaults_to_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "data")
    assert len(read("{type: images, default: data}", folder)["x"]) == 2
    assert [f.name for f in read("{type: images, default: data}", folder, x=["sub"])["x"]] == ["d.png"]
    with pytest.raises(ConfigError, match="--input x: there is no data"):
        read("{type: images, default: data}", folder, x=["data"])


def test_brackets_in_names_are_no_patterns(tmp_path: Path) -> None:
    base = tmp_path / "run [1]"
    base.mkdir()
    (base / "a[1].txt").touch()
    (base / "b.txt").touch()
    assert [file.name for file in read('{type: files, default: "*.txt"}', base)["x"]] == ["a[1].txt", "b.txt"]
    assert [file.name for file in read('{type: files, default: "a[1].txt"}', base)["x"]] == ["a[1].txt"]


def test_a_row_of_a_csv_file_with_more_cells_than_the_first_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('a,b\n1,"x\ny"\n1,2,3\n')
    with pytest.raises(ConfigError, match=r"r\.csv:4: more cells than the 2 of the first line"):
        read("{type: csv, default: r.csv}", tmp_path)


def test_an_empty_value_is_refused_where_it_would_be_null(tmp_path: Path) -> None:
    for kind in ("list", "integer", "any"):
        with pytest.raises(ConfigError, match=rf"--input x: it is empty; expected {kind}"):
            read(f"{{type: {kind}}}", tmp_path, x=[""])
    assert read("{type: text}", tmp_path, x=[""])["x"] == ""
