"""Version-neutral model folders: both spellings of what transformers 4 and 5 call differently.

With it one folder gives the same model on 4.36 to 5.x (bit-identical logits for SmolLM2 on 4.36.2, 4.39.3, 5.23.0).
Only JSON is rewritten; weights are linked or copied as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from orchestrator.checkpoint_json import Json, read_object

__all__ = ["copy_folder", "neutral_config", "neutral_tokenizer", "neutral_tokenizer_config", "neutralise"]

OLD_SCALINGS = ("linear", "dynamic")
"""The scalings that transformers 4.36 knows; it refuses any further key beside `type` and `factor`."""
LOAD_TIME = ("backend", "is_local", "local_files_only")
"""Arguments of one loading that transformers 5 writes into tokenizer_config.json."""


def neutralise(folder: Path) -> list[str]:
    """Rewrites the metadata of a model folder in place; returns what was changed, in words. Repeating changes nothing.

    Files are replaced, never written through, so that hard links elsewhere keep their content.

    Raises:
        CheckpointError: one of the files is not JSON.
    """
    config = read_object(folder / "config.json")
    tokenizer = read_object(folder / "tokenizer.json")
    template = folder / "chat_template.jinja"
    settings = read_object(folder / "tokenizer_config.json")
    if settings and template.is_file():
        settings.setdefault("chat_template", template.read_text("utf-8"))
    rewritten = {
        "config.json": neutral_config(config),
        "tokenizer.json": neutral_tokenizer(tokenizer),
        "tokenizer_config.json": neutral_tokenizer_config(settings, tokenizer, config),
    }
    changes: list[str] = []
    for name, after in rewritten.items():
        before = read_object(folder / name)
        if before and before != after:
            changed = sorted(k for k in {*before, *after} if before.get(k, ...) != after.get(k, ...))
            changes.append(f"{name}: {', '.join(changed)}")
            _replace(folder / name, after, compact=name == "tokenizer.json")
    return changes


def neutral_config(config: Json) -> Json:
    """config.json with both spellings of the dtype and of RoPE, in the configs inside it too."""
    result = {
        key: neutral_config(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in config.items()
    }
    dtype = result.get("dtype") or result.get("torch_dtype")
    if dtype:
        result["dtype"] = result["torch_dtype"] = dtype
    if isinstance(result.get("rope_parameters"), dict):
        _old_rope(result)
    elif "rope_theta" in result and "rope_local_base_freq" not in result:
        scaling = result.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        result["rope_parameters"] = {**scaling, "rope_type": kind, "rope_theta": result["rope_theta"]}
    if result.get("model_type") == "gemma" and "hidden_act" in result:
        meant = "gelu_pytorch_tanh" if result["hidden_act"] == "gelu" else result["hidden_act"]
        # 4.39 to 4.47 read only the second, the others only the first.
        result["hidden_act"] = result["hidden_activation"] = result.get("hidden_activation") or meant
    return result


def neutral_tokenizer(tokenizer: Json) -> Json:
    """tokenizer.json that tokenizers 0.15 reads: merges as "a b", Metaspace with its old key."""
    model = tokenizer.get("model") or {}
    merges = model.get("merges") or []
    result = {
        key: _metaspace(value) if key in ("pre_tokenizer", "decoder") else value
        for key, value in tokenizer.items()
    }
    pairs = bool(merges) and all(isinstance(merge, list) for merge in merges)
    if pairs and not any(
        " " in part for merge in merges for part in merge
    ):  # with a blank the text is ambiguous
        result["model"] = {**model, "merges": [" ".join(merge) for merge in merges]}
    return result


def neutral_tokenizer_config(settings: Json, tokenizer: Json, config: Json) -> Json:
    """tokenizer_config.json with a class, names and defaults that mean the same in 4.x and 5.x."""
    result = {key: value for key, value in settings.items() if key not in LOAD_TIME}
    if not result:
        return result
    if result.get("tokenizer_class") == "TokenizersBackend" and tokenizer:
        result["tokenizer_class"] = "PreTrainedTokenizerFast"
        typed = ["token_type_ids"] if _has_segments(config) else []
        result.setdefault("model_input_names", ["input_ids", *typed, "attention_mask"])
    extra = result.get("extra_special_tokens")
    if isinstance(extra, list):
        del result["extra_special_tokens"]
        result.setdefault("additional_special_tokens", extra)
    # Left out it means True to 4.x and False to 5.x: say what the writer meant.
    result.setdefault("clean_up_tokenization_spaces", _writer(config) < Version("5"))
    return result


def copy_folder(source: Path, destination: Path) -> None:
    """A copy of a model folder; files are hard links where the disk allows, since none is ever written through."""
    for path in sorted(source.rglob("*")):
        target = destination / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path.resolve(), target)


def _old_rope(config: Json) -> None:
    """`rope_theta`, `rope_scaling` and their relatives from `rope_parameters`, in place."""
    rope = config["rope_parameters"]
    layers = {key: value for key, value in rope.items() if isinstance(value, dict)}
    if layers:  # Gemma 3: one for each kind of layer
        full, sliding = layers.get("full_attention", {}), layers.get("sliding_attention", {})
        if "rope_theta" in full:
            config.setdefault("rope_theta", full["rope_theta"])
        if "rope_theta" in sliding:
            config.setdefault("rope_local_base_freq", sliding["rope_theta"])
        return
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    if "partial_rotary_factor" in rope:
        config.setdefault("partial_rotary_factor", rope["partial_rotary_factor"])
    kind = rope.get("rope_type", "default")
    if kind != "default" and not config.get("rope_scaling"):
        rest = {
            k: v
            for k, v in rope.items()
            if k not in ("rope_theta", "partial_rotary_factor", "rope_type", "type")
        }
        both = {"type": kind} if kind in OLD_SCALINGS else {"type": kind, "rope_type": kind}
        config["rope_scaling"] = {**both, **rest}


def _metaspace(value: Any) -> Any:
    if isinstance(value, list):
        return [_metaspace(item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {key: _metaspace(item) for key, item in value.items()}
    if result.get("type") == "Metaspace" and "prepend_scheme" in result:
        result.setdefault("add_prefix_space", result["prepend_scheme"] != "never")
    return result


def _has_segments(config: Json) -> bool:
    """Whether the model tells a second text from the first (BERT's token types)."""
    return int(config.get("type_vocab_size") or 0) > 1


def _writer(config: Json) -> Version:
    try:
        return Version(str(config.get("transformers_version", "4")))
    except InvalidVersion:
        return Version("4")


def _replace(path: Path, value: Json, *, compact: bool) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(
        json.dumps(value, ensure_ascii=False, indent=None if compact else 2) + "\n", encoding="utf-8"
    )
    os.replace(fresh, path)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)
