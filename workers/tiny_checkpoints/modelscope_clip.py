"""Tiny checkpoints as ModelScope publishes them: Chinese CLIP pairs (damo/multi-modal_clip-vit-*_zh), a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np

from orchestrator.worker.tiny import Weights, write_json
from orchestrator.worker.torch_file import write_torch_file

TEXT, LAYERS, POSITIONS, TYPES = 32, 2, 512, 2
CHARACTERS = "一上个不中主了人他们你出到午口可各向在坐大女好子学家小就年得心急成我房手把按政整日早时是晚有木样橘次河法海消清火灯然王现生用白皮皇着神种立第米红纯经网老股花苏行谁走跑身车里金阳院雨高黄黑鱼鸟鸡鹰黑猫狗沙发天蓝方块图片的照卡丘杰尼龟妙蛙龙,。!?"


def make_base(destination: Path, seed: int = 0) -> None:
    """As the base pair: 16-pixel patches, 24 dimensions, 32x32 pixels."""
    _make(destination, seed, width=64, dimensions=24, image=32, patch=16)


def make_large(destination: Path, seed: int = 0) -> None:
    """As the large pair: wider, 14-pixel patches, 40 dimensions, 42x42 pixels."""
    _make(destination, seed + 1, width=128, dimensions=40, image=42, patch=14)


def make_text_classification(destination: Path, seed: int = 0) -> None:
    """A sentiment classifier in the layout of the library's text models: BERT, two named labels."""
    vocabulary = _vocabulary()
    (destination / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    labels = {"negative": 0, "positive": 1}
    write_json(destination / "label_mapping.json", labels)
    configuration = {
        "framework": "pytorch",
        "task": "text-classification",
        "preprocessor": {"type": "sen-cls-tokenizer", "first_sequence": "sentence"},
        "model": {"type": "bert"},
        "pipeline": {"type": "sentiment-classification"},
    }
    write_json(destination / "configuration.json", configuration)
    config = {
        name[len("text_") :]: value
        for name, value in _text_config(len(vocabulary)).items()
        if "text_" in name
    }
    more = {
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "num_labels": 2,
        "label2id": labels,
        "pad_token_id": 0,
    }
    write_json(
        destination / "config.json", {**config, **more, "id2label": {"0": "negative", "1": "positive"}}
    )
    weights = Weights(seed)
    _text(weights, len(vocabulary))
    weights.linear("classifier", 2, TEXT)
    write_torch_file(destination / "pytorch_model.bin", weights.arrays)


def _make(destination: Path, seed: int, *, width: int, dimensions: int, image: int, patch: int) -> None:
    vocabulary = _vocabulary()
    (destination / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    configuration = {
        "framework": "pytorch",
        "task": "multi-modal-embedding",
        "model": {"type": "clip-multi-modal-embedding"},
        "pipeline": {"type": "multi-modal-embedding"},
    }
    write_json(destination / "configuration.json", configuration)
    vision = {
        "embed_dim": dimensions,
        "image_resolution": image,
        "vision_layers": LAYERS,
        "vision_width": width,  # a multiple of 64: the library makes width // 64 heads
        "vision_patch_size": patch,
    }
    write_json(destination / "vision_model_config.json", vision)
    write_json(destination / "text_model_config.json", _text_config(len(vocabulary)))
    weights = Weights(seed)
    _vision(weights, width, dimensions, (image // patch) ** 2 + 1, patch)
    _text(weights, len(vocabulary))
    weights.normal("text_projection", TEXT, dimensions)
    arrays = {"module." + name: _half(name, array) for name, array in weights.arrays.items()}
    arrays["module.logit_scale"] = np.asarray(np.log(1 / 0.07), np.float32)
    write_torch_file(destination / "pytorch_model.bin", arrays, nested_under="state_dict")


def _half(name: str, array: np.ndarray) -> np.ndarray:
    """Published weights are halves, but for the layer norms and embeddings of the picture tower."""
    keeps = "ln_" in name or name in ("visual.class_embedding", "visual.positional_embedding")
    return array if keeps else array.astype(np.float16)


def _text_config(vocabulary_size: int) -> Dict[str, Any]:
    return {
        "vocab_size": vocabulary_size,
        "text_attention_probs_dropout_prob": 0.1,
        "text_hidden_act": "gelu",
        "text_hidden_dropout_prob": 0.1,
        "text_hidden_size": TEXT,
        "text_initializer_range": 0.02,
        "text_intermediate_size": 2 * TEXT,
        "text_max_position_embeddings": POSITIONS,
        "text_num_attention_heads": 4,
        "text_num_hidden_layers": LAYERS,
        "text_type_vocab_size": TYPES,
    }


def _vision(weights: Weights, width: int, dimensions: int, positions: int, patch: int) -> None:
    weights.normal("visual.class_embedding", width, scale=1.0)
    weights.normal("visual.positional_embedding", positions, width, scale=0.3)
    weights.normal("visual.proj", width, dimensions)
    weights.normal("visual.conv1.weight", width, 3, patch, patch, scale=0.1)
    weights.layer_norm("visual.ln_pre", width)
    for layer in range(LAYERS):
        prefix = f"visual.transformer.resblocks.{layer}."
        weights.normal(prefix + "attn.in_proj_weight", 3 * width, width)
        weights.normal(prefix + "attn.in_proj_bias", 3 * width, scale=0.1)
        weights.linear(prefix + "attn.out_proj", width, width)
        weights.layer_norm(prefix + "ln_1", width)
        weights.linear(prefix + "mlp.c_fc", 4 * width, width)
        weights.linear(prefix + "mlp.c_proj", width, 4 * width)
        weights.layer_norm(prefix + "ln_2", width)
    weights.layer_norm("visual.ln_post", width)


def _text(weights: Weights, vocabulary_size: int) -> None:
    weights.normal("bert.embeddings.word_embeddings.weight", vocabulary_size, TEXT, scale=1.0)
    weights.normal("bert.embeddings.position_embeddings.weight", POSITIONS, TEXT, scale=0.3)
    weights.normal("bert.embeddings.token_type_embeddings.weight", TYPES, TEXT, scale=0.5)
    weights.layer_norm("bert.embeddings.LayerNorm", TEXT)
    weights.linear("bert.pooler.dense", TEXT, TEXT)
    for layer in range(LAYERS):
        prefix = f"bert.encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            weights.linear(prefix + "attention.self." + part, TEXT, TEXT)
        weights.linear(prefix + "attention.output.dense", TEXT, TEXT)
        weights.layer_norm(prefix + "attention.output.LayerNorm", TEXT)
        weights.linear(prefix + "intermediate.dense", 2 * TEXT, TEXT)
        weights.linear(prefix + "output.dense", TEXT, 2 * TEXT)
        weights.layer_norm(prefix + "output.LayerNorm", TEXT)


def _vocabulary() -> List[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *("##" + letter for letter in letters)]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(CHARACTERS), *pieces]


STYLES: Dict[str, Callable[[Path, int], None]] = {
    "modelscope-clip-base": make_base,
    "modelscope-clip-large": make_large,
    "modelscope-text-classification": make_text_classification,
}
