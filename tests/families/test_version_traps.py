"""The traps of versions sprung for real: what the version does, that we say so where a folder tells it, and the cure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import models
from tiny.models import edit, make

from orchestrator import Model, Orchestrator, Settings
from orchestrator.errors import CheckpointError, LoadError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

READING = Path(__file__).with_name("reading.py")
TEXT = "the cat sat on the mat, and the dog ran after the cat until both were tired. " * 2
IDS = [1, 50, 100, 150, 200, 250] * 12


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version-neutral tiny Llama to spoil."""
    return make("llama", tmp_path / "model")


def tokens(orc: Orchestrator, version: str, checkpoint: Path, allowed: bool = True) -> Model:
    """That version's own tokenizer of a folder; no torch is needed for it."""
    pins = [f"transformers=={version}", "jinja2", "protobuf"]
    pins += ["numpy<2"] if version.startswith(("4.3", "4.4")) else []
    return orc.load(
        "python", target=f"{READING}:Tokens", checkpoint=checkpoint, with_=pins, allow_ignored_keys=allowed
    )


def logits(orc: Orchestrator, version: str, checkpoint: Path, allowed: bool = True) -> np.ndarray:
    """That version's own logits of a folder."""
    pins = [f"transformers=={version}", "torch>=2.4", "accelerate>=0.26"]
    pins += ["numpy<2"] if version.startswith(("4.3", "4.4")) else []
    with orc.load(
        "python", target=f"{READING}:Logits", checkpoint=checkpoint, with_=pins, allow_ignored_keys=allowed
    ) as model:
        return model.last(IDS)


def imported(orc: Orchestrator, folder: Path) -> Path:
    """The folder after `orchestrator checkpoint import`."""
    orc.checkpoints.import_folder(folder, folder.with_name("imported"))
    return folder.with_name("imported")


def test_the_base_of_rope_is_lost_in_silence(orc: Orchestrator, folder: Path) -> None:
    truth = logits(orc, "4.36.2", folder)
    np.testing.assert_allclose(logits(orc, "5.23.0", folder), truth, atol=1e-5)
    models.lose_rope_base(folder)
    np.testing.assert_allclose(logits(orc, "5.23.0", folder, allowed=False), truth, atol=1e-5)
    for version in ("4.36.2", "4.39.3"):
        with pytest.raises(CheckpointError, match="does not read rope_parameters"):
            logits(orc, version, folder, allowed=False)
        assert np.abs(logits(orc, version, folder) - truth).max() > 0.1  # no error, another answer
    np.testing.assert_array_equal(logits(orc, "4.36.2", imported(orc, folder), allowed=False), truth)


@pytest.mark.parametrize(
    ("spoil", "version", "ours", "theirs"),
    [
        (models.lose_tokenizer_class, "4.39.3", "tokenizer_class 'TokenizersBackend'", "TokenizersBackend"),
        (
            models.pair_merges,
            "4.39.3",
            "merges written as pairs",
            "did not match any variant of untagged enum",
        ),
    ],
    ids=["tokenizer-class", "merge-pairs"],
)
def test_what_an_old_version_cannot_load(
    orc: Orchestrator, folder: Path, spoil: Callable[[Path], None], version: str, ours: str, theirs: str
) -> None:
    with tokens(orc, "5.23.0", folder) as newest:
        truth = newest.ids(TEXT)
    spoil(folder)
    with tokens(orc, "5.23.0", folder, allowed=False) as newest:
        assert newest.ids(TEXT) == truth
    with pytest.raises(CheckpointError, match=ours):
        tokens(orc, version, folder, allowed=False)
    with pytest.raises(LoadError, match=theirs):
        tokens(orc, version, folder)
    with tokens(orc, version, imported(orc, folder), allowed=False) as cured:
        assert cured.ids(TEXT) == truth


def test_metaspace_of_newer_tokenizers(orc: Orchestrator, folder: Path) -> None:
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    edit(folder / "tokenizer.json", lambda t: t.update(decoder=space))
    with pytest.raises(CheckpointError, match="Metaspace without add_prefix_space"):
        tokens(orc, "4.39.3", folder, allowed=False)
    with pytest.raises(LoadError, match="did not match any variant"):
        tokens(orc, "4.39.3", folder)
    for version in ("4.39.3", "5.23.0"):
        with tokens(
            orc, version, imported(orc, folder) if version == "4.39.3" else folder.with_name("imported")
        ) as cured:
            assert cured.decoded(cured.ids("cat")) == "cat"


def test_whole_words_are_split_in_silence(orc: Orchestrator, folder: Path) -> None:
    """`ignore_merges` takes a word that is a token as it is; tokenizers before 0.19 merges its letters all the same."""

    def spoil(tokenizer: dict[str, dict[str, object]]) -> None:
        tokenizer["model"]["ignore_merges"] = True
        tokenizer["model"]["merges"] = []

    edit(folder / "tokenizer.json", spoil)
    with tokens(orc, "5.23.0", folder, allowed=False) as newest:
        assert len(newest.ids("cat")) == 1
    with pytest.raises(CheckpointError, match="ignore_merges") as caught:
        tokens(orc, "4.39.3", folder, allowed=False)
    assert "--with 'tokenizers>=0.19'" in str(caught.value.hint)
    with tokens(orc, "4.39.3", folder) as old:
        assert len(old.ids("cat")) == 3


def test_a_template_of_its_own_is_not_found(orc: Orchestrator, folder: Path) -> None:
    template = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    edit(folder / "tokenizer_config.json", lambda t: t.update(chat_template=template))
    models.move_template(folder)
    with tokens(orc, "5.23.0", folder, allowed=False) as newest:
        assert newest.chat("hello") == "[user] hello\n"
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        tokens(orc, "4.39.3", folder, allowed=False)
    with tokens(orc, "4.39.3", folder) as old:
        assert old.chat("hello") == "<|im_start|>user\nhello<|im_end|>\n"  # made up, without an error
    with tokens(orc, "4.39.3", imported(orc, folder), allowed=False) as cured:
        assert cured.chat("hello") == "[user] hello\n"


def test_listed_special_tokens(orc: Orchestrator, folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda t: t.update(extra_special_tokens=["<|im_start|>"]))
    with pytest.raises(CheckpointError, match="extra_special_tokens as a list"):
        tokens(orc, "4.57.6", folder, allowed=False)
    with pytest.raises(LoadError, match="no attribute 'keys'"):
        tokens(orc, "4.57.6", folder)
    with tokens(orc, "4.57.6", imported(orc, folder), allowed=False) as cured:
        assert cured.ids("cat")


def test_gemmas_activation_changes_in_silence(orc: Orchestrator, folder: Path) -> None:
    gemma = {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_act": "gelu"}
    edit(folder / "config.json", lambda config: config.update(gemma))
    truth = logits(orc, "5.23.0", folder, allowed=False)
    np.testing.assert_allclose(logits(orc, "4.39.3", folder, allowed=False), truth, atol=2e-5)
    with pytest.raises(CheckpointError, match="does not read hidden_act 'gelu' as it was meant"):
        logits(orc, "4.57.6", folder, allowed=False)
    assert np.abs(logits(orc, "4.57.6", folder) - truth).max() > 1e-4
    cured = imported(orc, folder)
    for version in ("4.39.3", "4.57.6", "5.23.0"):
        np.testing.assert_allclose(logits(orc, version, cured, allowed=False), truth, atol=2e-5)


def test_a_plain_fast_tokenizer_returns_types_that_generate_refuses(orc: Orchestrator, folder: Path) -> None:
    models.lose_tokenizer_class(folder)
    edit(folder / "tokenizer_config.json", lambda t: t.pop("model_input_names"))
    cured = imported(orc, folder)
    edit(folder / "tokenizer_config.json", lambda t: t.update(tokenizer_class="PreTrainedTokenizerFast"))
    with tokens(orc, "4.39.3", folder) as old:
        assert "token_type_ids" in old.keys("cat")
    with tokens(orc, "4.39.3", cured) as old:
        assert old.keys("cat") == ["attention_mask", "input_ids"]
    with orc.load("causal-lm", checkpoint=folder, with_=["transformers==4.39.3"]) as family:
        assert isinstance(
            family.generate("cat", max_new_tokens=2), str
        )  # which gives generate only what it takes


def test_the_default_dtype_differs_and_ours_does_not(orc: Orchestrator, folder: Path) -> None:
    """The library's own default is float32 before 5 and the checkpoint's from 5 on."""
    edit(folder / "config.json", lambda c: c.update(dtype="bfloat16", torch_dtype="bfloat16"))
    seen, ours = {}, {}
    for version in ("4.36.2", "5.23.0"):
        pins = [f"transformers=={version}", "torch>=2.4", "accelerate>=0.26"]
        pins += ["numpy<2"] if version == "4.36.2" else []
        with orc.load("python", target=f"{READING}:Logits", checkpoint=folder, with_=pins) as model:
            seen[version] = model.dtype()
        with orc.load(
            "causal-lm", checkpoint=folder, with_=[f"transformers=={version}"], dtype="float32"
        ) as family:
            ours[version] = family.report["dtype"]
    assert seen == {"4.36.2": "torch.float32", "5.23.0": "torch.bfloat16"}
    assert set(ours.values()) == {"float32"}


@pytest.fixture(scope="module")
def sprung(orc: Orchestrator, python_in: Callable[..., Any]) -> Callable[..., Any]:
    """What `silent_traps.py` sees of a trap in a family's environment: the library alone, nothing of ours."""
    script = Path(__file__).with_name("silent_traps.py").read_text(encoding="utf-8")
    qwen = str(orc.checkpoints.resolve("tiny:qwen2-vl").path)

    def spring(family: str, version: str, name: str) -> Any:
        found = orc.catalog.get(family, [f"transformers=={version}"])
        return json.loads(python_in(orc.environments.ensure(found), script, name, qwen).stdout)

    return spring


def test_generate_with_embeddings_begins_with_a_token_of_nobody_before_4_38(
    sprung: Callable[..., Any],
) -> None:
    old, new = (sprung("sentence-embedding", version, "bos") for version in ("4.36.2", "4.39.3"))
    assert old["embeddings"] == [1, *old["ids"]]
    assert new["embeddings"] == new["ids"]


def test_a_clip_tower_is_not_filled_from_5_on_and_nobody_says_so(sprung: Callable[..., Any]) -> None:
    """With strict=False: how many parameters keep the numbers that they were made with."""
    assert sprung("sentence-embedding", "4.36.2", "tower") == 0
    assert sprung("qwen2-vl", "5.23.0", "tower") > 10


def test_a_bare_forward_of_qwen2_vl_counts_positions_as_for_text_at_4_45(sprung: Callable[..., Any]) -> None:
    seen = sprung("qwen2-vl", "4.45.2", "positions")
    assert seen["bare"] > 0.1
    assert seen["generate"] < 1e-5


def test_a_key_that_is_not_passed_on_moves_generate_at_5(sprung: Callable[..., Any]) -> None:
    assert sprung("qwen2-vl", "5.23.0", "types") > 0.1
