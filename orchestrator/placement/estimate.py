"""Needs from a config alone: the tensors that such a model has, computed instead of read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.placement.allowance import Shape, allowance_of, shape_of
from orchestrator.placement.amount import dtype_name
from orchestrator.placement.files import DTYPE_SIZE, Tensor
from orchestrator.placement.needs import Needs, assemble, blocks_of, stored_dtype, ties_head

__all__ = ["estimate_from_config"]

KNOWN = ("llama", "mistral", "mixtral", "gemma", "qwen2", "qwen2_vl", "mgm", "mgm_gemma", "mgm_mixtral")
BIASED = ("qwen2", "qwen2_vl")  # q, k and v have a bias
CONVNEXT_LARGE = ((192, 3), (384, 3), (768, 27), (1536, 3))  # channels and blocks of each stage


def estimate_from_config(
    config: Mapping[str, Any],
    dtype: str = "auto",
    batch: int = 1,
    context: int | None = None,
    *,
    name: str | None = None,
) -> Needs:
    """What a model with this config.json needs, without any file of weights.

    Exact (parameter for parameter) for decoders like Llama, Mistral, Mixtral, Gemma, Qwen2, Qwen2-VL and
    MiniGemini; others are counted as if they were a Llama, with a note.

    Raises:
        ConfigError: the config has no layers and hidden size, or the dtype is unknown.
    """
    numbers = shape_of(config)
    if numbers is None:
        raise ConfigError("the config has no hidden_size and num_hidden_layers", hint="pass a config.json")
    kind = str(config.get("model_type", "")).replace("mini_gemini", "mgm")
    tied = ties_head(config)
    stored = dtype_name(dtype, auto=stored_dtype(config, ()))
    tensors = [
        Tensor(tensor, stored, math.prod(size), math.prod(size) * DTYPE_SIZE[stored], size)
        for tensor, size in _tensors(config, numbers, kind)
    ]
    notes = () if kind in KNOWN else (f"model_type {kind!r} is counted as if it were a Llama",)
    allowance = allowance_of(config, batch=batch, context=context)
    return assemble(name or kind or "model", blocks_of(tensors, tied=tied), allowance, stored, notes)


def _tensors(config: Mapping[str, Any], n: Shape, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if kind == "qwen2_vl" and isinstance(config.get("vision_config"), dict):
        yield from _qwen2_vision(config["vision_config"], n.hidden)
    if kind.startswith("mgm"):
        yield from _mgm_towers(n.hidden)
    experts = int(config.get("num_local_experts", 0))
    yield "model.embed_tokens.weight", (n.vocab, n.hidden)
    for layer in range(n.layers):
        for part, size in _layer(n, experts, biased=kind in BIASED):
            yield f"model.layers.{layer}.{part}", size
    yield "model.norm.weight", (n.hidden,)
    yield "lm_head.weight", (n.vocab, n.hidden)


def _layer(n: Shape, experts: int, *, biased: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = n.heads * n.head_dim, n.kv_heads * n.head_dim
    for part, width in (("q", queries), ("k", keys), ("v", keys)):
        yield f"self_attn.{part}_proj.weight", (width, n.hidden)
        if biased:
            yield f"self_attn.{part}_proj.bias", (width,)
    yield "self_attn.o_proj.weight", (n.hidden, queries)
    if experts:
        yield "block_sparse_moe.gate.weight", (experts, n.hidden)
    for expert in range(max(1, experts)):
        stem = f"block_sparse_moe.experts.{expert}" if experts else "mlp"
        yield f"{stem}.gate_proj.weight", (n.intermediate, n.hidden)
        yield f"{stem}.up_proj.weight", (n.intermediate, n.hidden)
        yield f"{stem}.down_proj.weight", (n.hidden, n.intermediate)
    yield "input_layernorm.weight", (n.hidden,)
    yield "post_attention_layernorm.weight", (n.hidden,)


def _linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _qwen2_vision(vision: Mapping[str, Any], hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, patch = int(vision.get("embed_dim", 1280)), int(vision.get("patch_size", 14))
    wide = int(width * vision.get("mlp_ratio", 4))
    merged = width * int(vision.get("spatial_merge_size", 2)) ** 2
    frames = int(vision.get("temporal_patch_size", 2))
    yield "visual.patch_embed.proj.weight", (width, int(vision.get("in_channels", 3)), frames, patch, patch)
    for i in range(int(vision.get("depth", 32))):
        stem = f"visual.blocks.{i}"
        for part in ("norm1", "norm2"):
            yield from _norm(f"{stem}.{part}", width)
        yield from _linear(f"{stem}.attn.qkv", 3 * width, width)
        yield from _linear(f"{stem}.attn.proj", width, width)
        yield from _linear(f"{stem}.mlp.fc1", wide, width)
        yield from _linear(f"{stem}.mlp.fc2", width, wide)
    yield from _norm("visual.merger.ln_q", width)
    yield from _linear("visual.merger.mlp.0", merged, merged)
    yield from _linear("visual.merger.mlp.2", hidden, merged)


def _mgm_towers(hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """CLIP ViT-L/14-336, ConvNeXt-L, patch mining and the projector, as MiniGemini's checkpoints carry them."""
    yield from _clip_large()
    yield from _convnext_large()
    yield from _linear("model.mm_projector.0", hidden, 1024)
    yield from _linear("model.mm_projector.2", hidden, hidden)
    for part, width in (("query", 1024), ("aux", 2880), ("val", 2880)):
        yield from _norm(f"model.vlm_uni_{part}_projector.0", width)
        yield from _linear(f"model.vlm_uni_{part}_projector.1", 1024, width)


def _clip_large(width: int = 1024) -> Iterator[tuple[str, tuple[int, ...]]]:
    stem = "model.vision_tower.vision_tower.vision_model"
    yield f"{stem}.embeddings.class_embedding", (width,)
    yield f"{stem}.embeddings.patch_embedding.weight", (width, 3, 14, 14)
    yield f"{stem}.embeddings.position_embedding.weight", (577, width)
    for part in ("pre_layrnorm", "post_layernorm"):
        yield from _norm(f"{stem}.{part}", width)
    for i in range(24):
        layer = f"{stem}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", width, width)
        for part in ("layer_norm1", "layer_norm2"):
            yield from _norm(f"{layer}.{part}", width)
        yield from _linear(f"{layer}.mlp.fc1", 4 * width, width)
        yield from _linear(f"{layer}.mlp.fc2", width, 4 * width)


def _convnext_large() -> Iterator[tuple[str, tuple[int, ...]]]:
    stem = "model.vision_tower_aux"
    before = 3
    for stage, (width, depth) in enumerate(CONVNEXT_LARGE):
        if stage == 0:
            yield f"{stem}.vision_stem.0.weight", (width, before, 4, 4)
            yield f"{stem}.vision_stem.0.bias", (width,)
            yield from _norm(f"{stem}.vision_stem.1", width)
        else:
            yield from _norm(f"{stem}.vision_stages.{stage}.downsample.0", before)
            yield f"{stem}.vision_stages.{stage}.downsample.1.weight", (width, before, 2, 2)
            yield f"{stem}.vision_stages.{stage}.downsample.1.bias", (width,)
        for i in range(depth):
            block = f"{stem}.vision_stages.{stage}.blocks.{i}"
            yield f"{block}.gamma", (width,)
            yield f"{block}.conv_dw.weight", (width, 1, 7, 7)
            yield f"{block}.conv_dw.bias", (width,)
            yield from _norm(f"{block}.norm", width)
            yield from _linear(f"{block}.mlp.fc1", 4 * width, width)
            yield from _linear(f"{block}.mlp.fc2", width, 4 * width)
        before = width
