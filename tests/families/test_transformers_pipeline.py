"""Any transformers pipeline, on two versions."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import LoadError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEXTS = ["the dog plays football in the water", "a red car", "it is fast", "politics", "art"]


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return tiny("bert_mnli", "bert-mnli-named")


@pytest.fixture(scope="module", params=["5.23.0", "4.39.3"])
def classifier(orchestrator, checkpoint, request):
    with_ = [f"transformers=={request.param}"]
    options = {"checkpoint": checkpoint, "with_": with_, "task": "text-classification", "name": request.param}
    with orchestrator.load("transformers-pipeline", **options) as model:
        assert model.report["transformers"] == request.param
        yield model


def test_batches_and_streams_answer_as_single_calls_in_order(classifier):
    single = [classifier.run(text)[0] for text in TEXTS]
    for several in (classifier.batch(TEXTS, batch_size=2), list(classifier.stream("each", TEXTS))):
        flat = [entry[0] if isinstance(entry, list) else entry for entry in several]
        assert [entry["label"] for entry in flat] == [entry["label"] for entry in single]
        np.testing.assert_allclose([e["score"] for e in flat], [e["score"] for e in single], atol=1e-5)
    assert len(classifier.batch(TEXTS[0])) == len(list(classifier.stream("each", TEXTS[0]))) == 1


def test_the_self_test_knows_its_numbers(classifier):
    result = classifier.self_test()
    assert result["ok"], result


def test_a_task_that_this_version_does_not_have_is_refused_with_those_it_has(orchestrator, checkpoint):
    with pytest.raises(
        LoadError, match=r"5\.23\.0 has no task 'mind-reading'; it has: .*zero-shot-classification"
    ):
        orchestrator.load("transformers-pipeline", checkpoint=checkpoint, task="mind-reading", name="none")


def test_arrays_are_taken_for_pictures_and_tensors_come_back_as_arrays(orchestrator, tiny, pictures):
    folder = tiny("clip", "clip")
    with orchestrator.load(
        "transformers-pipeline", checkpoint=folder, task="zero-shot-image-classification", name="pictures"
    ) as model:
        found = model.batch(pictures, batch_size=2, candidate_labels=["cat", "dog"])
        assert [len(row) for row in found] == [2] * 5
    folder = tiny("sentence_bert", "sentence-bert")
    with orchestrator.load(
        "transformers-pipeline", checkpoint=folder, task="feature-extraction", name="features"
    ) as model:
        hidden = model.run(TEXTS[1], return_tensors=True)
        assert hidden.dtype == np.float32
        assert hidden.shape[2] == 32
