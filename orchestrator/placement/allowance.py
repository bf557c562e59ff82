"""What running a model takes beside its weights, from its config.json: KV cache, logits, activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.placement.amount import NOTHING, Amount, Term

__all__ = ["DEFAULT_CONTEXT", "Allowance", "Shape", "allowance_of", "shape_of"]

DEFAULT_CONTEXT = 2048
"""Tokens of a sequence that are allowed for where nobody says more: prompt, image tokens and answer."""
MAP_COPIES = 3
"""The joined maps, the stages that they are joined from, and their squares for patch mining."""
GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSeq2SeqLM")


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that memory depends on; 0 where a model has no such thing."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int
    experts_per_token: int
    generates: bool


@dataclass(frozen=True)
class Allowance:
    """`cache` is for all layers together, `maps` for the first device, `workspace` for each device that computes."""

    cache: Amount = NOTHING
    logits: Amount = NOTHING
    workspace: Amount = NOTHING
    maps: Amount = NOTHING
    terms: tuple[Term, ...] = ()
    quantised: str | None = None


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config describes (the language part of a multimodal one), or None."""
    text: Mapping[str, Any] = next(
        (config[k] for k in ("text_config", "llm_config") if isinstance(config.get(k), dict)), {}
    )
    merged = {**config, **text}

    def number(*names: str, default: int = 0) -> int:
        return next((int(merged[n]) for n in names if isinstance(merged.get(n), (int, float))), default)

    hidden = number("hidden_size", "n_embd", "d_model", "dim")
    layers = number("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if not hidden or not layers:
        return None
    heads = number("num_attention_heads", "n_head", "num_heads", default=1)
    classes = [str(name) for name in config.get("architectures") or ()]
    kind = str(config.get("model_type", ""))
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head_dim=number("head_dim", default=hidden // heads),
        intermediate=number("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * hidden),
        vocab=number("vocab_size"),
        positions=number(
            "max_position_embeddings", "n_positions", "max_sequence_length", default=DEFAULT_CONTEXT
        ),
        experts_per_token=number("num_experts_per_tok", default=1),
        generates=any(name.endswith(GENERATES) for name in classes)
        or kind.startswith(("mgm", "mini_gemini")),
    )


def allowance_of(config: Mapping[str, Any], *, batch: int = 1, context: int | None = None) -> Allowance:
    """The allowance for `batch` sequences of `context` tokens; nothing where the config does not say."""
    quantisation = config.get("quantization_config")
    quantised = str(quantisation.get("quant_method", "yes")) if isinstance(quantisation, dict) else None
    shape = shape_of(config)
    if shape is None:
        return Allowance(quantised=quantised)
    tokens = context or min(shape.positions or DEFAULT_CONTEXT, _default_context(config))
    per_token = 4 * shape.hidden + 3 * shape.intermediate * max(1, shape.experts_per_token)
    workspace = Amount(batch * tokens * per_token)
    activations = Term(
        "activations",
        workspace,
        f"{batch} x {tokens} tokens x (4 x {shape.hidden} hidden + 3 x {shape.intermediate} intermediate"
        + (f" x {shape.experts_per_token} experts)" if shape.experts_per_token > 1 else ")"),
        "each device",
    )
    if not shape.generates:
        return Allowance(workspace=workspace, terms=(activations,), quantised=quantised)
    cache = Amount(2 * shape.layers * shape.kv_heads * shape.head_dim * batch * tokens)
    logits = Amount(batch * tokens * shape.vocab, 4 * batch * tokens * shape.vocab)
    terms = (
        Term(
            "KV cache",
            cache,
            f"2 (K, V) x {shape.layers} layers x {shape.kv_heads} heads x {shape.head_dim} x {batch} x {tokens} tokens",
            "layers",
        ),
        Term(
            "logits",
            logits,
            f"{batch} x {tokens} tokens x {shape.vocab} words, and a float32 copy: every position, as "
            "transformers before 4.45 and every plain forward compute them",
            "head",
        ),
        activations,
    )
    maps, told = _picture_maps(config)
    return Allowance(cache, logits, workspace, maps, (*terms, *told), quantised)


def _default_context(config: Mapping[str, Any]) -> int:
    """One picture of a tiled (HD) MiniGemini has more tokens than `DEFAULT_CONTEXT`: its config says how many it reads."""
    if isinstance(config.get("image_grid"), int) and config["image_grid"] > 1:
        return int(config.get("tokenizer_model_max_length") or 2 * DEFAULT_CONTEXT)
    return DEFAULT_CONTEXT


def _picture_maps(config: Mapping[str, Any]) -> tuple[Amount, tuple[Term, ...]]:
    """What a ConvNeXt tower makes of one picture: maps of all its stages in a quarter of the picture's size."""
    channels, pixels = (config.get(key) for key in ("mm_hidden_size_aux", "image_size_aux"))
    if not isinstance(channels, int) or not isinstance(pixels, int):
        return NOTHING, ()
    side = pixels // 4
    maps = Amount(MAP_COPIES * channels * side * side)
    words = f"{channels} channels x {side} x {side}, and {MAP_COPIES - 1} copies on the way to the patches"
    return maps, (Term("picture maps", maps, words, "first device"),)
