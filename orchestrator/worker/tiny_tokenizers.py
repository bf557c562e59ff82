"""Tokenizers for tiny checkpoints, learned from a few sentences without any tokenizer library.

SentencePiece models with byte fallback as Llama, Yi and Gemma have them (a protobuf message, written by hand), and
tokenizer.json files as Gemma and Llama 3 have them.
"""

from __future__ import annotations

import struct
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from orchestrator.worker.tiny import byte_alphabet, write_json

__all__ = ["FIRST_BYTE", "TOKENIZERS"]

SENTENCES = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. What is in the picture? What do you see in this image? Describe the image "
    "in detail. There is a cat on the table. The dog is near the tree and the man is standing in the street. How many "
    "people are there? What colour is the boat on the water? Answer the questions with one word."
)
NORMAL, UNKNOWN, CONTROL, DEFINED, BYTE = 1, 2, 3, 4, 6  # SentencePiece's kinds of pieces

Piece = Tuple[str, float, int]

FIRST_BYTE = {"llama": 3, "mixtral": 3, "yi": 8, "gemma": 6, "llama-3": 0}
"""The id of the first of 256 byte tokens, by tokenizer."""


def learn_merges(count: int) -> Tuple[List[str], List[Tuple[str, str]]]:
    """Characters and byte-pair merges of our sentences, words with their space (as "▁") in front."""
    words = Counter(("▁" + word) for word in SENTENCES.split())
    split = {word: list(word) for word in words}
    merges: List[Tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[Tuple[str, str]] = Counter()
        for word, number in words.items():
            for pair in zip(split[word], split[word][1:]):
                pairs[pair] += number
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, symbols in split.items():
            joined: List[str] = []
            for symbol in symbols:
                if joined and (joined[-1], symbol) == best:
                    joined[-1] += symbol
                else:
                    joined.append(symbol)
            split[word] = joined
    return sorted({letter for word in words for letter in word}), merges


def sentencepiece(
    first: Sequence[Piece], *, bos: int, eos: int, unk: int, pad: int, dummy_prefix: bool
) -> Tuple[bytes, List[Piece]]:
    """A SentencePiece BPE model with byte fallback: its file, and its pieces."""
    letters, merges = learn_merges(120)
    pieces = [*first, *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))]
    pieces += [(left + right, -float(rank), NORMAL) for rank, (left, right) in enumerate(merges)]
    known = {piece for piece, _, _ in pieces}
    pieces += [
        (letter, -float(len(merges) + rank), NORMAL)
        for rank, letter in enumerate(letters)
        if letter not in known
    ]
    body = b"".join(
        field(1, field(1, text.encode()) + key(2, 5) + struct.pack("<f", score) + key(3, 0) + varint(kind))
        for text, score, kind in pieces
    )
    numbers = [(3, 2), (4, len(pieces)), (35, 1), (40, unk), (41, bos), (42, eos), (43, pad)]
    trainer = b"".join(key(number, 0) + varint(value) for number, value in numbers)
    normalizer = field(1, b"identity") + b"".join(
        key(number, 0) + varint(value) for number, value in ((3, int(dummy_prefix)), (4, 0), (5, 1))
    )
    return body + field(2, trainer) + field(3, normalizer), pieces


def key(number: int, kind: int) -> bytes:
    """What stands before a field of a protobuf message: its number and the kind of its value."""
    return varint(number << 3 | kind)


def varint(value: int) -> bytes:
    """protobuf's integers; negative ones as 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes."""
    return key(number, 2) + varint(len(data)) + data


def llama_tokenizer(destination: Path, *, mixtral: bool = False) -> int:
    """Vicuna's and Mixtral's: tokenizer.model only."""
    first = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    model, pieces = sentencepiece(first, bos=1, eos=2, unk=0, pad=-1, dummy_prefix=True)
    (destination / "tokenizer.model").write_bytes(model)
    settings = {"add_bos_token": True, "add_eos_token": False, "legacy": mixtral}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    write_tokenizer_config(
        destination, "LlamaTokenizer", special, {0: "<unk>", 1: "<s>", 2: "</s>"}, settings
    )
    return len(pieces)


def yi_tokenizer(destination: Path) -> int:
    """Nous-Hermes-2-Yi's: ChatML's marks are ids 6 and 7 of the vocabulary, and no BOS is put."""
    names = [
        "<unk>",
        "<|startoftext|>",
        "<|endoftext|>",
        "<|Human|>",
        "<|Assistant|>",
        "<|System|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    first = [
        (name, 0.0, UNKNOWN if index == 0 else CONTROL if index < 3 else DEFINED)
        for index, name in enumerate(names)
    ]
    model, pieces = sentencepiece(first, bos=1, eos=2, unk=0, pad=-1, dummy_prefix=False)
    (destination / "tokenizer.model").write_bytes(model)
    special = {"bos_token": names[1], "eos_token": names[7], "unk_token": names[0], "pad_token": names[0]}
    added = {0: names[0], 1: names[1], 2: names[2], 6: names[6], 7: names[7]}
    write_tokenizer_config(
        destination,
        "LlamaTokenizer",
        special,
        added,
        {"add_bos_token": False, "add_eos_token": False, "legacy": True},
    )
    return len(pieces)


def gemma_tokenizer(destination: Path) -> int:
    """Gemma's: tokenizer.model and tokenizer.json."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    first = [
        (name, 0.0, (CONTROL, CONTROL, CONTROL, UNKNOWN, DEFINED, DEFINED)[index])
        for index, name in enumerate(names)
    ]
    model, pieces = sentencepiece(first, bos=2, eos=1, unk=3, pad=0, dummy_prefix=False)
    (destination / "tokenizer.model").write_bytes(model)
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    bpe = bpe_model(
        vocabulary,
        [f"{left} {right}" for left, right in learn_merges(120)[1]],
        unk_token="<unk>",  # noqa: S106
        fuse_unk=True,
        byte_fallback=True,
    )
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    write_fast_tokenizer(
        destination, bpe, names, "<bos>", 2, decoder,
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, pre_tokenizer=None,
    )  # fmt: skip
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_tokenizer_config(
        destination,
        "GemmaTokenizer",
        special,
        dict(enumerate(names)),
        {"add_bos_token": True, "add_eos_token": False},
    )
    write_json(
        destination / "generation_config.json", {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    )
    return len(pieces)


def llama_3_tokenizer(destination: Path) -> int:
    """Llama-3's: byte-level BPE in tokenizer.json only."""
    alphabet = byte_alphabet()
    space = alphabet[ord(" ")]
    merges = [(left.replace("▁", space), right.replace("▁", space)) for left, right in learn_merges(120)[1]]
    vocabulary = {
        token: index for index, token in enumerate(dict.fromkeys([*alphabet, *(a + b for a, b in merges)]))
    }
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = bpe_model(vocabulary, [f"{left} {right}" for left, right in merges])
    write_fast_tokenizer(
        destination,
        bpe,
        names,
        names[0],
        len(vocabulary),
        byte_level,
        normalizer=None,
        pre_tokenizer=byte_level,
    )
    special = {"bos_token": names[0], "eos_token": names[1], "pad_token": names[1]}
    added = {len(vocabulary) + index: name for index, name in enumerate(names)}
    write_tokenizer_config(
        destination,
        "PreTrainedTokenizerFast",
        special,
        added,
        {"model_input_names": ["input_ids", "attention_mask"]},
    )
    return len(vocabulary) + len(names)


TOKENIZERS: Dict[str, Callable[[Path], int]] = {
    "llama": llama_tokenizer,
    "mixtral": partial(llama_tokenizer, mixtral=True),
    "yi": yi_tokenizer,
    "gemma": gemma_tokenizer,
    "llama-3": llama_3_tokenizer,
}


def added_token(name: str) -> Dict[str, Any]:
    """A special token as both JSON files describe it, without its id."""
    return {
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def write_tokenizer_config(
    destination: Path,
    name: str,
    special: Mapping[str, str],
    added: Mapping[int, str],
    settings: Mapping[str, Any],
) -> None:
    """tokenizer_config.json and special_tokens_map.json; `name` is the tokenizer's class, `added` tokens by their id."""
    decoder = {str(index): added_token(token) for index, token in added.items()}
    common = {
        "tokenizer_class": name,
        "model_max_length": 2048,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    write_json(
        destination / "tokenizer_config.json",
        {**settings, **common, **special, "added_tokens_decoder": decoder},
    )
    write_json(destination / "special_tokens_map.json", dict(special))


def bpe_model(vocabulary: Mapping[str, int], merges: Sequence[str], **flags: Any) -> Dict[str, Any]:
    """The `model` of a tokenizer.json: ids by token, merges as "a b"."""
    defaults = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}  # fmt: skip
    return {**defaults, **flags, "vocab": dict(vocabulary), "merges": list(merges)}


def write_fast_tokenizer(
    destination: Path,
    bpe: Mapping[str, Any],
    names: Sequence[str],
    bos: str,
    first: int,
    decoder: Any,
    *,
    normalizer: Any,
    pre_tokenizer: Any,
) -> None:
    """tokenizer.json; `names` are the special tokens, with ids from the vocabulary or else from `first` on."""
    ids = {name: bpe["vocab"].get(name, first + index) for index, name in enumerate(names)}
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }
    write_json(
        destination / "tokenizer.json",
        {"version": "1.0", "truncation": None, "padding": None,
         "added_tokens": [{"id": ids[name], **added_token(name)} for name in names],
         "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": template, "decoder": decoder,
         "model": dict(bpe)},
    )  # fmt: skip
