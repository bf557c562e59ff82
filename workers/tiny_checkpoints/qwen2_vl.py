"""Tiny random checkpoints in the published layouts of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Real in everything but size and sense: config.json, processor configs, chat template, a byte-level BPE tokenizer with
Qwen's special tokens, and safetensors whose names and shapes follow the published files. One folder serves every
transformers version (RoPE's base at both places, merges as strings, the plain tokenizer class).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from orchestrator.worker.tiny import Weights, byte_alphabet, write_json, write_safetensors

__all__ = ["STYLES", "GEOMETRIES", "make", "shapes"]

Shape = Tuple[int, ...]

GEOMETRIES: Dict[str, Dict[str, Any]] = {
    "qwen2-vl": {
        "hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128, "tied": True,
        "vision": 32, "depth": 2, "vision_heads": 2, "vision_intermediate": 64, "patch": 14, "mrope": (2, 3, 3),
    },
    "qwen2.5-vl": {
        "hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128, "tied": False,
        "vision": 32, "depth": 2, "vision_heads": 2, "vision_intermediate": 48, "patch": 14, "mrope": (2, 3, 3),
    },
    "qwen3-vl": {
        "hidden": 64, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate": 128, "tied": True,
        "vision": 32, "depth": 3, "vision_heads": 2, "vision_intermediate": 64, "patch": 16, "mrope": (4, 2, 2),
        "positions": 16, "deepstack": (0, 1),
    },
}  # fmt: skip
"""Sizes by style, under names of our own; heads are 16 wide, so `mrope` adds up to 8."""

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
WORDS = (
    "a and are at blue boat by cat dog for from green hand has he house in is it large man near not of on one person "
    "photo picture red river see she small standing street table that the there this three to tree two was white with "
    "woman yellow assistant describe helpful image system user what you"
)
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

TEMPLATE = """{%- macro part(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for item in content -%}
{%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif item.type == 'video' or 'video' in item -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in item -%}{{ item.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
SYSTEM{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + part(message.content) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
SYSTEM = """{%- if messages and messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
"""


def make(destination: Path, seed: int = 0, *, style: str, geometry: Mapping[str, Any] = {}) -> None:
    """Write a checkpoint of `style` into the existing folder `destination`; `geometry` replaces single sizes."""
    sizes = {**GEOMETRIES[style], **geometry}
    tokens = _write_tokenizer(destination, _template(style))
    sizes.setdefault("vocabulary", len(tokens))
    write_json(destination / "config.json", _config(style, sizes, tokens))
    ends = [tokens["<|im_end|>"], tokens["<|endoftext|>"]]
    write_json(
        destination / "generation_config.json",
        {"bos_token_id": ends[1], "pad_token_id": ends[1], "eos_token_id": ends, "do_sample": True,
         "temperature": 0.01, "top_p": 0.001, "top_k": 1},
    )  # fmt: skip
    _write_processor(destination, style, sizes)
    weights = Weights(seed)
    for name, shape in shapes(style, sizes).items():
        _fill(weights, name, shape)
    write_safetensors(destination / "model.safetensors", weights.arrays)


STYLES: Dict[str, Callable[[Path, int], None]] = {style: partial(make, style=style) for style in GEOMETRIES}


def shapes(style: str, sizes: Mapping[str, Any]) -> Dict[str, Shape]:
    """Name and shape of every stored tensor; `sizes` as in GEOMETRIES with `vocabulary`. Real sizes give real counts."""
    visual, text = (
        ("model.visual.", "model.language_model.") if style == "qwen3-vl" else ("visual.", "model.")
    )
    tensors = {text + "embed_tokens.weight": (sizes["vocabulary"], sizes["hidden"])}
    for layer in range(sizes["layers"]):
        tensors.update(_text_layer(f"{text}layers.{layer}.", style, sizes))
    tensors[text + "norm.weight"] = (sizes["hidden"],)
    if not sizes["tied"]:
        tensors["lm_head.weight"] = (sizes["vocabulary"], sizes["hidden"])
    tensors.update(_vision(visual, style, sizes))
    return tensors


def _text_layer(prefix: str, style: str, sizes: Mapping[str, Any]) -> Dict[str, Shape]:
    hidden, inner = sizes["hidden"], sizes["intermediate"]
    width = sizes.get("head", hidden // sizes["heads"])
    queries, keys = sizes["heads"] * width, sizes["kv_heads"] * width
    tensors: Dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if style == "qwen3-vl":
        tensors.update({"self_attn.q_norm.weight": (width,), "self_attn.k_norm.weight": (width,)})
    else:
        biases = {"q": queries, "k": keys, "v": keys}
        tensors.update({f"self_attn.{name}_proj.bias": (size,) for name, size in biases.items()})
    return {prefix + name: shape for name, shape in tensors.items()}


def _vision(prefix: str, style: str, sizes: Mapping[str, Any]) -> Dict[str, Shape]:
    width, inner, patch = sizes["vision"], sizes["vision_intermediate"], sizes["patch"]
    tensors: Dict[str, Shape] = {"patch_embed.proj.weight": (width, 3, 2, patch, patch)}
    if style == "qwen3-vl":
        tensors["patch_embed.proj.bias"] = (width,)
        tensors["pos_embed.weight"] = (sizes["positions"], width)
    for block in range(sizes["depth"]):
        for norm in ("norm1", "norm2"):
            tensors.update(_norm(f"blocks.{block}.{norm}", width, bias=style != "qwen2.5-vl"))
        tensors.update(_linear(f"blocks.{block}.attn.qkv", 3 * width, width))
        tensors.update(_linear(f"blocks.{block}.attn.proj", width, width))
        for name, (rows, columns) in _MLP[style](width, inner).items():
            tensors.update(_linear(f"blocks.{block}.mlp.{name}", rows, columns))
    tensors.update(_mergers(style, sizes))
    return {prefix + name: shape for name, shape in tensors.items()}


_MLP: Dict[str, Callable[[int, int], Dict[str, Tuple[int, int]]]] = {
    "qwen2-vl": lambda width, inner: {"fc1": (inner, width), "fc2": (width, inner)},
    "qwen2.5-vl": lambda width, inner: {
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    },
    "qwen3-vl": lambda width, inner: {"linear_fc1": (inner, width), "linear_fc2": (width, inner)},
}


def _mergers(style: str, sizes: Mapping[str, Any]) -> Dict[str, Shape]:
    width, hidden = sizes["vision"], sizes["hidden"]
    merged = 4 * width  # 2 x 2 patches become one token
    if style != "qwen3-vl":
        return {
            **_norm("merger.ln_q", width, bias=style == "qwen2-vl"),
            **_linear("merger.mlp.0", merged, merged),
            **_linear("merger.mlp.2", hidden, merged),
        }
    tensors: Dict[str, Shape] = {}
    for name in ["merger"] + [f"deepstack_merger_list.{index}" for index in range(len(sizes["deepstack"]))]:
        tensors.update(_norm(name + ".norm", width if name == "merger" else merged))
        tensors.update(_linear(name + ".linear_fc1", merged, merged))
        tensors.update(_linear(name + ".linear_fc2", hidden, merged))
    return tensors


def _linear(name: str, rows: int, columns: int) -> Dict[str, Shape]:
    return {name + ".weight": (rows, columns), name + ".bias": (rows,)}


def _norm(name: str, size: int, *, bias: bool = True) -> Dict[str, Shape]:
    return {name + ".weight": (size,), **({name + ".bias": (size,)} if bias else {})}


def _fill(weights: Weights, name: str, shape: Shape) -> None:
    """Norms near 1, biases near 0, everything else by its fan-in; embeddings small, as tied ones would echo the input."""
    if len(shape) > 1:
        fan_in = shape[-1] if len(shape) == 2 else int(3 * 2 * shape[-1] * shape[-1])
        weights.normal(name, *shape, scale=0.1 if "embed_tokens" in name else fan_in**-0.5)
    else:
        weights.normal(name, *shape, scale=0.1)
        if name.endswith(".weight"):
            weights.arrays[name] += 1


def _config(style: str, sizes: Mapping[str, Any], tokens: Mapping[str, int]) -> Dict[str, Any]:
    text: Dict[str, Any] = {
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "intermediate_size": sizes["intermediate"],
        "vocab_size": sizes["vocabulary"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": tokens["<|endoftext|>"],
        "eos_token_id": tokens["<|im_end|>"],
    }
    shared = {
        "tie_word_embeddings": sizes["tied"],  # 4.57 reads Qwen3-VL's from the text model's config
        "vision_start_token_id": tokens["<|vision_start|>"],
        "vision_end_token_id": tokens["<|vision_end|>"],
        "image_token_id": tokens["<|image_pad|>"],
        "video_token_id": tokens["<|video_pad|>"],
        "torch_dtype": "float32",
    }
    vision = {"in_chans": 3, "depth": sizes["depth"], "num_heads": sizes["vision_heads"],
              "patch_size": sizes["patch"], "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
    mrope: Dict[str, Any] = {"mrope_section": list(sizes["mrope"])}
    if style == "qwen3-vl":
        return _nested(text, shared, vision, mrope, sizes)
    text.update({"rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", **mrope}, "use_sliding_window": False,
                 "max_window_layers": sizes["layers"], "sliding_window": 32768})  # fmt: skip
    if style == "qwen2-vl":
        vision.update({"embed_dim": sizes["vision"], "hidden_size": sizes["hidden"], "in_channels": 3,
                       "mlp_ratio": sizes["vision_intermediate"] // sizes["vision"]})  # fmt: skip
        names = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
    else:
        vision.update({"hidden_size": sizes["vision"], "out_hidden_size": sizes["hidden"], "hidden_act": "silu",
                       "intermediate_size": sizes["vision_intermediate"], "window_size": 112,
                       "fullatt_block_indexes": [sizes["depth"] - 1], "tokens_per_second": 2})  # fmt: skip
        names = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    return {**names, **text, **shared, "vision_token_id": tokens["<|vision_pad|>"], "vision_config": vision}


def _nested(text: Any, shared: Any, vision: Any, mrope: Any, sizes: Mapping[str, Any]) -> Dict[str, Any]:
    """Qwen3-VL's config, which keeps the text model's keys in `text_config`."""
    scaling = {"rope_type": "default", "mrope_interleaved": True, **mrope}
    text.update({"model_type": "qwen3_vl_text", "head_dim": sizes.get("head", sizes["hidden"] // sizes["heads"]),
                 "attention_bias": False, "rope_theta": 5000000.0, "rope_scaling": scaling,
                 "tie_word_embeddings": sizes["tied"]})  # fmt: skip
    vision.update({"model_type": "qwen3_vl", "hidden_size": sizes["vision"], "out_hidden_size": sizes["hidden"],
                   "intermediate_size": sizes["vision_intermediate"], "hidden_act": "gelu_pytorch_tanh",
                   "in_channels": 3, "num_position_embeddings": sizes["positions"],
                   "deepstack_visual_indexes": list(sizes["deepstack"])})  # fmt: skip
    vision.pop("in_chans")
    names = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}
    return {**names, **shared, "text_config": text, "vision_config": vision}


def _write_processor(destination: Path, style: str, sizes: Mapping[str, Any]) -> None:
    common: Dict[str, Any] = {"patch_size": sizes["patch"], "temporal_patch_size": 2, "merge_size": 2}
    if style == "qwen3-vl":
        half = [0.5, 0.5, 0.5]
        common.update({"image_mean": half, "image_std": half, "processor_class": "Qwen3VLProcessor"})
        images = {
            "size": {"longest_edge": 16777216, "shortest_edge": 1024},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
        videos = {
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "video_processor_type": "Qwen3VLVideoProcessor",
        }
        write_json(destination / "video_preprocessor_config.json", {**videos, **common})
    else:
        name = "Qwen2VLProcessor" if style == "qwen2-vl" else "Qwen2_5_VLProcessor"
        common.update({"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "processor_class": name})
        images = {"min_pixels": 3136, "max_pixels": 12845056, "image_processor_type": "Qwen2VLImageProcessor"}
    write_json(destination / "preprocessor_config.json", {**images, **common})
    write_json(destination / "chat_template.json", {"chat_template": _template(style)})


def _template(style: str) -> str:
    """Qwen3-VL puts no system prompt of its own."""
    return TEMPLATE.replace("SYSTEM", "" if style == "qwen3-vl" else SYSTEM)


def _write_tokenizer(destination: Path, template: str) -> Dict[str, int]:
    """Qwen's tokenizer with a short list of English words; returns id by token."""
    alphabet = byte_alphabet()
    merges = _merges(alphabet[ord(" ")])
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    first = len(vocabulary)
    added = [
        {"id": first + index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index, token in enumerate(SPECIAL)
    ]  # fmt: skip
    lines = [left + " " + right for left, right in merges]
    write_json(destination / "tokenizer.json", _tokenizer(vocabulary, lines, added))
    write_json(destination / "vocab.json", vocabulary)
    (destination / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    decoder = {str(entry["id"]): {key: entry[key] for key in entry if key != "id"} for entry in added}
    write_json(
        destination / "tokenizer_config.json",
        {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "added_tokens_decoder": decoder,
         "additional_special_tokens": list(SPECIAL[1:]), "bos_token": None, "chat_template": template,
         "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
         "model_max_length": 32768, "pad_token": "<|endoftext|>", "split_special_tokens": False, "unk_token": None},
    )  # fmt: skip
    return {**vocabulary, **{token: first + index for index, token in enumerate(SPECIAL)}}


def _merges(space: str) -> List[Tuple[str, str]]:
    """Merges that build each word letter by letter, with and without a leading space."""
    merges: Dict[Tuple[str, str], None] = {}
    for word in WORDS.split():
        for start in (space, ""):
            letters: Sequence[str] = [start + word[0], *word[1:]] if not start else [start, *word]
            built = letters[0]
            for letter in letters[1:]:
                merges[(built, letter)] = None
                built += letter
    return list(merges)


def _tokenizer(vocabulary: Mapping[str, int], merges: Sequence[str], added: Sequence[Any]) -> Dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
                  "vocab": dict(vocabulary), "merges": list(merges)},
    }  # fmt: skip
