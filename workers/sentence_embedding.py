"""Sentence embeddings from any checkpoint in the sentence-transformers layout, through plain transformers.

Pooling and maximal length are read from the checkpoint, so the vectors equal those of the sentence-transformers
library without its dependencies. Runs on transformers 4.36 to 5.x.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from orchestrator.worker.inference import CPU, compare, dtype_argument, map_batches, texts_of
from orchestrator.worker.tiny import tiny_checkpoint

# The names that the Pooling module of sentence-transformers uses in its config.json, and ours.
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
UNLIMITED = 1_000_000  # tokenizers say 1e30 when they know no limit
# Recorded on transformers 4.36.2 (the family's pin); 4.39.3 gave the same bits, 5.23.0 differs by less than 2e-7.
SELF_TEST_TEXTS = ("the cat sat on the mat.", "a red dog!", "zebra , fell")
SELF_TEST_VECTORS = (
    -0.3300443, 0.3769676, 0.0455252, 0.0716677, -0.0734803, 0.0541222,
    -0.4350066, 0.4043071, 0.0751736, -0.0971130, -0.1229660, 0.0479817,
    -0.4764588, 0.2935014, 0.1029576, 0.0378410, -0.0735305, 0.0050599,
)  # fmt: skip


class SentenceEmbedding:
    """Texts to vectors.

    Options: `pooling` ("mean", "cls", "last", "max") and `max_length` (tokens) override what the checkpoint says;
    `attention` picks transformers' implementation ("eager", "sdpa"): the default differs between versions and moves
    vectors by about 2e-7.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        pooling: Optional[str] = None,
        max_length: Optional[int] = None,
        attention: Optional[str] = None,
        trust_remote_code: bool = False,
    ) -> None:
        skip_dynamo()
        layout = read_layout(Path(checkpoint))
        arguments = dict(dtype_argument(placement.dtype), trust_remote_code=trust_remote_code)
        if attention is not None:
            arguments["attn_implementation"] = attention
        self.tokenizer = AutoTokenizer.from_pretrained(
            layout["transformer"], trust_remote_code=trust_remote_code
        )
        self.model = AutoModel.from_pretrained(layout["transformer"], **arguments).to(placement.device).eval()
        self.device = placement.device
        self.poolings: Tuple[str, ...] = (pooling,) if pooling else layout["poolings"]
        check_poolings(self.poolings)
        self.lower = layout["lower"]
        self.max_length = max_length or layout["max_length"] or limit_of(self.tokenizer, self.model)
        self.report = {
            "pooling": "+".join(self.poolings),
            "max_length": self.max_length,
            "dimension": self.model.config.hidden_size * len(self.poolings),
            "dtype": str(self.model.dtype).replace("torch.", ""),
        }

    def embed(
        self, texts: Union[str, Sequence[str]], batch_size: int = 32, normalize: bool = True
    ) -> np.ndarray:
        """Vectors, float32 (n, d), in the order of `texts`; of length 1 unless `normalize` is False."""
        texts = texts_of(texts)
        if not texts:
            return np.zeros((0, self.report["dimension"]), np.float32)
        rows = map_batches(
            lambda batch: self._embed_batch(batch, normalize), texts, batch_size, length=len, what="texts"
        )
        return np.stack(rows)

    def similarity(self, a: Any, b: Any, pairwise: bool = False) -> np.ndarray:
        """Cosines, float32: (len(a), len(b)), or (n,) of `a[i]` with `b[i]` if `pairwise`.

        `a` and `b` are texts or vectors.
        """
        left, right = self._unit_vectors(a), self._unit_vectors(b)
        if not pairwise:
            return left @ right.T
        if left.shape != right.shape:
            raise ValueError(f"pairwise needs as many of each, not {len(left)} and {len(right)}")
        return (left * right).sum(axis=1)

    def close(self) -> None:
        """Frees the model."""
        del self.model

    @staticmethod
    def self_test() -> Dict[str, Any]:
        """Embeds three texts with a tiny seeded BERT and holds the vectors against recorded ones."""
        makers = Path(__file__).parent / "tiny_checkpoints" / "sentence_bert.py"
        with tiny_checkpoint(makers, "sentence-bert") as folder:
            vectors = SentenceEmbedding(folder, placement=CPU).embed(SELF_TEST_TEXTS, batch_size=2)
        return compare({"vectors": vectors[:, :6]}, {"vectors": SELF_TEST_VECTORS}, tolerance=1e-5)

    def _unit_vectors(self, values: Any) -> np.ndarray:
        if isinstance(values, str) or (len(values) > 0 and isinstance(values[0], str)):
            return self.embed(values)
        vectors = np.atleast_2d(np.asarray(values, dtype=np.float32))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norms, np.float32(1e-12))

    @torch.inference_mode()
    def _embed_batch(self, texts: List[str], normalize: bool) -> List[np.ndarray]:
        if self.lower:
            texts = [text.lower() for text in texts]
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"]
        vectors = torch.cat([pool(hidden, mask, kind) for kind in self.poolings], dim=1).float()
        if normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return list(vectors.cpu().numpy())


def pool(hidden: torch.Tensor, mask: torch.Tensor, kind: str) -> torch.Tensor:
    """Hidden states (n, t, d) to vectors (n, d); padding may be on either side."""
    if kind == "cls":
        return hidden[torch.arange(len(hidden)), mask.argmax(dim=1)]
    if kind == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        return hidden[torch.arange(len(hidden)), (mask * positions).argmax(dim=1)]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if kind == "max":
        return hidden.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def read_layout(folder: Path) -> Dict[str, Any]:
    """Where the transformer is, how to pool and how long texts may be, as sentence-transformers wrote it down."""
    layout: Dict[str, Any] = {
        "transformer": str(folder),
        "poolings": ("mean",),
        "max_length": None,
        "lower": False,
    }
    for module in read_json(folder / "modules.json", []):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in KNOWN_MODULES:
            raise ValueError(
                f"{folder / 'modules.json'} asks for a {kind!r} module; this family knows {', '.join(KNOWN_MODULES)}"
            )
        if kind == "Transformer":
            inside = folder / module["path"]
            settings = read_json(inside / "sentence_bert_config.json", {})
            layout["transformer"] = str(inside)
            layout["max_length"] = settings.get("max_seq_length")
            layout["lower"] = bool(settings.get("do_lower_case", False))
        elif kind == "Pooling":
            layout["poolings"] = read_poolings(folder / module["path"] / "config.json")
    return layout


def read_poolings(path: Path) -> Tuple[str, ...]:
    """The pooling modes that a Pooling module's config.json switches on."""
    config = read_json(path, {})
    mode = config.get("pooling_mode")
    if mode is not None:
        return tuple([mode] if isinstance(mode, str) else mode)
    chosen = tuple(key for key, on in config.items() if key.startswith("pooling_mode_") and on)
    return tuple(POOLINGS.get(key, key) for key in chosen) or ("mean",)


def check_poolings(poolings: Sequence[str]) -> None:
    for name in poolings:
        if name not in POOLINGS.values():
            raise ValueError(
                f"pooling {name!r} is not known; known are {', '.join(sorted(POOLINGS.values()))}"
            )


def skip_dynamo() -> None:
    """Spares a worker on transformers 4.x the import of torch._dynamo (2.6 s, 800 modules) at its first forward.

    Those versions import it only to ask whether the model is being compiled, which it never is here.
    """
    if hasattr(transformers.modeling_utils, "is_torchdynamo_compiling"):
        transformers.modeling_utils.is_torchdynamo_compiling = lambda: False


def limit_of(tokenizer: Any, model: Any) -> int:
    """The longest text, in tokens, that both the tokenizer and the position embeddings take."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    return int(min([limit for limit in limits if limit and limit < UNLIMITED] or [512]))


def read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else default
