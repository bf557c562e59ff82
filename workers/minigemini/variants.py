"""Which language model a checkpoint holds, and its configuration: read off the weights, then off config.json.

The folder's name is asked only for the conversation format, and only when neither weights nor tokenizer tell.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

__all__ = ["Variant", "choose_template", "knows", "language_config", "language_classes"]

Shapes = Mapping[str, Tuple[int, ...]]

TANH_GELU = "gelu_pytorch_tanh"
YI_ROPE, LLAMA_3_ROPE = 5_000_000, 500_000

LANGUAGE_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "hidden_activation", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_theta", "rope_scaling",
    "rope_parameters", "attention_bias", "mlp_bias", "sliding_window", "num_experts_per_tok", "num_local_experts",
)  # fmt: skip
"""What config.json says about the language model; every other key is MiniGemini's or training's own."""


class Variant(NamedTuple):
    """A kind of language model: transformers' class prefix, the first version that has it, our family for it."""

    prefix: str
    since: Tuple[int, int]
    family: str


VARIANTS: Dict[str, Variant] = {
    "llama": Variant("Llama", (4, 28), "minigemini"),
    "mistral": Variant("Mistral", (4, 34), "minigemini"),
    "mixtral": Variant("Mixtral", (4, 36), "minigemini"),
    "gemma": Variant("Gemma", (4, 38), "minigemini-2b"),
}


def choose_variant(config: Mapping[str, Any], shapes: Shapes) -> str:
    """The key in VARIANTS. Experts tell Mixtral; Gemma has Llama's tensor names, so config.json tells it."""
    if any(".block_sparse_moe." in name for name in shapes):
        return "mixtral"
    names = " ".join([str(config.get("model_type", "")), *(config.get("architectures") or [])]).lower()
    activation = str(config.get("hidden_activation") or config.get("hidden_act") or "")
    if "gemma" in names or activation.startswith("gelu"):
        return "gemma"
    return "mistral" if "mistral" in names else "llama"


def knows(variant: str) -> bool:
    """Whether the transformers version at hand has the variant's classes."""
    import transformers

    return hasattr(transformers, VARIANTS[variant].prefix + "ForCausalLM")


def language_classes(variant: str) -> Tuple[Any, Any]:
    """transformers' configuration and model class; ImportError that names the family for it where they are missing."""
    import transformers

    chosen = VARIANTS[variant]
    try:
        return getattr(transformers, chosen.prefix + "Config"), getattr(
            transformers, chosen.prefix + "ForCausalLM"
        )
    except AttributeError:
        raise ImportError(
            f"this checkpoint's language model is {chosen.prefix}, which transformers {transformers.__version__} does not "
            f"know (it came with {'.'.join(map(str, chosen.since))}.0); use the family {chosen.family!r}"
        ) from None


def language_config(
    config: Mapping[str, Any], shapes: Shapes, variant: str, vocabulary: int
) -> Dict[str, Any]:
    """Arguments for transformers' configuration class; sizes are those of the weights.

    `vocabulary` is the tokenizer's length, which the embeddings are cut or grown to, as the original does.
    """
    values = {key: config[key] for key in LANGUAGE_KEYS if key in config}
    heads = values.get("num_attention_heads")
    if not heads:
        raise ValueError("config.json does not say num_attention_heads, which the weights cannot tell")
    queries, hidden = shapes["model.layers.0.self_attn.q_proj.weight"]
    values["head_dim"] = queries // heads
    values["hidden_size"] = hidden
    values["num_key_value_heads"] = shapes["model.layers.0.self_attn.k_proj.weight"][0] // values["head_dim"]
    values["num_hidden_layers"] = count(r"model\.layers\.(\d+)\.", shapes)
    values["vocab_size"] = vocabulary
    inner = "block_sparse_moe.experts.0.w1" if variant == "mixtral" else "mlp.gate_proj"
    values["intermediate_size"] = shapes[f"model.layers.0.{inner}.weight"][0]
    if variant == "mixtral":
        values["num_local_experts"] = count(r"model\.layers\.0\.block_sparse_moe\.experts\.(\d+)\.", shapes)
    elif values["head_dim"] * heads == hidden and variant != "gemma":
        del values["head_dim"]  # what classes without the argument assume
    if variant == "gemma":
        # 4.38 and 4.57 take hidden_act at its word ("gelu", exact), 4.39 to 4.42 do not: say what the model is.
        values["hidden_act"] = values["hidden_activation"] = values.get("hidden_activation") or TANH_GELU
    if (values.get("pad_token_id") or 0) >= vocabulary:
        del values["pad_token_id"]  # a row that the tokenizer does not have
    return with_rope(values)


def with_rope(values: Dict[str, Any]) -> Dict[str, Any]:
    """RoPE's base where transformers 4 looks for it, also when transformers 5 wrote the file."""
    parameters = values.get("rope_parameters") or {}
    if "rope_theta" in parameters and not values.get("rope_theta"):
        values["rope_theta"] = parameters["rope_theta"]
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        values.pop("rope_parameters", None)
    elif not parameters and not values.get("rope_scaling"):
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": values.get("rope_theta", 10000.0)}
    return values


def count(pattern: str, shapes: Shapes) -> int:
    """One more than the largest number that `pattern` finds."""
    numbers = [int(found.group(1)) for found in (re.match(pattern, name) for name in shapes) if found]
    return max(numbers) + 1


def choose_template(variant: str, config: Mapping[str, Any], tokens: Any, folder: str) -> str:
    """The conversation format: by the language model, the tokenizer's special tokens, RoPE's base, the folder's name."""
    if variant in ("mixtral", "mistral"):
        return "mistral_instruct"
    if variant == "gemma":
        return "gemma"
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta")
    signs: List[Tuple[str, bool]] = [
        ("llama_3", "<|start_header_id|>" in tokens),
        ("chatml_direct", "<|im_start|>" in tokens),
        ("llama_3", theta == LLAMA_3_ROPE),
        ("chatml_direct", theta == YI_ROPE or "34b" in folder.lower()),
    ]
    return next((name for name, sign in signs if sign), "vicuna_v1")
