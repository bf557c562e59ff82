"""MobileNetV2 on real photos, in an environment without transformers and torchvision."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator import Model, Orchestrator, Settings
from orchestrator.errors import LoadError, RemoteError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXPECTED = [
    ("chelsea.png", 285, "Egyptian cat", 0.6),
    ("coffee.png", 967, "espresso", 0.95),
    ("camera.png", 872, "tripod", 0.9),
]


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def photos(orc: Orchestrator) -> Path:
    return orc.checkpoints.fetch_package("scikit-image==0.26.0") / "skimage" / "data"


@pytest.fixture(scope="module")
def model(orc: Orchestrator) -> Model:
    return orc.load("image-classification")


def test_photos_get_their_labels_in_order(model: Model, photos: Path) -> None:
    results = model.classify([str(photos / name) for name, *_ in EXPECTED], top_k=3, batch_size=2)
    for (_, index, label, least), result in zip(EXPECTED, results, strict=True):
        assert (result[0]["index"], result[0]["label"]) == (index, label)
        assert result[0]["probability"] > least
        chances = [entry["probability"] for entry in result]
        assert len(result) == 3
        assert chances == sorted(chances, reverse=True)


def png(array: np.ndarray) -> bytes:
    """An RGB array as a PNG file."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_every_form_of_a_picture_means_the_same(model: Model, tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png(array))
    forms = [array, png(array), str(tmp_path / "a.png")]
    results = [model.classify([form], top_k=2)[0] for form in forms]
    assert all(result == results[0] for result in results)


def test_arrays_need_no_pillow_on_our_side(model: Model) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)
    whole = model.classify(pictures, top_k=1)
    for picture, result in zip(pictures, whole, strict=True):
        single = model.classify([picture], top_k=1)[0][0]
        assert single["index"] == result[0]["index"]
        assert single["probability"] == pytest.approx(result[0]["probability"], abs=1e-5)
    assert model.classify([]) == []


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (["/nowhere.png"], r"images\[0\]: there is no file /nowhere\.png"),
        ([b"no picture"], r"images\[0\] cannot be read"),
        ([np.zeros((4, 4, 3), np.float32)], r"images\[0\] is a float32 array"),
    ],
)
def test_what_is_no_picture_is_said(model: Model, images: list[object], words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        model.classify(images)


def test_too_many_answers_are_refused(model: Model, photos: Path) -> None:
    with pytest.raises(RemoteError, match="top_k must be 1 to 1000"):
        model.classify([str(photos / "coffee.png")], top_k=1001)


def test_a_thumbnail_fits(model: Model, photos: Path) -> None:
    data = model.thumbnail(str(photos / "coffee.png"), 100)
    assert data[:3] == b"\xff\xd8\xff"
    frame = data.index(b"\xff\xc0")  # baseline JPEG: length, precision, height, width
    height, width = struct.unpack(">HH", data[frame + 5 : frame + 9])
    assert (width, height) == (100, 67)


def test_its_self_test_passes_and_its_environment_is_small(model: Model) -> None:
    assert model.self_test()["ok"]
    assert not {"transformers", "torchvision"} & set(model.environment.versions)


def test_labels_come_from_where_the_user_says(orc: Orchestrator, tmp_path: Path, photos: Path) -> None:
    names = [f"class {index}" for index in range(1000)]
    files = {
        "labels.txt": "\n".join(names),
        "labels.json": json.dumps({str(i): [f"n{i}", name] for i, name in enumerate(names)}),
        "labels.py": f"import nothing_of_the_kind\nFEW = ['a']\nNAMES: list = {names!r}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        with orc.load("image-classification", labels=str(tmp_path / name)) as model:
            assert model.classify([str(photos / "coffee.png")], top_k=1)[0][0]["label"] == "class 967"
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(LoadError, match="names 2 classes; the checkpoint has 1000"):
        orc.load("image-classification", labels=str(tmp_path / "labels.txt"))
