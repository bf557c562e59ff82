"""Tiny XLM-RoBERTas in the layouts of BAAI/bge-m3 and BAAI/bge-reranker-v2-m3: a Unigram tokenizer, heads in .pt files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from orchestrator.worker.tiny import Weights, write_json, write_safetensors
from orchestrator.worker.torch_file import write_torch_file

HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 32, 2, 4, 64, 130  # positions begin after the padding's: 128 tokens
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = (
    "What",
    "what",
    "A",
    "is",
    "water",
    "a",
    "cat",
    "answers",
    "document",
    "about",
    "energy",
    "at",
    "length",
    "red",
    "retrieve",
)


def make_bge_m3(destination: Path, seed: int = 0) -> None:
    """Dense, lexical and ColBERT vectors; weights in pytorch_model.bin, as published."""
    pieces = _write_common(destination, "XLMRobertaModel")
    write_torch_file(destination / "pytorch_model.bin", _encoder(Weights(seed), len(pieces)).arrays)
    for number, (name, rows) in enumerate((("colbert_linear", HIDDEN), ("sparse_linear", 1)), start=1):
        head = Weights(seed + number)
        head.linear(name, rows, HIDDEN)
        arrays = {key.rpartition(".")[2]: array for key, array in head.arrays.items()}
        write_torch_file(destination / f"{name}.pt", arrays)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    write_json(destination / "modules.json", modules)
    write_json(destination / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    (destination / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": HIDDEN,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    write_json(destination / "1_Pooling" / "config.json", pooling)


def make_bge_reranker(destination: Path, seed: int = 0) -> None:
    """A classifier with one label: how well a passage answers a query."""
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    pieces = _write_common(destination, "XLMRobertaForSequenceClassification", **labels)
    weights = _encoder(Weights(seed), len(pieces), prefix="roberta.")
    weights.linear("classifier.dense", HIDDEN, HIDDEN)
    weights.linear("classifier.out_proj", 1, HIDDEN)
    write_safetensors(destination / "model.safetensors", weights.arrays)


def _write_common(destination: Path, architecture: str, **more: Any) -> List[Tuple[str, float]]:
    pieces = _pieces()
    config = {
        "architectures": [architecture],
        "model_type": "xlm-roberta",
        "vocab_size": len(pieces),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        "dtype": "float32",
        **more,
    }
    write_json(destination / "config.json", config)
    special = {
        "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "mask_token": "<mask>",
    }  # fmt: skip
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": POSITIONS - 2, **special}
    write_json(destination / "tokenizer_config.json", settings)
    write_json(destination / "special_tokens_map.json", special)
    write_json(destination / "tokenizer.json", _fast_tokenizer(pieces))
    return pieces


def _pieces() -> List[Tuple[str, float]]:
    """Special tokens, whole words with their space, letters, and the mask last, as XLM-R has them."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [("▁" + word, -3.0 - index / 100) for index, word in enumerate(WORDS)]
    pieces += [("▁", -6.0), *((text, -8.0) for text in (*letters, ".", ",", "?"))]
    return [*pieces, ("<mask>", 0.0)]


def _fast_tokenizer(pieces: List[Tuple[str, float]]) -> Dict[str, Any]:
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    begin, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    metaspace = {
        "type": "Metaspace",
        "replacement": "▁",
        "add_prefix_space": True,
        "prepend_scheme": "always",
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in (*SPECIAL, "<mask>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first, end],
            "pair": [begin, first, end, end, second, end],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in ("<s>", "</s>")
            },
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": ids["<unk>"], "vocab": [list(piece) for piece in pieces]},
    }


def _encoder(weights: Weights, vocabulary: int, prefix: str = "") -> Weights:
    for name, rows in (("word", vocabulary), ("position", POSITIONS), ("token_type", 1)):
        weights.normal(f"{prefix}embeddings.{name}_embeddings.weight", rows, HIDDEN)
    weights.layer_norm(prefix + "embeddings.LayerNorm", HIDDEN)
    for layer in range(LAYERS):
        place = f"{prefix}encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            weights.linear(place + f"attention.self.{name}", HIDDEN, HIDDEN)
        weights.linear(place + "attention.output.dense", HIDDEN, HIDDEN)
        weights.layer_norm(place + "attention.output.LayerNorm", HIDDEN)
        weights.linear(place + "intermediate.dense", INNER, HIDDEN)
        weights.linear(place + "output.dense", HIDDEN, INNER)
        weights.layer_norm(place + "output.LayerNorm", HIDDEN)
    if not prefix:
        weights.linear("pooler.dense", HIDDEN, HIDDEN)
    return weights


STYLES: Dict[str, Callable[[Path, int], None]] = {
    "bge-m3": make_bge_m3,
    "bge-reranker-v2-m3": make_bge_reranker,
}
