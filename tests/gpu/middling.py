"""Middle-sized random checkpoints: the tiny ones' tokenizers and layouts with more and wider layers.

Weights are drawn once for a matrix and repeated, since memory and time do not depend on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.worker.tiny import load_styles, write_safetensors

MAKERS = Path(__file__).parents[2] / "workers" / "tiny_checkpoints"


def tiny(makers: str, style: str, folder: Path) -> Path:
    """A tiny checkpoint, made in `folder`."""
    folder.mkdir(parents=True)
    load_styles(MAKERS / f"{makers}.py")[style](folder, 0)
    return folder


def llama(folder: Path, *, hidden: int = 2048, layers: int = 16, positions: int = 2048) -> Path:
    """A Llama of some 800 million parameters in float16 (1.6 GB), tied embeddings."""
    tiny("llama", "llama", folder)
    config = json.loads((folder / "config.json").read_text())
    inner = hidden * 11 // 4
    config.update(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=16,
        head_dim=hidden // 16, intermediate_size=inner, max_position_embeddings=positions,
        torch_dtype="float16", dtype="float16",
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    arrays: dict[str, Any] = {"model.embed_tokens.weight": drawn(config["vocab_size"], hidden)}
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        for part in "qkvo":
            arrays[f"{stem}self_attn.{part}_proj.weight"] = drawn(hidden, hidden)
        for part in ("gate", "up"):
            arrays[f"{stem}mlp.{part}_proj.weight"] = drawn(inner, hidden)
        arrays[f"{stem}mlp.down_proj.weight"] = drawn(hidden, inner)
        for part in ("input", "post_attention"):
            arrays[f"{stem}{part}_layernorm.weight"] = np.ones(hidden, np.float16)
    arrays["model.norm.weight"] = np.ones(hidden, np.float16)
    write_safetensors(folder / "model.safetensors", arrays)
    return folder


def bert(folder: Path, *, hidden: int = 1024, layers: int = 24, positions: int = 512) -> Path:
    """A BERT-large in sentence-transformers' layout, some 300 million parameters in float32 (1.2 GB)."""
    tiny("sentence_bert", "sentence-bert", folder)
    config = json.loads((folder / "config.json").read_text())
    inner = 4 * hidden
    config.update(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=inner,
        max_position_embeddings=positions,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": positions, "do_lower_case": False})
    )
    arrays: dict[str, Any] = {
        "embeddings.word_embeddings.weight": drawn(config["vocab_size"], hidden, np.float32),
        "embeddings.position_embeddings.weight": drawn(positions, hidden, np.float32),
        "embeddings.token_type_embeddings.weight": drawn(
            config.get("type_vocab_size", 2), hidden, np.float32
        ),
        **norm("embeddings.LayerNorm", hidden),
        **linear("pooler.dense", hidden, hidden),
    }
    for layer in range(layers):
        stem = f"encoder.layer.{layer}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            arrays.update(linear(f"{stem}attention.{part}", hidden, hidden))
        arrays.update(linear(f"{stem}intermediate.dense", inner, hidden))
        arrays.update(linear(f"{stem}output.dense", hidden, inner))
        arrays.update(norm(f"{stem}attention.output.LayerNorm", hidden))
        arrays.update(norm(f"{stem}output.LayerNorm", hidden))
    write_safetensors(folder / "model.safetensors", arrays)
    return folder


def drawn(rows: int, columns: int, dtype: Any = np.float16) -> np.ndarray:
    """A matrix of small random numbers, (rows, columns)."""
    row = np.random.default_rng(rows * 31 + columns).normal(0, 0.02, columns + rows).astype(dtype)
    return np.stack([row[start : start + columns] for start in range(rows)])


def linear(name: str, out: int, into: int) -> dict[str, np.ndarray]:
    """Weight and bias, float32."""
    return {f"{name}.weight": drawn(out, into, np.float32), f"{name}.bias": np.zeros(out, np.float32)}


def norm(name: str, width: int) -> dict[str, np.ndarray]:
    """Weight and bias of a LayerNorm, float32."""
    return {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}
