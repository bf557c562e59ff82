"""The checkpoint's tokenizer, as the original code makes it, and text that comes out of it piece by piece."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Mapping, Sequence

from .places import read_json

__all__ = ["answer_text", "load_tokenizer", "stop_ids", "text_pieces"]

PATCH_TOKEN, START_TOKEN, END_TOKEN = "<im_patch>", "<im_start>", "<im_end>"
END_OF_TURN = "<|eot_id|>"  # Llama-3's, which is not its EOS
SLOW = ("llama", "mistral")  # language models whose tokenizer the original code loads with use_fast=False
NAMES = {"gemma": "GemmaTokenizer"}


def load_tokenizer(folder: Path, variant: str, config: Mapping[str, Any]) -> Any:
    """The tokenizer with the tokens that config.json asks for.

    `mm_use_im_patch_token` counts as true when it is missing. The class is tokenizer_config.json's; a name that this
    version of transformers does not know gives way to tokenizer.json. FileNotFoundError where there is no tokenizer.
    """
    tokenizer = tokenizer_class(folder, variant).from_pretrained(str(folder))
    extra = [PATCH_TOKEN] if config.get("mm_use_im_patch_token", True) else []
    extra += [START_TOKEN, END_TOKEN] if config.get("mm_use_im_start_end", False) else []
    if extra:
        tokenizer.add_tokens(extra, special_tokens=True)
    return tokenizer


def tokenizer_class(folder: Path, variant: str) -> Any:
    """transformers' class for the tokenizer files, slow or fast as AutoTokenizer would choose for this variant."""
    import transformers

    has_slow, has_fast = ((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    if not has_slow and not has_fast:
        raise FileNotFoundError(f"{folder} holds no tokenizer: neither tokenizer.model nor tokenizer.json")
    name = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if name is None and has_slow:
        name = NAMES.get(variant, "LlamaTokenizer")
    choices = [] if name is None else [name]
    if choices and variant not in SLOW and not name.endswith("Fast"):
        choices.insert(0, name + "Fast")
    for choice in choices:
        if hasattr(transformers, choice):
            return getattr(transformers, choice)
    if not has_fast:
        raise ImportError(f"transformers {transformers.__version__} has no {name}, which {folder} asks for")
    return transformers.PreTrainedTokenizerFast


def stop_ids(tokenizer: Any, template: str) -> List[int]:
    """The ids that end an answer."""
    ids = [tokenizer.eos_token_id]
    if template == "llama_3":
        ids.append(tokenizer.convert_tokens_to_ids(END_OF_TURN))
    return [token for token in ids if token is not None and token != tokenizer.unk_token_id]


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer's ids, without special tokens and outer space."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def text_pieces(tokenizer: Any, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens as they come; the pieces joined are `answer_text` of all of them.

    What a later token may still change is held back: outer space, characters of which bytes are missing, runs of byte
    tokens (one wrong byte spoils the whole run), and the last short word (tokenizers take the space out of " n't" once
    they see all of it).
    """
    ids: List[int] = []
    given = ""
    hidden = set(tokenizer.all_special_ids)
    in_bytes = False
    for token in tokens:
        ids.append(token)
        in_bytes = in_bytes if token in hidden else is_byte(tokenizer, token)
        ready = "" if in_bytes else settled(answer_text(tokenizer, ids))
        if len(ready) > len(given) and ready.startswith(given):
            yield ready[len(given) :]
            given = ready
    rest = answer_text(tokenizer, ids)[len(given) :]
    if rest:
        yield rest


def is_byte(tokenizer: Any, token: int) -> bool:
    """Whether a token is SentencePiece's spelling of a single byte, `<0x0A>`."""
    return bool(re.fullmatch(r"<0x[0-9A-F]{2}>", str(tokenizer.convert_ids_to_tokens(token))))


def settled(text: str) -> str:
    """The beginning of `text` that further tokens do not change."""
    return re.sub(r"(\s\S{0,3})?\s*\ufffd*$", "", text, count=1)
