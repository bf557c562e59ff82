"""Tiny BERT classifiers in the layout of textattack/bert-base-uncased-MNLI, with unnamed and with named labels."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, Callable, Dict, List

from orchestrator.worker.tiny import Weights, write_json, write_safetensors

HIDDEN, LAYERS, HEADS, POSITIONS = 32, 2, 4, 128
WORDS = (
    "a about animal animals art bird car cat dog example fast food football in is it money movie music of on photo plays "
    "politics red room science sits sport stock text that the this travel water weather with"
)


def make_mnli(destination: Path, seed: int = 0, *, named: bool = False) -> None:
    """BertForSequenceClassification of 3 labels; unnamed (LABEL_0…) as published, where index 1 is entailment."""
    weights = Weights(seed)
    config = _bert(destination, weights, "bert.")
    weights.linear("bert.pooler.dense", HIDDEN, HIDDEN)
    weights.linear("classifier", 3, HIDDEN)
    names = ("contradiction", "entailment", "neutral") if named else ("LABEL_0", "LABEL_1", "LABEL_2")
    labels = {
        "architectures": ["BertForSequenceClassification"],
        "finetuning_task": "mnli",
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    write_json(destination / "config.json", {**config, **labels})
    write_safetensors(destination / "model.safetensors", weights.arrays)


def make_named_mnli(destination: Path, seed: int = 0) -> None:
    """The same weights with named labels."""
    make_mnli(destination, seed, named=True)


def _bert(destination: Path, weights: Weights, prefix: str) -> Dict[str, Any]:
    """Write the tokenizer, fill `weights` with the encoder and give config.json's common part."""
    vocabulary = _vocabulary()
    (destination / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    special = {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    write_json(destination / "special_tokens_map.json", special)
    settings = {
        "do_lower_case": True,
        "model_max_length": POSITIONS,
        "tokenizer_class": "BertTokenizer",
        **special,
    }
    write_json(destination / "tokenizer_config.json", settings)
    weights.normal(prefix + "embeddings.word_embeddings.weight", len(vocabulary), HIDDEN, scale=1.0)
    weights.normal(prefix + "embeddings.position_embeddings.weight", POSITIONS, HIDDEN, scale=0.3)
    weights.normal(prefix + "embeddings.token_type_embeddings.weight", 2, HIDDEN, scale=0.5)
    weights.layer_norm(prefix + "embeddings.LayerNorm", HIDDEN)
    for layer in range(LAYERS):
        _layer(weights, f"{prefix}encoder.layer.{layer}.")
    return {
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * HIDDEN,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def _layer(weights: Weights, prefix: str) -> None:
    for part in ("query", "key", "value"):
        weights.linear(prefix + "attention.self." + part, HIDDEN, HIDDEN)
    weights.linear(prefix + "attention.output.dense", HIDDEN, HIDDEN)
    weights.layer_norm(prefix + "attention.output.LayerNorm", HIDDEN)
    weights.linear(prefix + "intermediate.dense", 2 * HIDDEN, HIDDEN)
    weights.linear(prefix + "output.dense", HIDDEN, 2 * HIDDEN)
    weights.layer_norm(prefix + "output.LayerNorm", HIDDEN)


def _vocabulary() -> List[str]:
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *("##" + letter for letter in letters), *".,!?'-"]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *(p for p in pieces if p != "a")]


STYLES: Dict[str, Callable[[Path, int], None]] = {
    "bert-mnli": make_mnli,
    "bert-mnli-named": make_named_mnli,
}
