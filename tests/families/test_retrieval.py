"""Retrieval evaluation: formats, exact search, metrics known by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from orchestrator.errors import RemoteError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def judge(orchestrator):
    return orchestrator.load("retrieval-evaluation")


@pytest.fixture
def collection(tmp_path):
    """BEIR's format: four documents, three queries of which two are judged."""
    documents = [
        {"_id": "d1", "title": "Water", "text": "is wet"},
        {"_id": "d2", "title": "", "text": "cats sleep"},
        {"_id": "d3", "text": "dogs bark"},
        {"_id": "q1", "title": "same", "text": "id as a query"},
    ]
    queries = [
        {"_id": "q1", "text": "what is wet"},
        {"_id": "q2", "text": "who barks"},
        {"_id": "q3", "text": "?"},
    ]
    for name, entries in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (tmp_path / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t1\nq2\td3\t1\n")
    return tmp_path


DOCUMENTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]], np.float32)
QUERIES = np.array([[0.2, 0.9, 0.1], [0.6, 0.5, 0.9]], np.float32)


def test_a_beir_folder_is_read_with_titles_and_only_judged_queries(judge, collection):
    read = judge.read(str(collection))
    assert read["documents"] == ["Water is wet", "cats sleep", "dogs bark", "same id as a query"]
    assert read["query_ids"] == ["q1", "q2"]
    assert read["qrels"] == {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 1}}
    assert read["counts"]["judgements"] == 3
    assert judge.read(str(collection), judged_only=False)["query_ids"] == ["q1", "q2", "q3"]


def test_a_smaller_collection_keeps_what_is_judged_and_says_how_much_it_left_out(judge, collection):
    read = judge.read(str(collection), queries_limit=1, documents_limit=1)
    assert read["query_ids"] == ["q1"]
    assert read["document_ids"] == ["d1", "d2", "d3"]  # two are judged, one more
    assert read["counts"] == {
        "documents_in_file": 4, "documents": 3, "queries": 1, "judgements": 2, "judged_documents_missing": 0
    }  # fmt: skip


def test_ms_marco_s_files_are_read_too(judge, tmp_path):
    (tmp_path / "collection.tsv").write_text("7\tcats sleep\n9\tdogs bark\tloud\n")
    (tmp_path / "queries.dev.tsv").write_text("1\twho barks\n")
    (tmp_path / "qrels.dev.tsv").write_text("1 0 9 1\n")
    read = judge.read(
        str(tmp_path), corpus="collection.tsv", queries="queries.dev.tsv", qrels="qrels.dev.tsv"
    )
    assert read["documents"] == ["cats sleep", "dogs bark\tloud"]
    assert read["qrels"] == {"1": {"9": 1}}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n',
            "corpus.jsonl:2: the id a occurs twice",
        ),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"id": "b"}\n', "corpus.jsonl:2: not an object"),
        ("qrels.tsv", "q1\td1\t1\nq1\td2\n", "qrels.tsv:2: .* is not query, document and score"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\n", "holds no judgement"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(judge, collection, name, text, words):
    (collection / name).write_text(text)
    with pytest.raises(RemoteError, match=words):
        judge.read(str(collection))


def test_search_is_exact_and_best_first(judge):
    random = np.random.default_rng(0)
    queries = random.standard_normal((17, 8)).astype(np.float32)
    documents = random.standard_normal((200, 8)).astype(np.float32)
    found = judge.search(queries, documents, k=5)
    products = queries @ documents.T
    assert np.array_equal(found["indices"], np.argsort(-products, axis=1)[:, :5])
    np.testing.assert_allclose(found["scores"], -np.sort(-products, axis=1)[:, :5], atol=1e-5)
    assert judge.search(queries, documents[:3], k=100)["indices"].shape == (17, 3)
    with pytest.raises(RemoteError, match="queries have 8 dimensions, documents 7"):
        judge.search(queries, documents[:, :7])


def test_metrics_are_those_worked_out_by_hand(judge, collection):
    answer = judge.evaluate(judge.read(str(collection)), QUERIES, DOCUMENTS, per_query=True)
    # q1: q1 .6, d2 .9 first: d2, q1, d1, d3; q2: q1 1.0, d3 .9, d1, d2
    gain = 1 + 2 / math.log2(4)  # d2 (1) first, d1 (2) third
    ideal = 2 + 1 / math.log2(3)
    assert answer["per_query"]["nDCG@10"]["q1"] == pytest.approx(gain / ideal, abs=1e-6)
    assert answer["metrics"]["RR@10"] == pytest.approx((1 + 1 / 2) / 2)
    assert answer["metrics"]["R@10"] == 1
    ignoring = judge.evaluate(
        judge.read(str(collection)), QUERIES, DOCUMENTS, ignore_identical_ids=True, per_query=True
    )
    gain = 1 + 2 / math.log2(3)  # the document q1 is no answer to the query q1 any more
    assert ignoring["per_query"]["nDCG@10"]["q1"] == pytest.approx(gain / ideal, abs=1e-6)
    assert ignoring["per_query"]["RR@10"]["q2"] == pytest.approx(1 / 2)


def test_a_judged_query_that_finds_nothing_counts_as_zero(judge, collection):
    answer = judge.evaluate(judge.read(str(collection)), QUERIES, DOCUMENTS, k=1, metrics=["R@1", "RR@10"])
    assert answer["metrics"] == {"R@1": pytest.approx((1 / 2 + 0) / 2), "RR@10": pytest.approx(1 / 2)}


def test_vectors_that_do_not_fit_the_collection_are_refused(judge, collection):
    with pytest.raises(RemoteError, match="3 document vectors for 4 ids"):
        judge.evaluate(judge.read(str(collection)), QUERIES, DOCUMENTS[:3])


def test_two_evaluations_side_by_side(judge):
    first, second = {"metrics": {"a": 0.5, "b": 0.25}}, {"metrics": {"a": 0.625, "c": 1.0}}
    expected = [{"metric": "a", "first": 0.5, "second": 0.625, "difference": 0.125}]
    assert judge.compare(first, second) == expected


def test_the_self_test_knows_its_numbers(judge):
    assert judge.self_test()["ok"]
