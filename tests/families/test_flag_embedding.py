"""FlagEmbedding's library in its own environment."""

from __future__ import annotations

import json

import numpy as np
import pytest

from orchestrator.errors import LoadError, RemoteError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEXTS = ["What is water?", "A cat answers a document about energy, at length and in detail.", "retrieve"]
TASK = "Given a question, retrieve passages that answer it"


@pytest.fixture(scope="module")
def gte_folder(tiny):
    return tiny("gte", "gte-qwen2", "gte-Qwen2-1.5B-instruct")


@pytest.fixture(scope="module")
def gte(orchestrator, gte_folder):
    """By its dotted name: the library's own table is asked for it, though the worker sees a safe one."""
    return orchestrator.load(
        "flag-embedding", checkpoint=gte_folder, instruction=TASK, trust_remote_code=True
    )


def test_the_library_s_table_is_found_under_the_safe_name(gte):
    assert gte.report["class"] == "BaseLLMEmbedder"  # FlagLLMModel by its other name
    assert gte.report["pooling"] == "last_token"


def test_it_answers_what_the_text_embedding_family_answers(orchestrator, gte, gte_folder):
    """Two libraries, two transformers versions (5.23.0 and 4.41.2), one model."""
    with orchestrator.load(
        "text-embedding", checkpoint=gte_folder, trust_remote_code=True, name="text"
    ) as other:
        np.testing.assert_allclose(gte.embed(TEXTS), other.embed(TEXTS), atol=1e-5)
        np.testing.assert_allclose(gte.embed_queries(TEXTS), other.embed(TEXTS, instruction=TASK), atol=1e-5)
    assert np.abs(gte.embed(TEXTS) - gte.embed_queries(TEXTS)).max() > 0.01


def test_rows_keep_their_order_and_do_not_depend_on_the_batch(gte):
    together = gte.embed(TEXTS)
    assert together.dtype == np.float32
    np.testing.assert_allclose(gte.embed(TEXTS[::-1], batch_size=1), together[::-1], atol=1e-6)
    assert gte.embed([]).shape == (0, 32)


def test_a_model_that_the_library_does_not_know_is_not_guessed(orchestrator, tiny):
    folder = tiny("sentence_bert", "sentence-bert-cls", "my_own_encoder")
    with pytest.raises(LoadError, match="model_class= one of encoder-only-base, encoder-only-m3"):
        orchestrator.load("flag-embedding", checkpoint=folder, name="unknown")
    with orchestrator.load(
        "flag-embedding", checkpoint=folder, model_class="encoder-only-base", pooling="cls", name="known"
    ) as model:
        assert model.embed(TEXTS).shape == (3, 32)
        with pytest.raises(RemoteError, match=r"no lexical vectors \(BaseEmbedder\); BGE-M3 has"):
            model.encode(TEXTS, kinds=["lexical"])


def test_code_that_the_table_asks_for_is_refused_unless_allowed(orchestrator, gte_folder):
    with pytest.raises(LoadError, match="needs its own code: load it with trust_remote_code=True"):
        orchestrator.load("flag-embedding", checkpoint=gte_folder, name="untrusted")


PAIRS = [[TEXTS[0], TEXTS[1]], [TEXTS[0], TEXTS[2]], [TEXTS[1], TEXTS[0]]]

BY_THE_LIBRARY = """
import json, sys
from FlagEmbedding import BGEM3FlagModel, FlagReranker
m3, reranker, texts, pairs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
model = BGEM3FlagModel(m3, use_fp16=False, devices="cpu")
found = model.encode(texts, return_sparse=True, return_colbert_vecs=True)
print(json.dumps({
    "dense": found["dense_vecs"].tolist(),
    "lexical": [{token: float(weight) for token, weight in row.items()} for row in found["lexical_weights"]],
    "colbert": [vectors.tolist() for vectors in found["colbert_vecs"]],
    "scores": model.compute_score(pairs),
    "reranked": FlagReranker(reranker, use_fp16=False, devices="cpu").compute_score(pairs),
}))
"""


@pytest.fixture(scope="module")
def m3_folder(tiny):
    return tiny("bge_m3", "bge-m3", "bge-m3")


@pytest.fixture(scope="module")
def reranker_folder(tiny):
    return tiny("bge_m3", "bge-reranker-v2-m3", "bge-reranker-v2-m3")


@pytest.fixture(scope="module")
def library(gte, m3_folder, reranker_folder, python_in):
    """What the library itself answers, in the same environment, used as it is published."""
    arguments = (str(m3_folder), str(reranker_folder), json.dumps(TEXTS), json.dumps(PAIRS))
    return json.loads(python_in(gte.environment, BY_THE_LIBRARY, *arguments).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def m3(orchestrator, m3_folder):
    return orchestrator.load("flag-embedding", checkpoint=m3_folder, name="m3")


def test_bge_m3_gives_dense_lexical_and_colbert_vectors_in_one_pass(m3, library):
    assert m3.report["kinds"] == ["dense", "lexical", "colbert"]
    found = m3.encode(TEXTS)
    np.testing.assert_allclose(found["dense"], library["dense"], atol=1e-6)
    for ours, theirs in zip(found["colbert"], library["colbert"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for ours, theirs in zip(found["lexical"], library["lexical"], strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-6)
    assert found["lexical"][0]["▁water"] > 0
    np.testing.assert_allclose(m3.embed(TEXTS), found["dense"], atol=1e-6)


def test_one_text_alone_keeps_its_lexical_weights(m3):
    """The library's own way from ids to tokens gives a mapping in place of a list of one."""
    alone, together = (m3.encode(texts, kinds=["lexical"])["lexical"][0] for texts in (TEXTS[:1], TEXTS))
    assert alone.keys() == together.keys()
    assert m3.encode([], kinds=["dense", "lexical"])["lexical"] == []


def test_pairs_are_scored_by_every_kind(m3, library):
    scores = m3.score(PAIRS)
    for kind, name in (
        ("dense", "dense"),
        ("lexical", "sparse"),
        ("colbert", "colbert"),
        ("all", "colbert+sparse+dense"),
    ):
        np.testing.assert_allclose(scores[kind], library["scores"][name], atol=1e-6)


def test_heads_that_are_not_there_are_not_made_up(orchestrator, tiny):
    folder = tiny("bge_m3", "bge-m3", "headless_bge_m3")
    (folder / "sparse_linear.pt").unlink()
    with orchestrator.load("flag-embedding", checkpoint=folder, name="headless") as model:
        assert model.embed(TEXTS).shape == (3, 32)
        with pytest.raises(RemoteError, match="the library would make up random ones"):
            model.encode(TEXTS, kinds=["lexical"])


def test_items_of_several_kinds_are_spread_over_replicas(m3, orchestrator, m3_folder):
    texts = [f"document {index} about water" * (1 + index % 3) for index in range(20)]
    with orchestrator.load("flag-embedding", checkpoint=m3_folder, replicas=2, name="m3-pair") as pair:
        found = pair.map("encode", texts, chunk_size=4)
    expected = m3.encode(texts)
    np.testing.assert_allclose(found["dense"], expected["dense"], atol=1e-6)
    assert [row.keys() for row in found["lexical"]] == [row.keys() for row in expected["lexical"]]


def test_rerankers(orchestrator, reranker_folder, library):
    with orchestrator.load("flag-reranker", checkpoint=reranker_folder) as model:
        np.testing.assert_allclose(model.score(PAIRS), library["reranked"], atol=1e-6)
        shares = model.score(PAIRS, normalize=True)
        np.testing.assert_allclose(shares, 1 / (1 + np.exp(-np.array(library["reranked"]))), atol=1e-6)
        best = model.rerank(TEXTS[0], TEXTS[1:], top_k=1)
        assert best == [
            {
                "index": best[0]["index"],
                "text": TEXTS[1 + best[0]["index"]],
                "score": max(model.score(PAIRS[:2])),
            }
        ]
        with pytest.raises(RemoteError, match=r"pairs\[0\] is not \[query, text\]"):
            model.score(["a query"])
        result = model.self_test()
        assert result["ok"], result


def test_the_self_test_knows_its_numbers(gte):
    result = gte.self_test()
    assert result["ok"], result
