"""CLIP through transformers: one interface over 4.x tensors and 5.x objects."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import LoadError, RemoteError

pytestmark = pytest.mark.slow

LABELS = ["cat", "dog", "red square", "photo"]
OLD = ["transformers==4.39.3"]


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return tiny("clip", "clip")


@pytest.fixture(scope="module")
def clip(orchestrator, checkpoint):
    return orchestrator.load("clip", checkpoint=checkpoint)


@pytest.fixture(scope="module")
def old_clip(orchestrator, checkpoint):
    return orchestrator.load("clip", checkpoint=checkpoint, with_=OLD, name="old-clip")


@pytest.fixture(scope="module")
def library(orchestrator, checkpoint):
    """transformers' own pipeline on the same checkpoint: not our code."""
    return orchestrator.load(
        "transformers-pipeline", checkpoint=checkpoint, task="zero-shot-image-classification", name="library"
    )


def test_the_answers_are_those_of_the_library_s_own_pipeline(clip, library, pictures):
    ours = clip.classify(pictures, LABELS, template="This is a photo of {}.")
    for row, picture in zip(ours, pictures, strict=True):
        theirs = library.run(picture, candidate_labels=LABELS, hypothesis_template="This is a photo of {}.")
        assert [entry["label"] for entry in row] == [entry["label"] for entry in theirs]
        np.testing.assert_allclose([e["score"] for e in row], [e["score"] for e in theirs], atol=1e-5)


def test_4x_which_answers_tensors_and_5x_which_answers_objects_give_the_same_vectors(
    clip, old_clip, pictures
):
    assert clip.environment.versions["transformers"] == "5.23.0"
    assert old_clip.environment.versions["transformers"] == "4.39.3"
    for method, given in (("embed_images", pictures), ("embed_texts", LABELS)):
        new, old = clip.call(method, given), old_clip.call(method, given)
        assert new.dtype == np.float32
        assert new.shape == (len(given), 24)
        np.testing.assert_allclose(new, old, atol=2e-6)
    assert np.abs(clip.embed_texts(LABELS)[0] - clip.embed_texts(LABELS)[1]).max() > 0.01


@pytest.mark.parametrize("with_", [(), OLD], ids=["5.23.0", "4.39.3"])
def test_the_self_test_knows_its_numbers(clip, old_clip, with_):
    result = (old_clip if with_ else clip).self_test()
    assert result["ok"], result
    assert result["max_abs"] < 2e-5


def test_vectors_do_not_depend_on_the_batch_and_keep_their_order(clip, pictures):
    together = clip.embed_images(pictures, batch_size=5)
    np.testing.assert_allclose(clip.embed_images(pictures, batch_size=2), together, atol=1e-6)
    np.testing.assert_allclose(clip.embed_images(pictures[::-1]), together[::-1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    texts = ["a", "a red square and a blue cat in a photo", "dog"]
    np.testing.assert_allclose(clip.embed_texts(texts, batch_size=1), clip.embed_texts(texts), atol=1e-5)


def test_scores_are_scaled_cosines_and_shares_add_up(clip, pictures):
    scores = clip.scores(pictures, LABELS)
    cosines = clip.embed_images(pictures) @ clip.embed_texts(LABELS).T
    np.testing.assert_allclose(scores, cosines * np.exp(2.6592), atol=1e-4)
    for row in clip.classify(pictures, LABELS):
        assert sum(entry["score"] for entry in row) == pytest.approx(1, abs=1e-5)
        assert [e["score"] for e in row] == sorted((e["score"] for e in row), reverse=True)
    assert [len(row) for row in clip.classify(pictures, LABELS, top_k=2)] == [2] * len(pictures)


def test_one_picture_is_a_list_of_one_and_a_picture_that_cannot_be_read_is_named_by_its_place(
    clip, pictures, tmp_path
):
    file = tmp_path / "drawn.ppm"
    file.write_bytes(b"P6 %d %d 255\n" % pictures[1].shape[1::-1] + pictures[1].tobytes())
    expected = clip.embed_images(pictures[1:2])
    for one in (str(file), file.read_bytes(), pictures[1]):
        np.testing.assert_array_equal(clip.embed_images(one), expected)
    with pytest.raises(RemoteError, match=r"images\[2\]: there is no file none\.png"):
        clip.classify([*pictures[:2], "none.png"], LABELS, batch_size=2)


def test_no_pictures_give_no_rows(clip):
    assert clip.embed_images([]).shape == (0, 24)
    assert clip.classify([], LABELS) == []


def test_a_long_text_is_cut_not_refused(clip):
    assert clip.embed_texts(["cat " * 500]).shape == (1, 24)


def test_what_cannot_be_meant_is_said(clip, pictures):
    with pytest.raises(RemoteError, match=r"has no \{\} for the label"):
        clip.classify(pictures[:1], LABELS, template="a photo")
    with pytest.raises(RemoteError, match="at least one label"):
        clip.classify(pictures[:1], [])


def test_a_checkpoint_without_two_towers_is_refused(orchestrator, tiny):
    with pytest.raises(LoadError, match="no picture and text towers"):
        orchestrator.load("clip", checkpoint=tiny("sentence_bert", "sentence-bert"), name="not-clip")
