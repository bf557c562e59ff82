"""Whether the libraries of an environment read a checkpoint's metadata as its writer meant it.

The same folder must mean the same model. Versions of transformers and tokenizers pass over keys that they do not
know, often in silence, and answer differently. The table below is data: one entry for each such trap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from orchestrator.checkpoint_json import Json, read_object
from orchestrator.errors import CheckpointError

__all__ = ["TRAPS", "Metadata", "Problem", "Trap", "check_readable"]

IMPORT = "orchestrator checkpoint import {path} DEST"
NEWER = "an environment with a newer version: --with '{package}{cure}'"


@dataclass(frozen=True)
class Metadata:
    """The JSON files of a model folder that decide its results; absent ones are empty."""

    config: Json
    tokenizer_config: Json
    tokenizer: Json
    chat_template: bool
    """Whether there is a chat_template.jinja."""


@dataclass(frozen=True)
class Trap:
    """One thing that some versions of a library do not read."""

    name: str
    package: str
    versions: str
    """The versions that do not read it."""
    find: Callable[[Metadata], str | None]
    """Which key of the checkpoint is concerned, or None."""
    effect: str
    remedy: str = IMPORT
    silent: bool = True
    """False where loading fails by itself, less clearly than we say it."""


@dataclass(frozen=True)
class Problem:
    """A key that decides the result and that this environment would pass over or choke on."""

    path: Path
    trap: str
    key: str
    reader: str
    """The library and its version."""
    effect: str
    remedy: str
    silent: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.reader} does not read {self.key}: {self.effect}"

    def error(self) -> CheckpointError:
        """The error to raise instead of loading."""
        how = " (or allow_ignored_keys=True to load it all the same)" if self.silent else ""
        return CheckpointError(str(self), hint=self.remedy + how)


def check_readable(checkpoint_path: Path | str, versions: Mapping[str, str]) -> list[Problem]:
    """The problems that an environment with these `versions` (by distribution) has with a model folder.

    Pure but for reading JSON files; a file, or a folder without config.json, has none.
    """
    path = Path(checkpoint_path)
    folder = next((f for f in (path, path / "0_Transformer") if (f / "config.json").is_file()), None)
    if folder is None:
        return []
    metadata = _read(folder)
    return [
        Problem(
            path=folder,
            trap=trap.name,
            key=key,
            reader=f"{trap.package} {versions[trap.package]}",
            effect=trap.effect,
            remedy=trap.remedy.format(path=folder, package=trap.package, cure=_cure(trap.versions)),
            silent=trap.silent,
        )
        for trap in TRAPS
        if trap.package in versions
        and SpecifierSet(trap.versions).contains(versions[trap.package], prereleases=True)
        and (key := trap.find(metadata)) is not None
    ]


def _read(folder: Path) -> Metadata:
    return Metadata(
        config=read_object(folder / "config.json"),
        tokenizer_config=read_object(folder / "tokenizer_config.json"),
        tokenizer=read_object(folder / "tokenizer.json"),
        chat_template=(folder / "chat_template.jinja").is_file(),
    )


def _cure(versions: str) -> str:
    """`>=5` for `<5`: the first versions that read the key."""
    upper = [part.strip()[1:] for part in versions.split(",") if part.strip().startswith("<")]
    return f">={upper[0]}" if upper else ""


def _lost_rope_base(metadata: Metadata) -> str | None:
    for place, config in _configs(metadata.config):
        rope = config.get("rope_parameters")
        if isinstance(rope, dict) and rope and "rope_theta" not in config:
            return f"{place}rope_parameters (config.json has no {place}rope_theta)"
        if (
            isinstance(rope, dict)
            and rope.get("rope_type", "default") != "default"
            and not config.get("rope_scaling")
        ):
            return f"{place}rope_parameters.rope_type (config.json has no {place}rope_scaling)"
    return None


def _configs(config: Json) -> list[tuple[str, Json]]:
    """The config and the ones inside it (text_config, vision_config …), with their prefixes."""
    inner = [
        (f"{key}.", value)
        for key, value in config.items()
        if isinstance(value, dict) and "model_type" in value
    ]
    return [("", config), *inner]


def _backend_class(metadata: Metadata) -> str | None:
    name = metadata.tokenizer_config.get("tokenizer_class")
    return f"tokenizer_class {name!r}" if name == "TokenizersBackend" else None


def _merge_pairs(metadata: Metadata) -> str | None:
    merges = (metadata.tokenizer.get("model") or {}).get("merges") or []
    return "merges written as pairs (tokenizer.json)" if merges and isinstance(merges[0], list) else None


def _ignored_merges(metadata: Metadata) -> str | None:
    return (
        "ignore_merges (tokenizer.json)"
        if (metadata.tokenizer.get("model") or {}).get("ignore_merges")
        else None
    )


def _template_file(metadata: Metadata) -> str | None:
    lost = metadata.chat_template and not metadata.tokenizer_config.get("chat_template")
    return "chat_template.jinja" if lost else None


def _listed_tokens(metadata: Metadata) -> str | None:
    listed = isinstance(metadata.tokenizer_config.get("extra_special_tokens"), list)
    return "extra_special_tokens as a list (tokenizer_config.json)" if listed else None


def _metaspace(metadata: Metadata) -> str | None:
    def search(value: Any) -> bool:
        if isinstance(value, list):
            return any(map(search, value))
        if not isinstance(value, dict):
            return False
        bare = value.get("type") == "Metaspace" and "add_prefix_space" not in value
        return bare or any(map(search, value.values()))

    parts = (metadata.tokenizer.get(name) for name in ("pre_tokenizer", "decoder"))
    return "Metaspace without add_prefix_space (tokenizer.json)" if any(map(search, parts)) else None


def _gemma_activation(metadata: Metadata) -> str | None:
    """The official releases wrote `gelu` and meant the tanh approximation, as transformers 5 at last reads it."""
    config = metadata.config
    legacy = config.get("model_type") == "gemma" and config.get("hidden_act") == "gelu"
    return (
        "hidden_act 'gelu' as it was meant" if legacy and config.get("hidden_activation") != "gelu" else None
    )


TRAPS = (
    Trap(
        "rope-base", "transformers", "<5", _lost_rope_base,
        "it falls back to its own base of the rotary embeddings and answers differently without a word",
    ),
    Trap(
        "tokenizer-class", "transformers", "<5", _backend_class,
        "loading the tokenizer fails with 'Tokenizer class TokenizersBackend does not exist'", silent=False,
    ),
    Trap(
        "merge-pairs", "tokenizers", "<0.20", _merge_pairs,
        "loading fails with 'data did not match any variant of untagged enum ModelWrapper'", silent=False,
    ),
    Trap(
        "ignore-merges", "tokenizers", "<0.19", _ignored_merges,
        "words that are tokens of their own are split differently without a word", remedy=NEWER,
    ),
    Trap(
        "metaspace", "tokenizers", "<0.19", _metaspace,
        "loading fails with 'data did not match any variant of untagged enum'", silent=False,
    ),
    Trap(
        "chat-template", "transformers", "<4.47", _template_file,
        "it makes up a chat template of its own, or has none",
    ),
    Trap(
        "extra-special-tokens", "transformers", ">=4.47,<5", _listed_tokens,
        "loading fails with \"'list' object has no attribute 'keys'\" or a call for protobuf", silent=False,
    ),
    Trap(
        "gemma-activation", "transformers", "<5," + ",".join(f"!=4.{minor}.*" for minor in range(39, 48)), _gemma_activation,
        "it computes the exact gelu where Gemma means gelu_pytorch_tanh, and its logits move by about 1e-3",
    ),
)  # fmt: skip
"""Every known trap. Seen on real versions; the bounds are those between which the reading code changed."""
