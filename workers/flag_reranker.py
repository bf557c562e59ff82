"""FlagEmbedding's rerankers (bge-reranker …) through the library: how well a text answers a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from FlagEmbedding import FlagAutoReranker
from FlagEmbedding.inference.reranker.model_mapping import AUTO_RERANKER_MAPPING, RERANKER_CLASS_MAPPING

from orchestrator.worker.inference import (
    CPU,
    compare,
    known_name,
    map_batches,
    pair_length,
    pairs_of,
    texts_of,
)
from orchestrator.worker.tiny import tiny_checkpoint

TINY = Path(__file__).with_name("tiny_checkpoints")
ENCODER = "encoder-only-base"
BATCHES = 8
"""Batches that the library gets at a time: of each call it computes the first batch twice, to see whether it fits."""
RECORDED = {  # flagembedding 1.4.2, transformers 5.23.0
    "encoder": [0.0686168, -0.2758100, -0.4845902],
    "decoder": [-0.2733235, -0.2712168, -0.1771066],
}
TOLERANCE = 1e-5


class FlagReranker:
    """Pairs of query and text to scores, as the FlagEmbedding library computes them.

    Options:
        model_class: "encoder-only-base" or "decoder-only-base", "-layerwise", "-lightweight"; by default what the
            library's own table says for a checkpoint of that name. An unknown name is refused, not guessed.
        max_length: tokens of a pair.
        trust_remote_code: run the checkpoint's own code.
        options: anything else that the library's class takes, such as `cutoff_layers=[28]` or `prompt="…"`.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        model_class: Optional[str] = None,
        max_length: int = 512,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        model_class = model_class or known_class(Path(checkpoint).name)
        if model_class is None:
            classes = ", ".join(known.value for known in RERANKER_CLASS_MAPPING)
            raise ValueError(
                f"FlagEmbedding does not know {checkpoint}; load it with model_class= one of {classes}"
            )
        if placement.dtype == "bfloat16":
            if model_class == ENCODER:
                raise ValueError(
                    "the library runs encoder-only rerankers in float32 or float16, not in bfloat16"
                )
            options["use_bf16"] = True
        self.max_length = max_length
        self.model = FlagAutoReranker.from_finetuned(
            checkpoint,
            model_class=model_class,
            use_fp16=placement.dtype == "float16",
            devices=placement.device,
            trust_remote_code=trust_remote_code,
            **options,
        )
        self.report = {"class": type(self.model).__name__, "device": str(placement.device)}

    def score(
        self, pairs: Sequence[Sequence[str]], *, normalize: bool = False, batch_size: int = 32
    ) -> np.ndarray:
        """How well each text answers its query, (pairs,) float32, in the order of `pairs`, which are [query, text].

        Logits of any size; with `normalize` between 0 and 1.
        """

        @torch.inference_mode()
        def some(chosen: List[Tuple[str, str]]) -> Any:
            return self.model.compute_score(
                chosen, batch_size=batch_size, max_length=self.max_length, normalize=normalize
            )

        rows = map_batches(some, pairs_of(pairs), batch_size * BATCHES, length=pair_length, what="pairs")
        return np.asarray(rows, np.float32)

    def rerank(
        self, query: str, texts: Sequence[str], *, top_k: Optional[int] = None, batch_size: int = 32
    ) -> List[Dict[str, Any]]:
        """The texts, best first: [{"index", "text", "score"}]; `index` is the place in `texts`."""
        texts = texts_of(texts)
        scores = self.score([(query, text) for text in texts], batch_size=batch_size)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"index": int(i), "text": texts[i], "score": float(scores[i])} for i in order]

    def close(self) -> None:
        """Give the memory back."""
        self.model.stop_self_pool()
        del self.model

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Score pairs with a tiny encoder and a tiny language model."""
        query, texts = (
            "What is water?",
            ["A cat answers a document about energy, at length.", "retrieve", "red"],
        )
        pairs = [(query, text) for text in texts]
        with tiny_checkpoint(TINY / "bge_m3.py", "bge-reranker-v2-m3", seed=0) as checkpoint:
            encoder = cls(checkpoint, placement=CPU, model_class=ENCODER, max_length=64).score(pairs)
        with tiny_checkpoint(TINY / "llama.py", "llama", seed=0) as checkpoint:
            decoder = cls(checkpoint, placement=CPU, model_class="decoder-only-base", max_length=128).score(
                pairs
            )
        return compare({"encoder": encoder, "decoder": decoder}, RECORDED, TOLERANCE)


def known_class(folder: str) -> Optional[str]:
    """The library's class for a checkpoint folder of that name, by the library's own table."""
    name = known_name(folder, AUTO_RERANKER_MAPPING)
    if name is None:
        return None
    kind = AUTO_RERANKER_MAPPING[name].model_class
    return str(next(known.value for known, found in RERANKER_CLASS_MAPPING.items() if found is kind))
