"""Zero-shot classification: the index of entailment is read or given, never guessed."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import LoadError, RemoteError

pytestmark = pytest.mark.slow

TEXTS = [
    "the dog plays football in the water",
    "a red car",
    "politics and money",
    "the cat sits on the stock",
]
LABELS = ["sport", "money", "animals", "art"]


@pytest.fixture(scope="module")
def unnamed(tiny):
    return tiny("bert_mnli", "bert-mnli")


@pytest.fixture(scope="module")
def named(tiny):
    return tiny("bert_mnli", "bert-mnli-named")


@pytest.fixture(scope="module")
def classifier(orchestrator, unnamed):
    return orchestrator.load("zero-shot-classification", checkpoint=unnamed, entailment=1, contradiction=0)


def test_unnamed_labels_are_refused_with_the_remedy(orchestrator, unnamed):
    with pytest.raises(LoadError, match=r"0 LABEL_0, 1 LABEL_1, 2 LABEL_2.*entailment=INDEX.*it is 1"):
        orchestrator.load("zero-shot-classification", checkpoint=unnamed, name="guess")


def test_an_index_that_does_not_exist_is_refused(orchestrator, unnamed):
    with pytest.raises(LoadError, match="there is no class 3"):
        orchestrator.load("zero-shot-classification", checkpoint=unnamed, entailment=3, name="three")


def test_an_index_that_the_checkpoint_s_own_names_gainsay_is_refused(orchestrator, named, unnamed):
    words = (
        r"entailment=2, but the checkpoint says 0 contradiction, 1 entailment, 2 neutral: .* say entailment=1"
    )
    with pytest.raises(LoadError, match=words):
        orchestrator.load("zero-shot-classification", checkpoint=named, entailment=2, name="gainsaid")
    options = {"entailment": 1, "contradiction": 1}
    with pytest.raises(LoadError, match="cannot both be class 1"):
        orchestrator.load("zero-shot-classification", checkpoint=unnamed, **options, name="both")


def test_the_report_says_which_index_is_used_and_why(orchestrator, classifier, named):
    assert (classifier.report["entailment"], classifier.report["entailment_from"]) == (1, "option")
    with orchestrator.load("zero-shot-classification", checkpoint=named, name="named") as model:
        assert (model.report["entailment"], model.report["entailment_from"]) == (1, "checkpoint")
        assert model.report["labels"] == ["contradiction", "entailment", "neutral"]
        np.testing.assert_allclose(
            [e["score"] for e in model.classify(TEXTS, LABELS)[0]],
            [e["score"] for e in classifier.classify(TEXTS, LABELS)[0]],
            atol=1e-6,
        )


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_answers_are_the_library_s_where_the_labels_are_named(
    orchestrator, classifier, named, multi_label
):
    ours = classifier.classify(TEXTS, LABELS, multi_label=multi_label)
    with orchestrator.load(
        "transformers-pipeline", checkpoint=named, task="zero-shot-classification", name="library"
    ) as library:
        for text, row in zip(TEXTS, ours, strict=True):
            theirs = library.run({"sequences": text, "candidate_labels": LABELS}, multi_label=multi_label)
            assert [entry["label"] for entry in row] == theirs["labels"]
            np.testing.assert_allclose([entry["score"] for entry in row], theirs["scores"], atol=1e-5)


def test_the_library_itself_ranks_by_the_wrong_class_where_they_are_not(orchestrator, classifier, unnamed):
    """The trap: it says so in its log only, and takes the last class, which is "neutral" here."""
    ours = [[entry["label"] for entry in row] for row in classifier.classify(TEXTS, LABELS)]
    with orchestrator.load(
        "transformers-pipeline", checkpoint=unnamed, task="zero-shot-classification", name="trapped"
    ) as library:
        theirs = [library.run({"sequences": text, "candidate_labels": LABELS})["labels"] for text in TEXTS]
    assert any(left != right for left, right in zip(ours, theirs, strict=True))


def test_pairs_keep_their_order_whatever_their_length(classifier):
    premises = [TEXTS[0] * 3, "a", TEXTS[1]]
    hypotheses = ["it is sport", "it is a very long sentence about the weather in the room", "art"]
    together = classifier.entailments(premises, hypotheses, batch_size=3)
    alone = [classifier.entailments([p], [h])[0] for p, h in zip(premises, hypotheses, strict=True)]
    assert together.shape == (3,)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    with pytest.raises(RemoteError, match="3 premises for 2 hypotheses"):
        classifier.entailments(premises, hypotheses[:2])


def test_multi_label_without_contradiction_is_refused(orchestrator, unnamed):
    with (
        orchestrator.load("zero-shot-classification", checkpoint=unnamed, entailment=1, name="half") as model,
        pytest.raises(RemoteError, match="load with contradiction="),
    ):
        model.classify(TEXTS[:1], LABELS, multi_label=True)


def test_the_self_test_knows_its_numbers(classifier):
    result = classifier.self_test()
    assert result["ok"], result
