"""Text embeddings: remote code, last-token pooling, instructions, and the dotted name that breaks imports."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conditions import until

from orchestrator.errors import LoadError, RemoteError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DOTTED = "gte-Qwen2-1.5B-instruct"
MISSING = "No module named 'transformers_modules.gte-Qwen2-1'"
TEXTS = [
    "What is water?",
    "A cat answers a document about energy, at length and in detail.",
    "retrieve",
    "red cats",
]
TASK = "Given a question, retrieve passages that answer it"

IN_PROCESS = """
import sys
from transformers import AutoModel
print(type(AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)
"""
IN_A_CHILD = """
import multiprocessing, sys
from transformers import AutoModel

def work(model):
    raise SystemExit(7 if type(model).__name__ == "Qwen2Model" else 8)

if __name__ == "__main__":
    for folder in sys.argv[1:]:
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        child = multiprocessing.get_context("spawn").Process(target=work, args=(model,))
        child.start()
        child.join(150)
        print("exit", child.exitcode)
"""


@pytest.fixture(scope="module")
def dotted(tiny):
    return tiny("gte", "gte-qwen2-own-config", DOTTED)


@pytest.fixture(scope="module")
def gte(orchestrator, tiny):
    return orchestrator.load("text-embedding", checkpoint=tiny("gte", "gte-qwen2"), trust_remote_code=True)


@pytest.fixture(scope="module")
def old(orchestrator, dotted):
    """transformers 4.36.2, from the folder with the dot."""
    with_ = ["transformers==4.36.2"]
    return orchestrator.load(
        "text-embedding", checkpoint=dotted, with_=with_, trust_remote_code=True, name="old"
    )


def test_the_dotted_name_fails_in_process_at_4_36_and_our_name_for_it_does_not(
    orchestrator, old, dotted, python_in
):
    failing = python_in(old.environment, IN_PROCESS, str(dotted))
    assert MISSING in failing.stderr, failing.stderr
    safe = orchestrator.checkpoints.resolve(dotted).path
    assert "." not in safe.name
    passing = python_in(old.environment, IN_PROCESS, str(safe))
    assert passing.stdout.strip() == "Qwen2Model", passing.stderr
    assert old.embed(TEXTS).shape == (4, 32)


@pytest.mark.parametrize("version", ["4.41.2", "4.56.2"])  # the family's pin, and the last release that fails
def test_the_dotted_name_fails_in_a_spawned_child_up_to_4_56_and_our_name_for_it_does_not(
    orchestrator, tiny, python_in, version
):
    dotted = tiny("gte", "gte-qwen2", DOTTED)
    family = orchestrator.catalog.get("text-embedding", [f"transformers=={version}"])
    environment = orchestrator.environments.ensure(family)
    assert environment.versions["transformers"] == version
    safe = orchestrator.checkpoints.resolve(dotted).path
    done = python_in(environment, IN_A_CHILD, str(dotted), str(safe))
    assert done.stdout.split() == ["exit", "1", "exit", "7"], done.stderr
    assert done.stderr.count(MISSING) == 1


def test_both_versions_answer_the_same(gte, old):
    np.testing.assert_allclose(gte.embed(TEXTS, prompt="query"), old.embed(TEXTS, prompt="query"), atol=1e-6)


def test_remote_code_is_refused_unless_allowed(orchestrator, tiny):
    with pytest.raises(
        LoadError, match=r"modeling_qwen\.Qwen2Model.*trust_remote_code=True and a pinned revision"
    ):
        orchestrator.load("text-embedding", checkpoint=tiny("gte", "gte-qwen2"), name="untrusted")


def test_without_its_code_the_library_would_answer_other_vectors_in_silence(orchestrator, gte, tiny):
    """The same weights as the library's own causal Qwen2: why the refusal above is not a formality."""
    with orchestrator.load(
        "text-embedding", checkpoint=tiny("gte", "last-token-qwen2"), name="causal"
    ) as causal:
        assert np.abs(causal.embed(TEXTS) - gte.embed(TEXTS)).max() > 0.01


def test_rows_keep_their_order_and_do_not_depend_on_the_batch(gte):
    together = gte.embed(TEXTS, batch_size=4)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(gte.embed(text)[0], together[index], atol=1e-6)
    np.testing.assert_allclose(gte.embed(TEXTS[::-1], batch_size=3), together[::-1], atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.05
    assert gte.embed([]).shape == (0, 32)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_found_on_either_side_of_the_padding(orchestrator, gte, tiny, side):
    folder = tiny("gte", "gte-qwen2", f"padded_{side}")
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"padding_side": "left"', f'"padding_side": "{side}"'))
    with orchestrator.load("text-embedding", checkpoint=folder, trust_remote_code=True, name=side) as model:
        np.testing.assert_allclose(model.embed(TEXTS), gte.embed(TEXTS), atol=1e-6)


def test_the_end_token_is_appended_where_the_tokenizer_does_not(orchestrator, tiny):
    folder = tiny("gte", "last-token-qwen2")
    with orchestrator.load("text-embedding", checkpoint=folder, name="with-end") as ended:
        expected = ended.embed([text + "<|endoftext|>" for text in TEXTS])
        np.testing.assert_allclose(ended.embed(TEXTS), expected, atol=1e-6)
        with orchestrator.load("text-embedding", checkpoint=folder, append_eos=False, name="bare") as bare:
            assert np.abs(bare.embed(TEXTS) - expected).max() > 0.01


def test_instructions_go_before_the_text_in_the_checkpoint_s_format(gte):
    by_hand = gte.embed([f"Instruct: {TASK}\nQuery: {text}" for text in TEXTS])
    np.testing.assert_allclose(gte.embed(TEXTS, instruction=TASK), by_hand, atol=1e-6)
    assert gte.similarity(TEXTS[:2], TEXTS, prompt="query").shape == (2, 4)
    with pytest.raises(RemoteError, match=r"no prompt 'passage'.*it has: query"):
        gte.embed(TEXTS, prompt="passage")
    with pytest.raises(RemoteError, match="not both"):
        gte.embed(TEXTS, prompt="query", instruction=TASK)


def test_an_ordinary_sentence_encoder_answers_as_in_its_own_family(orchestrator, tiny):
    folder = tiny("sentence_bert", "sentence-bert")
    with (
        orchestrator.load("text-embedding", checkpoint=folder, name="encoder") as ours,
        orchestrator.load("sentence-embedding", checkpoint=folder, name="other") as other,
    ):
        np.testing.assert_allclose(ours.embed(TEXTS), other.embed(TEXTS), atol=1e-6)


def test_what_the_checkpoint_does_not_say_is_asked_for(orchestrator, tiny):
    folder = tiny("sentence_bert", "sentence-bert", "silent")
    (folder / "modules.json").unlink()
    with pytest.raises(LoadError, match="load with pooling='last', 'mean' or 'cls'"):
        orchestrator.load("text-embedding", checkpoint=folder, name="silent")


def test_a_4d_mask_is_ignored_at_4_39_without_an_error_and_obeyed_at_4_41(orchestrator, gte, tiny):
    """Remote code of this kind loads and answers on both: only numbers tell which version is right."""
    folder = tiny("gte", "gte-qwen2-4d-mask")
    right = gte.embed(TEXTS)
    with orchestrator.load(
        "text-embedding", checkpoint=folder, trust_remote_code=True, name="masked"
    ) as good:
        np.testing.assert_allclose(good.embed(TEXTS), right, atol=1e-5)
    with_ = ["transformers==4.39.3"]
    with orchestrator.load(
        "text-embedding", checkpoint=folder, with_=with_, trust_remote_code=True, name="ignored"
    ) as bad:
        assert np.abs(bad.embed(TEXTS) - right).max() > 0.05
        assert np.abs(bad.embed(TEXTS)[2] - bad.embed(TEXTS[2])[0]).max() > 0.05


def test_the_self_test_knows_its_numbers(gte, old):
    for model in (gte, old):
        result = model.self_test()
        assert result["ok"], result
    assert "masked" in gte.self_test()["differences"]


def test_the_self_test_tells_the_version_that_ignores_masks(orchestrator, tiny):
    """Everything else of the environment is right: without this part it passed."""
    with orchestrator.load(
        "text-embedding",
        checkpoint=tiny("gte", "gte-qwen2"),
        with_=["transformers==4.39.3"],
        trust_remote_code=True,
        name="tested",
    ) as model:
        result = model.self_test()
    assert not result["ok"]
    assert [name for name, off in result["differences"].items() if off > result["tolerance"]] == ["masked"]


def test_a_dead_replica_loses_nothing_and_doubles_nothing(orchestrator, tiny):
    texts = [f"document {index} about energy and water" * (1 + index % 4) for index in range(48)]
    folder = tiny("gte", "gte-qwen2")
    with orchestrator.load(
        "text-embedding", checkpoint=folder, trust_remote_code=True, replicas=2, name="pair"
    ) as model:
        expected = model.embed(texts)
        with ThreadPoolExecutor(1) as pool:
            rows = pool.submit(model.map, "embed", texts, chunk_size=4)
            until(lambda: any(replica.in_flight for replica in model._deployment.replicas))
            os.kill(worker_pids(orchestrator, "pair")[0], signal.SIGKILL)
            np.testing.assert_allclose(rows.result(timeout=240), expected, atol=1e-6)


def worker_pids(orchestrator, name):
    deployment = next(entry for entry in orchestrator.status().deployments if entry.name == name)
    return [replica.pid for replica in deployment.replicas if replica.pid]
