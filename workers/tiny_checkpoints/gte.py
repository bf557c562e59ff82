"""Tiny embedding checkpoints in the layout of Alibaba-NLP/gte-Qwen2-1.5B-instruct: remote code, last-token pooling.

The published checkpoint brings its own model file (Qwen2 with attention to both sides) and a tokenizer that appends the
end token. The code written here is a small stand-in for both, with the same names of files, classes and weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from orchestrator.worker.tiny import Weights, byte_alphabet, write_json, write_safetensors

HIDDEN, LAYERS, HEADS, KEYS, MIDDLE, POSITIONS = 32, 2, 4, 2, 48, 256
HEAD = HIDDEN // HEADS
END, STARTED, ENDED = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WORDS = ("query", "document", "retrieve", "answer", "cat", "water", "energy")
PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


def make_gte(destination: Path, seed: int = 0) -> None:
    """As published: `model_type` qwen2, so that the library's own (causal) class answers when remote code is off."""
    _make(destination, seed)
    names = {"AutoModel": "modeling_qwen.Qwen2Model"}
    write_json(destination / "config.json", {**_config("qwen2"), "auto_map": names})
    (destination / "modeling_qwen.py").write_text(MODELING, encoding="utf-8")


def make_gte_own_config(destination: Path, seed: int = 0) -> None:
    """With a configuration class of its own, so that versions that know no Qwen2 (before 4.37) load it."""
    _make(destination, seed)
    names = {"AutoConfig": "modeling_qwen.Qwen2Config", "AutoModel": "modeling_qwen.Qwen2Model"}
    write_json(destination / "config.json", {**_config("gte_qwen2"), "auto_map": names})
    own = MODELING.replace("from transformers import PreTrainedModel, Qwen2Config\n", OWN_CONFIG)
    (destination / "modeling_qwen.py").write_text(own, encoding="utf-8")


def make_gte_mask(destination: Path, seed: int = 0) -> None:
    """Remote code that hands the library's own Qwen2 a 4-D mask, as several published checkpoints do.

    transformers 4.39 ignores such a mask and answers other vectors without an error: the trap that self-tests catch.
    """
    _make(destination, seed)
    names = {"AutoModel": "modeling_qwen.BothSides"}
    write_json(destination / "config.json", {**_config("qwen2"), "auto_map": names})
    (destination / "modeling_qwen.py").write_text(MASKED, encoding="utf-8")


def make_last_token(destination: Path, seed: int = 0) -> None:
    """The same weights as an ordinary causal Qwen2, no remote code, and a tokenizer that appends no end token."""
    _make(destination, seed, appends_end=False)
    write_json(destination / "config.json", _config("qwen2"))


def _make(destination: Path, seed: int, *, appends_end: bool = True) -> None:
    vocabulary, merges = _vocabulary()
    write_json(
        destination / "vocab.json", {token: index for token, index in vocabulary.items() if "<|" not in token}
    )
    (destination / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    write_json(destination / "tokenizer.json", _fast_tokenizer(vocabulary, merges, appends_end))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": POSITIONS,
        "padding_side": "left",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
    }
    write_json(destination / "tokenizer_config.json", settings)
    write_json(destination / "special_tokens_map.json", {"eos_token": END, "pad_token": END})
    _sentence_transformers(destination)
    write_safetensors(destination / "model.safetensors", _weights(seed, len(vocabulary)))


def _sentence_transformers(destination: Path) -> None:
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    write_json(destination / "modules.json", modules)
    write_json(destination / "sentence_bert_config.json", {"max_seq_length": 192, "do_lower_case": False})
    write_json(destination / "config_sentence_transformers.json", {"prompts": {"query": PROMPT}})
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    pooling = {
        "word_embedding_dimension": HIDDEN,
        **{f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes},
    }
    (destination / "1_Pooling").mkdir(exist_ok=True)
    write_json(destination / "1_Pooling" / "config.json", pooling)


def _config(model_type: str) -> Dict[str, Any]:
    vocabulary, _ = _vocabulary()
    return {
        "architectures": ["Qwen2Model"],
        "model_type": model_type,
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},  # what 5.x reads
        "sliding_window": None,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": False,
        "eos_token_id": vocabulary[END],
        "torch_dtype": "float32",
    }


def _vocabulary() -> Tuple[Dict[str, int], List[str]]:
    tokens = list(byte_alphabet())
    merges: List[str] = []
    for word in WORDS:
        left = word[0]
        for letter in word[1:]:
            if f"{left} {letter}" not in merges:
                merges.append(f"{left} {letter}")
                tokens.append(left + letter)
            left += letter
    tokens += [END, STARTED, ENDED]
    return {token: index for index, token in enumerate(tokens)}, merges


def _fast_tokenizer(vocabulary: Dict[str, int], merges: List[str], appends_end: bool) -> Dict[str, Any]:
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    end = {"SpecialToken": {"id": END, "type_id": 0}}
    ends = {
        "type": "TemplateProcessing",
        "single": [first, end],
        "pair": [first, end, second, end],
        "special_tokens": {END: {"id": END, "ids": [vocabulary[END]], "tokens": [END]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[token], "content": token, **flags} for token in (END, STARTED, ENDED)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": ends if appends_end else byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": {token: index for token, index in vocabulary.items() if "<|" not in token},
            "merges": merges,
        },
    }


def _weights(seed: int, vocabulary_size: int) -> Dict[str, Any]:
    weights = Weights(seed)
    weights.normal("embed_tokens.weight", vocabulary_size, HIDDEN, scale=1.0)
    for layer in range(LAYERS):
        prefix = f"layers.{layer}."
        weights.layer_norm(prefix + "input_layernorm", HIDDEN, bias=False)
        weights.linear(prefix + "self_attn.q_proj", HEADS * HEAD, HIDDEN)
        weights.linear(prefix + "self_attn.k_proj", KEYS * HEAD, HIDDEN)
        weights.linear(prefix + "self_attn.v_proj", KEYS * HEAD, HIDDEN)
        weights.linear(prefix + "self_attn.o_proj", HIDDEN, HEADS * HEAD, bias=False)
        weights.layer_norm(prefix + "post_attention_layernorm", HIDDEN, bias=False)
        weights.linear(prefix + "mlp.gate_proj", MIDDLE, HIDDEN, bias=False)
        weights.linear(prefix + "mlp.up_proj", MIDDLE, HIDDEN, bias=False)
        weights.linear(prefix + "mlp.down_proj", HIDDEN, MIDDLE, bias=False)
    weights.layer_norm("norm", HIDDEN, bias=False)
    return weights.arrays


OWN_CONFIG = """from transformers import PretrainedConfig, PreTrainedModel


class Qwen2Config(PretrainedConfig):
    model_type = "gte_qwen2"
"""

MODELING = '''"""A small Qwen2 with attention to both sides, complete in one file."""
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config
from transformers.modeling_outputs import BaseModelOutput


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.keys = config.num_attention_heads, config.num_key_value_heads
        self.size = config.hidden_size // self.heads
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.size)
        self.k_proj = nn.Linear(config.hidden_size, self.keys * self.size)
        self.v_proj = nn.Linear(config.hidden_size, self.keys * self.size)
        self.o_proj = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)

    def forward(self, x, allowed, cos, sin):
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, -1, self.size).transpose(1, 2)
            for part in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = (part.repeat_interleave(self.heads // self.keys, dim=1) for part in (k, v))
        scores = (q @ k.transpose(2, 3) / self.size**0.5).masked_fill(~allowed, torch.finfo(x.dtype).min)
        mixed = scores.softmax(-1, dtype=torch.float32).to(x.dtype) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


def turn(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), Mlp(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, allowed, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), allowed, cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2Model(PreTrainedModel):
    config_class = Qwen2Config
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def _init_weights(self, module):
        pass

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, input_ids, attention_mask=None, **unused):
        x = self.embed_tokens(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        size = self.config.hidden_size // self.config.num_attention_heads
        theta = getattr(self.config, "rope_theta", None) or self.config.rope_parameters["rope_theta"]
        steps = torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size
        angles = torch.outer(torch.arange(x.shape[1], device=x.device, dtype=torch.float32), theta**-steps)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        allowed = attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, allowed, cos, sin)
        return BaseModelOutput(last_hidden_state=self.norm(x))
'''

MASKED = '''"""The library's Qwen2, opened to both sides by a 4-D mask."""
import torch
from transformers import Qwen2Config, Qwen2Model


class BothSides(Qwen2Model):
    config_class = Qwen2Config

    def forward(self, input_ids, attention_mask=None, **rest):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        length = input_ids.shape[1]
        kept = attention_mask.bool()[:, None, None, :].expand(-1, 1, length, length)
        dtype = self.embed_tokens.weight.dtype
        additive = torch.zeros(kept.shape, dtype=dtype, device=input_ids.device)
        additive = additive.masked_fill(~kept, torch.finfo(dtype).min)
        positions = torch.arange(length, device=input_ids.device)[None]
        return super().forward(input_ids=input_ids, attention_mask=additive, position_ids=positions, use_cache=False)
'''

STYLES: Dict[str, Callable[[Path, int], None]] = {
    "gte-qwen2": make_gte,
    "gte-qwen2-own-config": make_gte_own_config,
    "gte-qwen2-4d-mask": make_gte_mask,
    "last-token-qwen2": make_last_token,
}
