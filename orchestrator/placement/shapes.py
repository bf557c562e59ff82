"""Published model shapes, so that people can plan for models and machines that they do not have yet.

The keys are those of the models' own config.json; only what memory depends on is kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ConfigError

__all__ = ["SHAPES", "shape"]


def _decoder(kind: str, name: str, numbers: tuple[int, ...], **more: Any) -> dict[str, Any]:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size", "max_position_embeddings")  # fmt: skip
    return {
        "architectures": [name],
        "model_type": kind,
        **dict(zip(keys, numbers, strict=True)),
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        **more,
    }


def _llama(*numbers: int, **more: Any) -> dict[str, Any]:
    return _decoder("llama", "LlamaForCausalLM", numbers, **{"torch_dtype": "float16", **more})


def _qwen2_vl(*numbers: int, tied: bool) -> dict[str, Any]:
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": numbers[0],
              "in_channels": 3, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}  # fmt: skip
    return _decoder(
        "qwen2_vl", "Qwen2VLForConditionalGeneration", numbers, tie_word_embeddings=tied, vision_config=vision
    )


def _mgm(base: Mapping[str, Any], kind: str = "mgm") -> dict[str, Any]:
    return {
        **base,
        "model_type": kind,
        "mm_hidden_size": 1024,
        "mm_hidden_size_aux": 2880,
        "image_size_aux": 768,
        "torch_dtype": "bfloat16",
    }


_LLAMA_7B = _llama(4096, 11008, 32, 32, 32, 32000, 4096)
_LLAMA_13B = _llama(5120, 13824, 40, 40, 40, 32000, 4096)
_YI_34B = _llama(7168, 20480, 60, 56, 8, 64000, 4096, torch_dtype="bfloat16")
_MIXTRAL = _decoder(
    "mixtral", "MixtralForCausalLM", (4096, 14336, 32, 32, 8, 32000, 32768),
    num_local_experts=8, num_experts_per_tok=2,
)  # fmt: skip
_GEMMA_2B = _decoder(
    "gemma", "GemmaForCausalLM", (2048, 16384, 18, 8, 1, 256000, 8192), head_dim=256, tie_word_embeddings=True
)

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-7b": _LLAMA_7B,
    "llama-13b": _LLAMA_13B,
    "llama-34b": _YI_34B,
    "mixtral-8x7b": _MIXTRAL,
    "gemma-2b": _GEMMA_2B,
    "qwen2-vl-2b": _qwen2_vl(1536, 8960, 28, 12, 2, 151936, 32768, tied=True),
    "qwen2-vl-7b": _qwen2_vl(3584, 18944, 28, 28, 4, 152064, 32768, tied=False),
    "mgm-2b": _mgm({**_GEMMA_2B, "tie_word_embeddings": True}, "mgm_gemma"),
    "mgm-7b": _mgm(_LLAMA_7B),
    "mgm-13b": _mgm(_LLAMA_13B),
    "mgm-34b": _mgm(_YI_34B),
    "mgm-8x7b": _mgm(_MIXTRAL, "mgm_mixtral"),
}
"""llama-34b is the shape of Yi-34B (60 layers of 7168), which the 34B of MiniGemini extends."""


def shape(name: str) -> Mapping[str, Any]:
    """The config of a published model.

    Raises:
        ConfigError: not one of `SHAPES`; names the nearest.
    """
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1)
        raise ConfigError(
            f"no published shape {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(SHAPES)}",
        )
    return SHAPES[name]
