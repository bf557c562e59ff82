"""The table of known failures: every entry is reached by real words, says where it comes from and what to do."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from diagnosis_samples import SAMPLES

from orchestrator.diagnosis import diagnose, failures, foresee, releases_knowing, traps
from orchestrator.environments import Catalog, EnvironmentStore

TYPES = Path(__file__).parents[1] / "orchestrator" / "model_types.toml"

# Each row of the facts about versions that answer otherwise, and where this table has it.
TRAPS = {
    "RoPE's base only in rope_parameters": "rope-parameters",
    "tokenizer_class TokenizersBackend": "tokenizers-backend",
    "merges as pairs": "merges-as-pairs",
    "token_type_ids into generate": "token-type-ids",
    "dtype against torch_dtype": "dtype-key",
    "dtype as an argument": "dtype-argument",
    "Gemma's hidden_act": "gemma-gelu",
    "a 4-D mask in remote code": "remote-4d-mask",
    "mm_token_type_ids not passed on": "mm-token-type-ids-dropped",
    "bare forward without mrope": "bare-forward-mrope",
    "one BOS too many": "leading-bos",
    "get_image_features gives an object": "image-features-object",
    "CLIPVisionModel's keys": "clip-vision-keys",
    "CLIPVisionModel's keys, not strict": "clip-vision-keys-not-strict",
    "LABEL_0..2 and entailment": "entailment-guessed",
    "cache_position": "cache-position",
    "output_router_logits": "output-router-logits",
}


def versions(transformers: str) -> dict[str, str]:
    return {"transformers": transformers, "numpy": "1.26.4", "torch": "2.13.0"} if transformers else {}


@pytest.mark.parametrize(
    ("entry", "kind", "message", "traceback", "transformers"), SAMPLES, ids=[s[0] for s in SAMPLES]
)
def test_real_words_find_their_entry(
    entry: str, kind: str, message: str, traceback: str, transformers: str
) -> None:
    found = diagnose(kind, message, traceback, versions(transformers), None)
    assert found is not None
    assert found.id == entry
    for text in (found.title, found.cause, found.remedy):
        assert text
        assert "{" not in text


def test_every_entry_is_reached_by_a_sample() -> None:
    assert {failure.id for failure in failures()} == {sample[0] for sample in SAMPLES}


def test_entries_are_unique_and_say_where_they_come_from() -> None:
    ids = [entry.id for entry in (*failures(), *traps())]
    assert len(ids) == len(set(ids))
    assert all(entry.source and entry.remedy and entry.cause for entry in (*failures(), *traps()))


def test_every_known_trap_has_an_entry() -> None:
    assert set(TRAPS.values()) <= {entry.id for entry in (*failures(), *traps())}


@pytest.mark.parametrize(
    "text", ["", "division by zero", "the cache is warm", "No module", "meta", "Tokenizer"]
)
def test_ordinary_errors_are_left_alone(text: str) -> None:
    assert diagnose("builtins.ValueError", text, "Traceback (most recent call last):\n", {}, None) is None


def test_the_family_changes_the_remedy() -> None:
    message = "Tokenizer class GemmaTokenizer does not exist or is not currently imported."
    plain = diagnose("ValueError", message, "", versions("4.36.2"), None)
    asked = diagnose("ValueError", message, "", versions("4.36.2"), "minigemini")
    assert plain is not None
    assert asked is not None
    assert "4.39.3" in plain.remedy
    assert "minigemini-2b" in asked.remedy


def test_an_unknown_model_type_says_which_releases_know_it() -> None:
    words = "The checkpoint you are trying to load has model type `{}` but Transformers does not recognize this architecture."
    found = diagnose("ValueError", words.format("qwen3_vl"), "", versions("4.45.2"), None)
    assert found is not None
    assert "transformers 4.45.2" in found.cause
    assert "--with 'transformers>=4.57'" in found.remedy
    own = diagnose("ValueError", words.format("internvl_chat"), "", versions("4.45.2"), None)
    assert own is not None
    assert "trust_remote_code" in own.remedy


def test_a_missing_module_names_the_distribution() -> None:
    found = diagnose("ModuleNotFoundError", "No module named 'cv2'", "", {}, None)
    assert found is not None
    assert found.remedy.startswith("--with opencv-python-headless")


def test_words_from_outside_are_not_format_strings() -> None:
    found = diagnose("ModuleNotFoundError", "No module named 'a.{0.__class__}'", "", {}, None)
    assert found is None or "class" not in found.remedy


def test_a_huge_traceback_is_looked_at_in_no_time() -> None:
    import time

    started = time.process_time()
    diagnose("ValueError", "x" * 10_000, "KeyError: 'a' CONFIG_MAPPING " * 100_000, {}, None)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("model_type", "known"),
    [
        ("qwen2_vl", "transformers>=4.45"),
        ("qwen2-vl", "transformers>=4.45"),
        ("gemma", "transformers>=4.38"),
        ("mixtral", "transformers>=4.36"),
        ("llama", "transformers>=4.28"),
        ("bert", "transformers>=4.0"),
        ("open-llama", "transformers>=4.29,<5.0"),
        ("mini_gemini", None),
    ],
)
def test_releases_knowing(model_type: str, known: str | None) -> None:
    assert releases_knowing(model_type) == known


def test_traps_are_foreseen_from_config_and_version() -> None:
    saved_by_5 = {"model_type": "llama", "rope_parameters": {"rope_theta": 1e5}, "dtype": "bfloat16"}
    assert {d.id for d in foresee(saved_by_5, {"transformers": "4.36.2"})} == {"rope-parameters", "dtype-key"}
    assert foresee(saved_by_5, {"transformers": "5.23.0"}) == ()
    neutral = {**saved_by_5, "rope_theta": 1e5, "torch_dtype": "bfloat16"}
    assert foresee(neutral, {"transformers": "4.36.2"}) == ()
    gemma = {"model_type": "gemma", "hidden_act": "gelu"}
    assert [d.id for d in foresee(gemma, {"transformers": "4.39.3"})] == ["gemma-gelu"]
    assert foresee({**gemma, "hidden_activation": "gelu_pytorch_tanh"}, {"transformers": "4.39.3"}) == ()


def test_remedies_name_commands_that_exist() -> None:
    from orchestrator.cli.main import main  # noqa: F401 - the group behind the words

    texts = " ".join(entry.remedy for entry in (*failures(), *traps()))
    for words in set(re.findall(r"`orchestrator ((?:[a-z]+ ?){1,2})", texts)):
        folder = Path(__file__).parents[1] / "orchestrator" / "cli"
        assert (folder / f"{words.split()[0]}.py").is_file(), words


SCRIPT = Path(__file__).with_name("spring_failures.py")
EXPECTED = {
    "4.36.2": {
        "unknown type": "unknown-model-type", "gemma tokenizer": "gemma-tokenizer", "backend": "tokenizers-backend",
        "pairs": "merges-as-pairs", "token type ids": "token-type-ids", "meta": "meta-tensor",
        "dotted": "dotted-remote-code", "remote": "trust-remote-code", "llama3 rope": "llama3-rope",
        "pointer": "damaged-weights", "pickle": "numpy-pickle", "dtype": "dtype-argument",
    },
    "5.23.0": {
        "backend": None, "token type ids": "token-type-ids", "meta": "meta-tensor", "remote": "trust-remote-code",
        "features": "image-features-object", "clip keys": "clip-vision-keys", "deepspeed": "transformers-deepspeed",
        "AdamW": "name-of-another-release", "flash": "name-of-another-release", "mm token types": "mm-token-type-ids",
        "video processor": "video-processor", "pointer": "damaged-weights", "module": "missing-module",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", EXPECTED)
def test_failures_sprung_for_real(
    version: str, store: EnvironmentStore, catalog: Catalog, tmp_path: Path
) -> None:
    """Each failure is made to happen in an environment of that version, and its own words are diagnosed."""
    environment = store.ensure(catalog.get("clip", [f"transformers=={version}"]))
    done = subprocess.run(
        [environment.python, "-I", SCRIPT, str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False, env={"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    sprung = json.loads(done.stdout.splitlines()[-1])
    got = {}
    for name in EXPECTED[version]:
        if sprung[name] is None:
            got[name] = None
            continue
        kind, message, traceback = sprung[name]
        found = diagnose(kind, message, traceback, environment.versions, None)
        got[name] = found.id if found else f"undiagnosed: {kind}: {message}"
    assert got == EXPECTED[version]
