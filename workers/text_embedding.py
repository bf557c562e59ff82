"""Text embeddings with instructions, from language models (gte-Qwen2 and relatives) and ordinary sentence encoders.

What the checkpoint says in the files of sentence-transformers (pooling, longest text, prompts) is obeyed; what it does
not say is asked for, never guessed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from orchestrator.worker.inference import CPU, compare, dtype_argument, map_batches, texts_of
from orchestrator.worker.tiny import tiny_checkpoint

TINY = Path(__file__).with_name("tiny_checkpoints")
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
BOTH_SIDES = [-0.0311203, -0.0923188, -0.2226395, 0.5177367, 0.080663, 0.1691052, 0.0549548, 0.0048975]
RECORDED = {  # transformers 4.36.2, 4.41.2 and 5.23.0 within 2e-7; 4.39.3 too, but for "masked"
    "last": BOTH_SIDES,
    "alone": BOTH_SIDES,
    "masked": BOTH_SIDES,
    "mean": [-0.4793227, 0.206349, 0.1022366, -0.0857313, -0.069482, 0.0961367, -0.007631, 0.3015483],
}
TOLERANCE = 1e-5


class TextEmbedding:
    """Texts to vectors.

    Options:
        trust_remote_code: run the checkpoint's own code. A checkpoint that brings its own model class is refused
            without it: the library's class of the same name would answer other vectors without an error.
        pooling: "last", "mean" or "cls"; needed where the checkpoint does not say.
        max_length: tokens, the end token included; by default what the checkpoint says.
        append_eos: end every text with the end token; by default for last-token pooling where the tokenizer does not.
        instruction_format: how an instruction and a text are joined.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        trust_remote_code: bool = False,
        pooling: Optional[str] = None,
        max_length: Optional[int] = None,
        append_eos: Optional[bool] = None,
        instruction_format: str = "Instruct: {instruction}\nQuery: {text}",
    ) -> None:
        folder = Path(checkpoint)
        layout = read_layout(folder)
        refuse_untrusted(folder, trust_remote_code)
        self.pooling = checked_pooling(pooling or layout["pooling"], folder)
        self.device = torch.device(placement.device)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
        model = AutoModel.from_pretrained(
            checkpoint, trust_remote_code=trust_remote_code, **dtype_argument(placement.dtype)
        )
        self.model = model.to(self.device).eval()
        self.prompts: Mapping[str, str] = layout["prompts"]
        self.max_length = max_length or layout["max_length"] or longest(self.tokenizer, self.model)
        self.append_eos = self.pooling == "last" if append_eos is None else append_eos
        self.instruction_format = instruction_format
        self.report = {
            "model": f"{type(model).__module__}.{type(model).__name__}",
            "pooling": self.pooling,
            "max_length": self.max_length,
            "dimension": int(model.config.hidden_size),
            "dtype": str(model.dtype),
            "prompts": dict(self.prompts),
        }

    def embed(
        self,
        texts: Union[str, Sequence[str]],
        *,
        instruction: Optional[str] = None,
        prompt: Optional[str] = None,
        batch_size: int = 32,
        normalize: bool = True,
    ) -> np.ndarray:
        """Vectors of the texts, (texts, dimensions) float32, in their order; of length 1 unless `normalize` is False.

        Args:
            instruction: the task in words, put before every text (queries want it, documents do not).
            prompt: instead, the name of a prompt that the checkpoint brings, such as "query".
            batch_size: texts a batch; they are sorted by length first.
        """
        prepared = self._with_instruction(texts_of(texts), instruction, prompt)
        if not prepared:
            return np.zeros((0, int(self.model.config.hidden_size)), np.float32)
        tokens = [self._tokens(text) for text in prepared]
        vectors = np.stack(map_batches(self._forward, tokens, batch_size, length=len, what="texts"))
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def similarity(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        *,
        instruction: Optional[str] = None,
        prompt: Optional[str] = None,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Cosines, (queries, documents) float32; the instruction or prompt goes to the queries."""
        left = self.embed(queries, instruction=instruction, prompt=prompt, batch_size=batch_size)
        cosines: np.ndarray = left @ self.embed(documents, batch_size=batch_size).T
        return cosines

    def close(self) -> None:
        """Give the memory back."""
        del self.model

    def _with_instruction(
        self, texts: List[str], instruction: Optional[str], prompt: Optional[str]
    ) -> List[str]:
        if instruction is not None and prompt is not None:
            raise ValueError("give an instruction or the name of a prompt, not both")
        if instruction is not None:
            return [self.instruction_format.format(instruction=instruction, text=text) for text in texts]
        if prompt is None:
            return texts
        if prompt not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            raise ValueError(f"the checkpoint has no prompt {prompt!r} (it has: {known})")
        return [self.prompts[prompt] + text for text in texts]

    def _tokens(self, text: str) -> List[int]:
        """The ids of a text, cut to `max_length`; the end token survives the cut."""
        ids: List[int] = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        if not self.append_eos or (ids and ids[-1] in self.tokenizer.all_special_ids):
            return ids
        return [*ids[: self.max_length - 1], self.tokenizer.eos_token_id]

    @torch.inference_mode()
    def _forward(self, batch: List[List[int]]) -> np.ndarray:
        inputs = self.tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(self.device)
        hidden = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        pooled = pool(hidden.last_hidden_state, inputs["attention_mask"], self.pooling)
        vectors: np.ndarray = pooled.float().cpu().numpy()
        return vectors

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Embed with tiny remote-code models (last token) and a tiny encoder (mean), batched and alone.

        "masked" comes from code that hands the library's Qwen2 a 4-D mask: 4.39 ignores it, and nothing else tells.
        """
        texts = ["What is water?", "A cat answers a document about energy, at length.", "retrieve"]
        with tiny_checkpoint(TINY / "gte.py", "gte-qwen2-own-config", seed=0) as checkpoint:
            model = cls(checkpoint, placement=CPU, trust_remote_code=True)
            batched = model.embed(texts, prompt="query")
            alone = model.embed(texts[2], prompt="query")
        with tiny_checkpoint(TINY / "sentence_bert.py", "sentence-bert", seed=0) as checkpoint:
            mean = cls(checkpoint, placement=CPU).embed(texts)
        got = {"last": batched[2], "alone": alone[0], "mean": mean[2]}
        if "qwen2" in CONFIG_MAPPING_NAMES:  # not before 4.37, where such code does not load
            with tiny_checkpoint(TINY / "gte.py", "gte-qwen2-4d-mask", seed=0) as checkpoint:
                model = cls(checkpoint, placement=CPU, trust_remote_code=True)
                got["masked"] = model.embed(texts, prompt="query")[2]
        return compare(got, {name: RECORDED[name] for name in got}, TOLERANCE)


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Hidden states (n, t, d) to vectors (n, d); `mask` (n, t) is 1 on tokens, with the padding on either side."""
    rows = torch.arange(len(hidden), device=hidden.device)
    if pooling == "cls":
        return hidden[rows, mask.argmax(dim=1)]
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        return hidden[rows, (mask * positions).argmax(dim=1)]
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def read_layout(folder: Path) -> Dict[str, Any]:
    """Pooling, longest text and prompts, as sentence-transformers wrote them down; None or empty where it did not."""
    layout: Dict[str, Any] = {"pooling": None, "max_length": None}
    layout["prompts"] = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    layout["max_length"] = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    for module in read_json(folder / "modules.json", default=[]):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in KNOWN_MODULES:
            raise ValueError(
                f"{folder / 'modules.json'} asks for {kind}; this family knows {', '.join(KNOWN_MODULES)}"
            )
        if kind == "Pooling":
            layout["pooling"] = read_pooling(folder / module["path"] / "config.json")
    return layout


def read_pooling(path: Path) -> str:
    """The one pooling that a Pooling module's config.json switches on."""
    config = read_json(path)
    on = [
        POOLINGS.get(key, key)
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    if isinstance(config.get("pooling_mode"), str):  # later versions of sentence-transformers
        on = [config["pooling_mode"].replace("lasttoken", "last")]
    if len(on) != 1:
        raise ValueError(f"{path} switches on {', '.join(on) or 'no pooling'}; this family joins no poolings")
    return on[0]


def checked_pooling(pooling: Optional[str], folder: Path) -> str:
    """`pooling`, if it is one of ours."""
    if pooling is None:
        raise ValueError(
            f"{folder} does not say how its tokens are pooled: load with pooling='last', 'mean' or 'cls'"
        )
    if pooling not in POOLINGS.values():
        raise ValueError(
            f"pooling {pooling!r} is not known; known are {', '.join(sorted(POOLINGS.values()))}"
        )
    return pooling


def refuse_untrusted(folder: Path, trust_remote_code: bool) -> None:
    """Raise when the checkpoint brings its own model class and its code is not allowed."""
    own = (read_json(folder / "config.json").get("auto_map") or {}).get("AutoModel")
    if own and not trust_remote_code:
        raise ValueError(
            f"{folder} brings its own model code ({own}); load it with trust_remote_code=True and a pinned revision."
            " Without it the library's class of the same model type would answer other vectors without an error."
        )


def longest(tokenizer: Any, model: Any) -> int:
    """The longest text in tokens that both the tokenizer and the position embeddings take."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    return int(min([limit for limit in limits if limit and limit < 1_000_000] or [512]))


def read_json(path: Path, default: Any = None) -> Any:
    """The file's value; `default` (an empty dict) if there is none."""
    if not path.is_file():
        return {} if default is None else default
    return json.loads(path.read_text(encoding="utf-8"))
