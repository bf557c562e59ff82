"""Tiny CLIP pairs in the layout of openai/clip-vit-base-patch32 (transformers): 4 files of tokenizer, config, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

from orchestrator.worker.tiny import Weights, byte_alphabet, write_json, write_safetensors

TEXT, VISION, PROJECTION = 32, 48, 24
LAYERS, PATCH, IMAGE = 2, 8, 32
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ("cat", "dog", "red", "blue", "photo", "square")


def make_clip(destination: Path, seed: int = 0) -> None:
    """A CLIPModel of 2 + 2 layers, 32x32 pixels, 24 dimensions, with a byte-level BPE of a few words."""
    vocabulary, merges = _vocabulary()
    _write_tokenizer(destination, vocabulary, merges)
    write_json(destination / "config.json", _config(len(vocabulary)))
    write_json(destination / "preprocessor_config.json", _preprocessor())
    write_safetensors(destination / "model.safetensors", _weights(len(vocabulary), seed))


def _vocabulary() -> tuple[Dict[str, int], List[str]]:
    symbols = list(byte_alphabet())
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    merges: List[str] = []
    for word in WORDS:
        left = word[0]
        for index, letter in enumerate(word[1:], start=1):
            right = letter + "</w>" if index == len(word) - 1 else letter
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
            left += right
    tokens += [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _write_tokenizer(destination: Path, vocabulary: Dict[str, int], merges: List[str]) -> None:
    write_json(destination / "vocab.json", vocabulary)
    (destination / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(destination / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    write_json(destination / "tokenizer_config.json", settings)
    write_json(destination / "tokenizer.json", _fast_tokenizer(vocabulary, merges))


def _fast_tokenizer(vocabulary: Dict[str, int], merges: List[str]) -> Dict[str, Any]:
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **added} for token in (START, END)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocabulary[END]],
            "cls": [START, vocabulary[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": merges,  # "a b" strings: tokenizers 0.15 does not read pairs
        },
    }


def _config(vocabulary_size: int) -> Dict[str, Any]:
    common = {
        "hidden_act": "quick_gelu",
        "num_hidden_layers": LAYERS,
        "layer_norm_eps": 1e-5,
        "projection_dim": PROJECTION,
    }
    text = {
        **common,
        "model_type": "clip_text_model",
        "vocab_size": vocabulary_size,
        "hidden_size": TEXT,
        "intermediate_size": 2 * TEXT,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published: the reader then takes the highest id, which is the end token
        "pad_token_id": 1,
    }
    vision = {
        **common,
        "model_type": "clip_vision_model",
        "hidden_size": VISION,
        "intermediate_size": 2 * VISION,
        "num_attention_heads": 4,
        "image_size": IMAGE,
        "patch_size": PATCH,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": PROJECTION,
        "logit_scale_init_value": 2.6592,
        "text_config": text,
        "vision_config": vision,
    }


def _preprocessor() -> Dict[str, Any]:
    return {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": IMAGE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": IMAGE,
    }


def _weights(vocabulary_size: int, seed: int) -> Dict[str, Any]:
    weights = Weights(seed)
    weights.normal("text_model.embeddings.token_embedding.weight", vocabulary_size, TEXT, scale=1.0)
    weights.normal("text_model.embeddings.position_embedding.weight", 77, TEXT, scale=0.3)
    _tower(weights, "text_model", TEXT)
    weights.layer_norm("text_model.final_layer_norm", TEXT)
    weights.normal("vision_model.embeddings.class_embedding", VISION, scale=1.0)
    weights.normal("vision_model.embeddings.patch_embedding.weight", VISION, 3, PATCH, PATCH, scale=0.2)
    weights.normal(
        "vision_model.embeddings.position_embedding.weight", (IMAGE // PATCH) ** 2 + 1, VISION, scale=0.3
    )
    weights.layer_norm("vision_model.pre_layrnorm", VISION)  # the published spelling
    _tower(weights, "vision_model", VISION)
    weights.layer_norm("vision_model.post_layernorm", VISION)
    weights.linear("visual_projection", PROJECTION, VISION, bias=False)
    weights.linear("text_projection", PROJECTION, TEXT, bias=False)
    weights.normal("logit_scale", 1, scale=1e-6)
    weights.arrays["logit_scale"] = weights.arrays["logit_scale"].reshape(()) + weights.arrays[
        "logit_scale"
    ].dtype.type(2.6592)
    return weights.arrays


def _tower(weights: Weights, name: str, size: int) -> None:
    for layer in range(LAYERS):
        prefix = f"{name}.encoder.layers.{layer}."
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            weights.linear(prefix + "self_attn." + part, size, size)
        weights.layer_norm(prefix + "layer_norm1", size)
        weights.linear(prefix + "mlp.fc1", 2 * size, size)
        weights.linear(prefix + "mlp.fc2", size, 2 * size)
        weights.layer_norm(prefix + "layer_norm2", size)


STYLES: Dict[str, Callable[[Path, int], None]] = {"clip": make_clip}
