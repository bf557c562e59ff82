"""A tiny BERT in the layout that sentence-transformers publishes: transformer, tokenizer, modules.json, 1_Pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

from orchestrator.worker.tiny import Weights, write_json, write_safetensors

HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 32, 2, 4, 64, 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "the", "cat", "dog", "is", "on", "red", "blue", "sat", "mat", "market", "fell", ".", ",", "!")


def make_mean(destination: Path, seed: int = 0) -> None:
    """Mean pooling, at most 32 tokens."""
    make(destination, seed, "pooling_mode_mean_tokens")


def make_cls(destination: Path, seed: int = 0) -> None:
    """The same with the first token's state."""
    make(destination, seed, "pooling_mode_cls_token")


def make(destination: Path, seed: int, pooling: str) -> None:
    """The files of one checkpoint: everything that the sentence-transformers library would read."""
    vocabulary = _vocabulary()
    write_json(destination / "config.json", _config(len(vocabulary)))
    write_safetensors(destination / "model.safetensors", _weights(len(vocabulary), seed))
    (destination / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    write_json(destination / "tokenizer.json", _fast_tokenizer(vocabulary))
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": POSITIONS,
        **names,
    }
    write_json(destination / "tokenizer_config.json", settings)
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (name, path, kind) in enumerate(kinds)
    ]
    write_json(destination / "modules.json", modules)
    write_json(destination / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    (destination / "1_Pooling").mkdir()
    modes = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens")
    write_json(
        destination / "1_Pooling" / "config.json",
        {"word_embedding_dimension": HIDDEN, **{mode: mode == pooling for mode in modes}},
    )


def _vocabulary() -> List[str]:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    single = [letter for letter in letters if letter not in WORDS]
    return [*SPECIAL, *WORDS, *single, *("##" + letter for letter in letters)]


def _config(vocabulary: int) -> Dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def _weights(vocabulary: int, seed: int) -> Dict[str, Any]:
    weights = Weights(seed)
    for name, rows in (("word", vocabulary), ("position", POSITIONS), ("token_type", 2)):
        weights.normal(f"embeddings.{name}_embeddings.weight", rows, HIDDEN)
    weights.layer_norm("embeddings.LayerNorm", HIDDEN)
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            weights.linear(prefix + f"attention.self.{name}", HIDDEN, HIDDEN)
        weights.linear(prefix + "attention.output.dense", HIDDEN, HIDDEN)
        weights.layer_norm(prefix + "attention.output.LayerNorm", HIDDEN)
        weights.linear(prefix + "intermediate.dense", INNER, HIDDEN)
        weights.linear(prefix + "output.dense", HIDDEN, INNER)
        weights.layer_norm(prefix + "output.LayerNorm", HIDDEN)
    weights.linear("pooler.dense", HIDDEN, HIDDEN)
    return weights.arrays


def _fast_tokenizer(vocabulary: List[str]) -> Dict[str, Any]:
    ids = {token: index for index, token in enumerate(vocabulary)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in SPECIAL],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", ids["[SEP]"]],
            "cls": ["[CLS]", ids["[CLS]"]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }


STYLES: Dict[str, Callable[[Path, int], None]] = {"sentence-bert": make_mean, "sentence-bert-cls": make_cls}
