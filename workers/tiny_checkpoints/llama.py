"""A tiny Llama with byte-level BPE and a chat template, in the layout of SmolLM2-Instruct.

The configuration has both spellings of RoPE and of the dtype, so that every transformers version reads the same model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

from orchestrator.worker.tiny import Weights, byte_alphabet, write_json, write_safetensors

HIDDEN, LAYERS, HEADS, KEY_HEADS, INNER, POSITIONS = 32, 2, 4, 2, 64, 256
ROPE_THETA = 100_000.0  # not the 10,000 that transformers 4 falls back to: a lost base shows in the logits
START, END = "<|im_start|>", "<|im_end|>"
WORDS = ("the", "cat", "dog", "sat", "mat")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_llama(destination: Path, seed: int = 0) -> None:
    """A LlamaForCausalLM of 2 layers with tied embeddings and grouped keys."""
    vocabulary, merges = _vocabulary()
    write_json(destination / "config.json", _config(vocabulary))
    write_safetensors(destination / "model.safetensors", _weights(len(vocabulary), seed))
    write_json(destination / "tokenizer.json", _fast_tokenizer(vocabulary, merges))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": POSITIONS,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    write_json(destination / "tokenizer_config.json", settings)
    ids = {
        "bos_token_id": vocabulary[START],
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[END],
    }
    # As many published checkpoints do, it samples unless told otherwise.
    write_json(
        destination / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.6, "top_k": 1}
    )


def _vocabulary() -> tuple[Dict[str, int], List[str]]:
    tokens = list(byte_alphabet())
    merges: List[str] = []
    for word in WORDS:
        left = word[0]
        for right in word[1:]:
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
            left += right
    tokens += [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _config(vocabulary: Dict[str, int]) -> Dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HIDDEN // HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": vocabulary[START],
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[END],
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def _weights(vocabulary: int, seed: int) -> Dict[str, Any]:
    weights = Weights(seed)
    weights.normal("model.embed_tokens.weight", vocabulary, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights.layer_norm(prefix + "input_layernorm", HIDDEN, bias=False)
        for name, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2), ("o", HIDDEN)):
            weights.linear(prefix + f"self_attn.{name}_proj", rows, HIDDEN, bias=False)
        weights.layer_norm(prefix + "post_attention_layernorm", HIDDEN, bias=False)
        weights.linear(prefix + "mlp.gate_proj", INNER, HIDDEN, bias=False)
        weights.linear(prefix + "mlp.up_proj", INNER, HIDDEN, bias=False)
        weights.linear(prefix + "mlp.down_proj", HIDDEN, INNER, bias=False)
    weights.layer_norm("model.norm", HIDDEN, bias=False)
    return weights.arrays


def _fast_tokenizer(vocabulary: Dict[str, int], merges: List[str]) -> Dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **flags} for token in (START, END)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


STYLES: Dict[str, Callable[[Path, int], None]] = {"llama": make_llama}
