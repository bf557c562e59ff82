"""Tiny random checkpoints in MiniGemini's published layout, one style per size and its HD version.

Sharded bfloat16 safetensors with their index, both towers inside and in folders of their own (as PyTorch files),
config.json with the original's keys, and real tokenizers made from a few sentences: SentencePiece for the Vicuna, Yi,
Mixtral and Gemma styles, byte-level BPE for Llama-3's. Pictures are small (CLIP 56 pixels, ConvNeXt 128), everything
else is as published.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Sequence

import numpy as np

from orchestrator.worker.tiny import Weights, write_json, write_safetensors
from orchestrator.worker.tiny_tokenizers import FIRST_BYTE, TOKENIZERS
from orchestrator.worker.torch_file import write_torch_file

__all__ = ["STYLES", "GEOMETRIES", "make"]

CLIP_FOLDER = "model_zoo/OpenAI/clip-vit-large-patch14-336"
CONVNEXT_FOLDER = "model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"

_LLAMA = {"model_type": "mgm", "class": "MGMLlamaForCausalLM", "layers": 2, "heads": 4, "kv_heads": 4,
          "head": 16, "inner": 96, "theta": 10000.0, "act": "silu", "eps": 1e-5, "tokenizer": "llama"}  # fmt: skip

GEOMETRIES: Dict[str, Dict[str, Any]] = {
    "7b": {**_LLAMA, "model_type": "mini_gemini", "class": "MiniGeminiLlamaForCausalLM"},
    "13b": {**_LLAMA, "layers": 3, "heads": 5, "kv_heads": 5, "inner": 112},
    "34b": {**_LLAMA, "kv_heads": 2, "theta": 5000000.0, "tokenizer": "yi"},
    "8b": {**_LLAMA, "kv_heads": 2, "theta": 500000.0, "tokenizer": "llama-3"},
    "8x7b": {**_LLAMA, "model_type": "mgm_mixtral", "class": "MGMMixtralForCausalLM", "kv_heads": 2, "head": 12,
             "inner": 64, "theta": 1000000.0, "experts": 4, "tokenizer": "mixtral"},
    "2b": {**_LLAMA, "model_type": "mini_gemini_gemma", "class": "MiniGeminiGemmaForCausalLM", "kv_heads": 1,
           "act": "gelu", "eps": 1e-6, "tokenizer": "gemma", "layers": 3, "embedding": 0.05},
}  # fmt: skip
"""The language models, by size."""

VISION: Dict[str, Any] = {
    "width": 32, "vision_layers": 3, "vision_heads": 2, "vision_inner": 64, "patch": 14, "pixels": 56,
    "depths": (1, 1, 2, 1), "widths": (8, 12, 16, 20), "detail": 128,
}  # fmt: skip
"""The towers; HD doubles `detail`."""

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def make(
    destination: Path, seed: int = 0, *, size: str, hd: bool = False, geometry: Mapping[str, Any] = {}
) -> None:
    """Write a checkpoint of `size` into the existing folder `destination`; `geometry` replaces single sizes."""
    sizes = {**VISION, **GEOMETRIES[size], "hd": hd, **geometry}
    sizes["detail"] *= 2 if hd else 1
    sizes.setdefault("hidden", sizes["heads"] * sizes["head"])
    sizes["vocabulary"] = TOKENIZERS[sizes["tokenizer"]](destination)
    write_json(destination / "config.json", config(sizes))
    towers = tower_weights(sizes, seed + 1)
    write_towers(destination, sizes, towers)
    inside = {
        **{f"model.vision_tower.vision_tower.{name}": array for name, array in towers["clip"].items()},
        **{f"model.vision_tower_aux.{name}": array for name, array in towers["convnext"].items()},
    }
    write_shards(
        destination, [language_weights(sizes, seed), {**projector_weights(sizes, seed + 2), **inside}]
    )


STYLES: Dict[str, Callable[[Path, int], None]] = {
    f"minigemini-{size}{'-hd' if hd else ''}": partial(make, size=size, hd=hd)
    for hd in (False, True)
    for size in GEOMETRIES
}


def config(sizes: Mapping[str, Any]) -> Dict[str, Any]:
    """config.json as training wrote it."""
    gemma = sizes["tokenizer"] == "gemma"
    values: Dict[str, Any] = {
        "_name_or_path": "model_zoo/LLM", "architectures": [sizes["class"]], "model_type": sizes["model_type"],
        "hidden_size": sizes["hidden"], "intermediate_size": sizes["inner"], "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"], "num_key_value_heads": sizes["kv_heads"], "hidden_act": sizes["act"],
        "vocab_size": sizes["vocabulary"], "max_position_embeddings": 4096, "rms_norm_eps": sizes["eps"],
        "rope_theta": sizes["theta"], "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16",
        "bos_token_id": 2 if gemma else 1, "eos_token_id": 1 if gemma else 2, "pad_token_id": 0,
        "freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad", "image_grid": 2 if sizes["hd"] else 1,
        "image_global": sizes["hd"], "image_grid_pinpoints": None, "image_size_aux": sizes["detail"],
        "mm_hidden_size": sizes["width"], "mm_hidden_size_aux": sum(sizes["widths"]),
        "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": CLIP_FOLDER,
        "mm_vision_tower_aux": CONVNEXT_FOLDER, "optimize_vision_tower": False, "optimize_vision_tower_aux": False,
        "tokenizer_model_max_length": 4096 if sizes["hd"] else 2048, "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False, "use_mm_proj": True, "transformers_version": "4.36.2",
    }  # fmt: skip
    if gemma:
        values["head_dim"] = sizes["head"]
    else:
        values["tie_word_embeddings"] = False
    if "experts" in sizes:
        values.update(num_local_experts=sizes["experts"], num_experts_per_tok=2, sliding_window=None)
    return values


def language_weights(sizes: Mapping[str, Any], seed: int) -> Dict[str, np.ndarray]:
    weights = Weights(seed)
    hidden = sizes["hidden"]
    queries, keys = sizes["heads"] * sizes["head"], sizes["kv_heads"] * sizes["head"]
    weights.normal(
        "model.embed_tokens.weight", sizes["vocabulary"], hidden, scale=sizes.get("embedding", 0.5)
    )
    for layer in range(sizes["layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("q", queries, hidden),
            ("k", keys, hidden),
            ("v", keys, hidden),
            ("o", hidden, queries),
        ):
            weights.linear(f"{prefix}self_attn.{name}_proj", rows, columns, bias=False)
        feed_forward(weights, prefix, sizes)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights.layer_norm(prefix + norm, hidden, bias=False)
    weights.layer_norm("model.norm", hidden, bias=False)
    weights.linear("lm_head", sizes["vocabulary"], hidden, bias=False)
    first_byte = FIRST_BYTE[sizes["tokenizer"]]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights.arrays[name][first_byte : first_byte + 256] *= np.float32(
            0.5
        )  # readable nonsense, not single bytes
    if sizes["tokenizer"] == "gemma":
        for name in weights.arrays:
            if "norm" in name:
                weights.arrays[name] -= np.float32(1)  # Gemma adds the one itself
        weights.arrays["lm_head.weight"] = weights.arrays["model.embed_tokens.weight"]
    return weights.arrays


def feed_forward(weights: Weights, prefix: str, sizes: Mapping[str, Any]) -> None:
    """A layer's MLP, or its router and experts."""
    hidden, inner = sizes["hidden"], sizes["inner"]
    parts = [[f"mlp.{name}_proj" for name in ("gate", "up", "down")]]
    if "experts" in sizes:
        weights.linear(prefix + "block_sparse_moe.gate", sizes["experts"], hidden, bias=False)
        parts = [
            [f"block_sparse_moe.experts.{expert}.{name}" for name in ("w1", "w3", "w2")]
            for expert in range(sizes["experts"])
        ]
    for names in parts:
        for name, rows, columns in zip(names, (inner, inner, hidden), (hidden, hidden, inner)):
            weights.linear(prefix + name, rows, columns, bias=False)


def projector_weights(sizes: Mapping[str, Any], seed: int) -> Dict[str, np.ndarray]:
    weights = Weights(seed)
    width, detail, hidden = sizes["width"], sum(sizes["widths"]), sizes["hidden"]
    for name, columns in (("query", width), ("aux", detail), ("val", detail)):
        weights.layer_norm(f"model.vlm_uni_{name}_projector.0", columns)
        weights.linear(f"model.vlm_uni_{name}_projector.1", width, columns)
    weights.linear("model.mm_projector.0", hidden, width)
    weights.linear("model.mm_projector.2", hidden, hidden)
    return weights.arrays


def tower_weights(sizes: Mapping[str, Any], seed: int) -> Dict[str, Dict[str, np.ndarray]]:
    """{"clip": vision_model.*, "convnext": vision_stem.* and vision_stages.*}."""
    return {"clip": clip_weights(sizes, seed), "convnext": convnext_weights(sizes, seed + 1)}


def clip_weights(sizes: Mapping[str, Any], seed: int) -> Dict[str, np.ndarray]:
    weights, width, patch = Weights(seed), sizes["width"], sizes["patch"]
    root = "vision_model."
    weights.normal(root + "embeddings.class_embedding", width)
    weights.normal(
        root + "embeddings.patch_embedding.weight", width, 3, patch, patch, scale=1 / (patch * 3**0.5)
    )
    weights.normal(root + "embeddings.position_embedding.weight", (sizes["pixels"] // patch) ** 2 + 1, width)
    weights.layer_norm(root + "pre_layrnorm", width)
    for layer in range(sizes["vision_layers"]):
        prefix = f"{root}encoder.layers.{layer}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            weights.linear(f"{prefix}self_attn.{name}", width, width)
        weights.layer_norm(prefix + "layer_norm1", width)
        weights.linear(prefix + "mlp.fc1", sizes["vision_inner"], width)
        weights.linear(prefix + "mlp.fc2", width, sizes["vision_inner"])
        weights.layer_norm(prefix + "layer_norm2", width)
    weights.layer_norm(root + "post_layernorm", width)
    return weights.arrays


def convnext_weights(sizes: Mapping[str, Any], seed: int) -> Dict[str, np.ndarray]:
    weights, widths = Weights(seed), sizes["widths"]
    weights.normal("vision_stem.0.weight", widths[0], 3, 4, 4, scale=1 / 48**0.5)
    weights.normal("vision_stem.0.bias", widths[0], scale=0.1)
    weights.layer_norm("vision_stem.1", widths[0])
    for stage, (width, depth) in enumerate(zip(widths, sizes["depths"])):
        prefix = f"vision_stages.{stage}."
        if stage:
            before = widths[stage - 1]
            weights.layer_norm(prefix + "downsample.0", before)
            weights.normal(prefix + "downsample.1.weight", width, before, 2, 2, scale=1 / (4 * before) ** 0.5)
            weights.normal(prefix + "downsample.1.bias", width, scale=0.1)
        for block in range(depth):
            name = f"{prefix}blocks.{block}."
            weights.normal(name + "gamma", width, scale=0.5)
            weights.normal(name + "conv_dw.weight", width, 1, 7, 7, scale=1 / 7)
            weights.normal(name + "conv_dw.bias", width, scale=0.1)
            weights.layer_norm(name + "norm", width)
            weights.linear(name + "mlp.fc1", 4 * width, width)
            weights.linear(name + "mlp.fc2", width, 4 * width)
    return weights.arrays


def write_towers(
    destination: Path, sizes: Mapping[str, Any], towers: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """The towers' own folders: a whole CLIP model (a text weight stands for its other half) and OpenCLIP's file."""
    clip, convnext = destination / CLIP_FOLDER, destination / CONVNEXT_FOLDER
    clip.mkdir(parents=True)
    convnext.mkdir(parents=True)
    text = {
        "text_model.final_layer_norm.bias": np.zeros(4, np.float32),
        "logit_scale": np.ones((1,), np.float32),
    }
    write_torch_file(clip / "pytorch_model.bin", {**text, **towers["clip"]})
    vision = {"hidden_size": sizes["width"], "intermediate_size": sizes["vision_inner"], "num_hidden_layers": sizes["vision_layers"],
              "num_attention_heads": sizes["vision_heads"], "image_size": sizes["pixels"], "patch_size": sizes["patch"],
              "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "model_type": "clip_vision_model"}  # fmt: skip
    write_json(
        clip / "config.json",
        {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 4, "vision_config": vision},
    )
    write_json(
        clip / "preprocessor_config.json",
        {"crop_size": sizes["pixels"], "do_center_crop": True, "do_normalize": True, "do_resize": True,
         "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3,
         "size": sizes["pixels"]},
    )  # fmt: skip
    trunk = {
        "visual.trunk." + name.replace("vision_", "", 1): array for name, array in towers["convnext"].items()
    }
    write_torch_file(
        convnext / "open_clip_pytorch_model.bin", {**trunk, "logit_scale": np.ones((1,), np.float32)}
    )
    write_json(
        convnext / "open_clip_config.json",
        {"model_cfg": {"embed_dim": 4, "vision_cfg": {"timm_model_name": "convnext_large"}}},
    )


def write_shards(destination: Path, shards: Sequence[Mapping[str, np.ndarray]]) -> None:
    """bfloat16 shards and their index."""
    places: Dict[str, str] = {}
    total = 0
    for number, arrays in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        rounded = {key: bfloat16(array) for key, array in arrays.items()}
        write_safetensors(destination / name, rounded)
        places.update(dict.fromkeys(rounded, name))
        total += sum(array.nbytes for array in rounded.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_json(destination / "model.safetensors.index.json", index)


def bfloat16(array: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, rounded to the nearest even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
