"""GGUF headers: the tensors' names and counts, and the model's numbers as the config.json that they stand for.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Little-endian; versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.placement.files import Tensor

__all__ = ["config_of_gguf", "read_gguf"]

SIMPLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST = 10_000_000  # entries of an array, bytes of a string, tensors: more is no header
KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "expert_used_count": "num_experts_per_tok",
    "vocab_size": "vocab_size",
}
NAMES = (
    ("blk.", "model.layers."),
    ("token_embd.", "model.embed_tokens."),
    ("output_norm.", "model.norm."),
    ("output.", "lm_head."),
)
"""ggml's names and those of the model that transformers makes of the file."""


def read_gguf(file: Path) -> Iterator[Tensor]:
    """The tensors of a .gguf as they are loaded: it is converted, so quantised ones become floating numbers.

    Raises:
        ValueError: not a GGUF file, or cut short.
    """
    _, tensors = _header(file)
    for name, shape in tensors:
        count = math.prod(shape)
        yield Tensor(_translated(name), "float32", count, 4 * count, shape)


def config_of_gguf(file: Path) -> dict[str, Any]:
    """What its config.json would say of its shape; {} where the header cannot be read."""
    try:
        values, tensors = _header(file)
    except (OSError, ValueError):
        return {}
    kind = str(values.get("general.architecture", ""))
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": [f"{kind.title()}ForCausalLM"],
        "dtype": "float32",
    }
    for key, name in KEYS.items():
        value = values.get(f"{kind}.{key}")
        if isinstance(value, int):
            config[name] = value
    shapes = dict(tensors)
    if "token_embd.weight" in shapes:
        config["vocab_size"] = shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    return config


def _translated(name: str) -> str:
    return next((ours + name[len(theirs) :] for theirs, ours in NAMES if name.startswith(theirs)), name)


def _header(file: Path) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...]]]]:
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF" or _number(stream, "I") not in (2, 3):
                raise ValueError("not a GGUF file of version 2 or 3")
            tensors, entries = _number(stream, "Q"), _number(stream, "Q")
            if max(tensors, entries) > MOST:
                raise ValueError("not a GGUF header")
            values = {}
            for _ in range(entries):
                key = _string(stream)
                values[key] = _value(stream, _number(stream, "I"))
            return values, [_tensor(stream) for _ in range(tensors)]
    except struct.error:
        raise ValueError("a GGUF file that is cut short") from None


def _tensor(stream: BinaryIO) -> tuple[str, tuple[int, ...]]:
    name = _string(stream)
    dimensions = _number(stream, "I")
    if dimensions > 8:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = tuple(_number(stream, "Q") for _ in range(dimensions))
    _number(stream, "I"), _number(stream, "Q")  # its type, and where its data begins
    return name, shape[::-1]


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(stream)
    if kind != ARRAY:
        return _number(stream, SIMPLE.get(kind, ""))
    of, length = _number(stream, "I"), _number(stream, "Q")
    if length > MOST:
        raise ValueError("an array that is too long")
    if of in SIMPLE:
        stream.seek(length * struct.calcsize(SIMPLE[of]), 1)
    else:
        for _ in range(length):
            _value(stream, of)
    return None  # no array matters here


def _string(stream: BinaryIO) -> str:
    length = _number(stream, "Q")
    if length > MOST:
        raise ValueError("a string that is too long")
    return stream.read(length).decode("utf-8", "replace")


def _number(stream: BinaryIO, form: str) -> Any:
    if not form:
        raise ValueError("a value of an unknown type")
    size = struct.calcsize("<" + form)
    return struct.unpack("<" + form, stream.read(size))[0]
