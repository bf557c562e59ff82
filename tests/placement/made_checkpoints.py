"""Checkpoints that are all header: the weights of a 13 GB model as a sparse file of no size."""

import json
import math
import struct
from pathlib import Path

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1}


def write_safetensors(path: Path, tensors):
    """`tensors`: name -> (dtype, shape)."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        stream.truncate(8 + len(raw) + offset)


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 4096, "torch_dtype": "float16",
}  # fmt: skip


def llama_tensors(dtype="F16", config=LLAMA):
    """The tensors of a Llama, in the order in which safetensors keeps them: by name."""
    hidden, wide, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    tensors = {"lm_head.weight": (words, hidden), "model.embed_tokens.weight": (words, hidden)}
    for i in range(config["num_hidden_layers"]):
        tensors |= {
            f"model.layers.{i}.{part}.weight": size
            for part, size in {
                "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
                "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
                "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
                "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
            }.items()
        }  # fmt: skip
    tensors["model.norm.weight"] = (hidden,)
    return {name: (dtype, tensors[name]) for name in sorted(tensors)}


def write_gguf(path: Path, config=LLAMA, *, cut=0):
    """A GGUF file of version 3 that is all header: the shape of `config`, its tensors quantised (type 3 is Q4_1)."""

    def text(value):
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    values = {
        "block_count": config["num_hidden_layers"], "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"], "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"], "context_length": config["max_position_embeddings"],
    }  # fmt: skip
    entries = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    entries += [text(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in values.items()]
    words = [text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")]
    words += [text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + b"\0" * 8]
    names = {"lm_head": "output", "model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    tensors = []
    for name, (_, shape) in llama_tensors(config=config).items():
        stem = name.removesuffix(".weight")
        stem = names.get(stem, stem.replace("model.layers.", "blk."))
        sizes = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        tensors.append(
            text(f"{stem}.weight") + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", 3, 0)
        )
    body = b"".join([*entries, *words, *tensors])
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries) + len(words)) + body
    path.write_bytes(raw[: len(raw) - cut])
