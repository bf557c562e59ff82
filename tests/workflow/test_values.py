"""Digests, exact storing, built-in functions."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.workflow.functions import FUNCTIONS
from orchestrator.workflow.values import File, Unstorable, as_argument, digest, pack, plain, unpack

VALUES: list[Any] = [
    None, True, 1, 0, -1, 1.5, -0.0, float("inf"), "", "é\ud800", b"\x00", [], [[]], {}, {"a": [1, {"b": None}]},
    {1: "x", "$array": 3}, datetime(2026, 1, 2, 3, tzinfo=UTC), np.float32(2.5), np.arange(6, dtype=">i2").reshape(2, 3)[:, ::2],
    np.array(3, np.uint8), np.zeros((0, 3), np.float16), np.array(["ab", "c"]), np.array(["2020-01-01"], "M8[D]"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_pack_and_unpack_give_the_same_value(value: Any) -> None:
    arrays: list[Any] = []
    back = unpack(json.loads(json.dumps(pack(value, arrays))), arrays)
    assert digest(back) == digest(value)
    assert type(back) is type(value)


def test_digests_differ_where_values_differ() -> None:
    others = [
        *VALUES,
        float("nan"),
        2,
        "1",
        b"1",
        [1],
        [1, 1],
        {"a": 1},
        {"b": 1},
        np.zeros(3, "f4"),
        np.zeros(3, "f8"),
    ]
    others += [np.zeros((3, 1), "f4"), np.arange(6, dtype="<i2").reshape(2, 3)[:, ::2].copy()]
    found = [digest(value) for value in others]
    assert len(set(found)) == len(found)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(["a", "b"]) != digest(["ab"])


def test_a_file_counts_by_its_content_and_travels_as_its_path(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    one.write_bytes(b"x")
    two.write_bytes(b"x")
    assert digest(File(one)) == digest(File(two))
    assert as_argument({"a": [File(one)]}) == {"a": [str(one)]}
    two.write_bytes(b"yy")
    assert digest(File(one)) != digest(File(two))


@pytest.mark.parametrize("value", [object(), {"a": object()}, np.array([object()])])
def test_what_has_no_content_is_not_stored(value: Any) -> None:
    with pytest.raises(Unstorable):
        pack(value, [])
    with pytest.raises(Unstorable):
        digest(value)


def test_plain_is_json_for_people() -> None:
    value = {
        "a": (1, float("nan")),
        2: np.float32(0.5),
        "c": np.arange(3),
        "d": datetime(2026, 1, 2),
        "b": b"x",
    }
    assert plain(value) == {
        "a": [1, None], "2": 0.5, "c": [0, 1, 2], "d": "2026-01-02T00:00:00", "b": {"$bytes": "eA=="},
    }  # fmt: skip
    assert plain({"c": np.zeros((2, 2))}, lambda array: list(array.shape)) == {"c": [2, 2]}


def test_cosine_of_vectors_and_of_rows() -> None:
    cosine = FUNCTIONS["cosine"]
    assert cosine([1, 0], [1, 1]) == pytest.approx(2**-0.5)
    assert cosine([[1, 0], [0, 2]], [[1, 0], [0, -1]]) == pytest.approx([1, -1])
    with pytest.raises(ValueError, match="shapes differ"):
        cosine([1], [1, 2])


def test_differences_find_the_largest_and_where() -> None:
    found = FUNCTIONS["differences"](
        {
            "a": [np.zeros(3), None, np.ones(3)],
            "b": [np.zeros(3), np.ones(3), np.ones(3)],
            "c": [np.zeros(3), None, np.array([1, 1, 3])],
        }
    )
    assert found["largest"] == 2.0
    assert found["between"] == ["a", "c"]
    assert found["equal"] is False
    assert [(p["a"], p["b"], p["largest"], p["at"], p["equal"]) for p in found["pairs"]] == [
        ("a", "b", 0.0, [0, 0], True), ("a", "c", 2.0, [1, 2], False), ("b", "c", 2.0, [1, 2], False),
    ]  # fmt: skip


def test_differences_of_what_cannot_be_compared() -> None:
    differences = FUNCTIONS["differences"]
    with pytest.raises(ValueError, match="two names"):
        differences({"a": 1})
    with pytest.raises(ValueError, match="different shapes"):
        differences({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ValueError, match="different lengths"):
        differences({"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="'b' must be numbers"):
        differences({"a": [1], "b": ["x"]})
    unlike = differences({"a": [float("nan")], "b": [1.0], "c": [float("nan")]})
    assert unlike["largest"] is None
    assert unlike["pairs"][1] == {"a": "a", "b": "c", "largest": 0.0, "mean": 0.0, "at": [0], "equal": True}


def test_mean_leaves_out_what_failed() -> None:
    assert FUNCTIONS["mean"]([1, None, 2]) == 1.5
