"""FlagEmbedding's own models (BGE, BGE-M3, gte-Qwen2 …) through the library, one device per worker.

The library would start a process per device by itself and wait for ever when one dies; here a worker has one device,
and replicas are the orchestrator's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from FlagEmbedding import FlagAutoModel
from FlagEmbedding.inference.embedder.model_mapping import AUTO_EMBEDDER_MAPPING, EMBEDDER_CLASS_MAPPING

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
KINDS = {"dense": "dense_vecs", "lexical": "lexical_weights", "colbert": "colbert_vecs"}
RETURNS = {"dense": "dense", "lexical": "sparse", "colbert": "colbert_vecs"}
SCORES = {"dense": "dense", "lexical": "sparse", "colbert": "colbert", "all": "colbert+sparse+dense"}
M3 = "encoder-only-m3"
HEADS = ("colbert_linear.pt", "sparse_linear.pt")
BATCHES = 8
"""Batches that the library gets at a time: of each call it computes the first batch twice, to see whether it fits."""
RECORDED = {  # flagembedding 1.4.2, transformers 5.23.0
    "cls": [-0.2816558, 0.103023, 0.0483801, -0.1551259, -0.0917075, 0.3645649, 0.0749539, 0.0786814],
    "last": [-0.0991353, -0.1077175, -0.1939082, 0.5009666, 0.0458624, 0.1902344, 0.0410698, -0.0118833],
    "m3": [-0.0331085, -0.0852716, 0.2344222, 0.1622897, -0.091918, -0.3739143, 0.2430309, -0.0054274],
    "lexical": [2.486388, 15.424477, 0.0],
    "colbert": [-0.1119191, 0.2679948, -0.126542, 0.2441413, 0.1401546, 0.024162, -0.1773435, -0.1263033],
    "score": [0.5156652, 0.4986076],
}
TOLERANCE = 1e-5


class FlagEmbedding:
    """Texts to vectors as the FlagEmbedding library makes them.

    Options:
        model_class: "encoder-only-base", "encoder-only-m3", "decoder-only-base", "decoder-only-icl" …; by default what
            the library's own table says for a checkpoint of that name. An unknown name is refused, not guessed.
        pooling: "cls", "mean" or "last_token", where the model class is given.
        instruction, instruction_format: put before queries; the format is the library's ("{}{}").
        trust_remote_code: run the checkpoint's own code; refused where the library's table asks for it and it is off.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        model_class: Optional[str] = None,
        pooling: Optional[str] = None,
        instruction: Optional[str] = None,
        instruction_format: Optional[str] = None,
        max_length: int = 512,
        trust_remote_code: bool = False,
    ) -> None:
        name = None if model_class else known_name(Path(checkpoint).name, AUTO_EMBEDDER_MAPPING)
        entry = AUTO_EMBEDDER_MAPPING[name] if name else None
        if model_class is None and entry is None:
            classes = ", ".join(known.value for known in EMBEDDER_CLASS_MAPPING)
            raise ValueError(
                f"FlagEmbedding does not know {checkpoint}; load it with model_class= one of {classes}"
            )
        if entry is not None and entry.trust_remote_code and not trust_remote_code:
            raise ValueError(
                f"{checkpoint} needs its own code: load it with trust_remote_code=True and a pinned revision"
            )
        settings: Dict[str, Any] = {"model_class": model_class, "pooling_method": pooling}
        if entry is not None:
            settings["model_class"] = next(
                known.value for known, kind in EMBEDDER_CLASS_MAPPING.items() if kind is entry.model_class
            )
            settings["pooling_method"] = pooling or entry.pooling_method.value
            instruction_format = instruction_format or entry.query_instruction_format
        self.max_length = max_length
        heads = all((Path(checkpoint) / name).is_file() for name in HEADS)
        self.kinds = tuple(KINDS) if settings["model_class"] == M3 and heads else ("dense",)
        self.model = FlagAutoModel.from_finetuned(
            checkpoint,
            normalize_embeddings=True,
            use_fp16=placement.dtype == "float16",
            use_bf16=placement.dtype == "bfloat16",
            devices=placement.device,
            trust_remote_code=trust_remote_code,
            query_instruction_for_retrieval=instruction,
            query_instruction_format=instruction_format or "{}{}",
            **settings,
        )
        self.report = {
            "class": type(self.model).__name__,
            "kinds": list(self.kinds),
            "pooling": settings["pooling_method"],
            "dtype": str(next(self.model.model.parameters()).dtype).replace("torch.", ""),
            "instruction": instruction,
            "device": str(placement.device),
        }

    def embed(self, texts: Union[str, Sequence[str]], *, batch_size: int = 32) -> np.ndarray:
        """Vectors of documents, (texts, dimensions) float32 of length 1, in their order."""
        return self._stack(self._rows(self.model.encode_corpus, dense, texts, batch_size))

    def embed_queries(self, texts: Union[str, Sequence[str]], *, batch_size: int = 32) -> np.ndarray:
        """Vectors of queries, (texts, dimensions) float32 of length 1, with the instruction before each."""
        return self._stack(self._rows(self.model.encode_queries, dense, texts, batch_size))

    def encode(
        self,
        texts: Union[str, Sequence[str]],
        *,
        kinds: Sequence[str] = tuple(KINDS),
        batch_size: int = 32,
    ) -> Dict[str, Any]:
        """BGE-M3 only: several kinds of vectors of each text, from one pass.

        "dense": (texts, dimensions) float32 of length 1. "lexical": for each text its tokens, as the tokenizer spells
        them, and their weights. "colbert": for each text a vector a token but the first, (tokens - 1, dimensions)
        float32 of length 1.
        """
        self._need(kinds)
        options = {f"return_{name}": kind in kinds for kind, name in RETURNS.items()}

        def split(answer: Mapping[str, Any]) -> List[Tuple[Any, ...]]:
            columns = [[self._plain(kind, row) for row in answer[KINDS[kind]]] for kind in kinds]
            return list(zip(*columns))

        rows = self._rows(self.model.encode_corpus, split, texts, batch_size, **options)
        found: Dict[str, Any] = {kind: [row[column] for row in rows] for column, kind in enumerate(kinds)}
        if "dense" in found:
            found["dense"] = self._stack(found["dense"])
        return found

    def score(
        self,
        pairs: Sequence[Sequence[str]],
        *,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        batch_size: int = 32,
    ) -> Dict[str, np.ndarray]:
        """BGE-M3 only: how well each text answers its query, by each kind: {"dense", "lexical", "colbert", "all"}.

        `pairs` are [query, text]; each answer is (pairs,) float32; "all" is the mean of the three by `weights`
        (dense, lexical, colbert).
        """
        self._need(tuple(KINDS))

        def some(chosen: List[Tuple[str, str]]) -> List[Tuple[float, ...]]:
            answer = self.model.compute_score(
                chosen,
                batch_size=len(chosen),
                max_query_length=self.max_length,
                max_passage_length=self.max_length,
                weights_for_different_modes=list(weights),
            )
            return list(zip(*(answer[name] for name in SCORES.values())))

        rows = map_batches(some, pairs_of(pairs), batch_size, length=pair_length, what="pairs")
        table = np.asarray(rows, np.float32).reshape(-1, len(SCORES))
        return {kind: np.ascontiguousarray(table[:, column]) for column, kind in enumerate(SCORES)}

    def close(self) -> None:
        """Give the memory back."""
        self.model.stop_self_pool()
        del self.model

    def _rows(
        self, encode: Any, split: Any, texts: Union[str, Sequence[str]], batch_size: int, **options: Any
    ) -> List[Any]:
        """What `split` makes of the library's answers, a row for each text, in their order."""

        @torch.inference_mode()
        def some(chosen: List[str]) -> Any:
            return split(encode(chosen, batch_size=batch_size, max_length=self.max_length, **options))

        return map_batches(some, texts_of(texts), batch_size * BATCHES, length=len, what="texts")

    def _need(self, kinds: Sequence[str]) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"there are no {kind!r} vectors; there are {', '.join(KINDS)}")
            if kind not in self.kinds:
                name = type(self.model).__name__
                why = (
                    f"no {' and '.join(HEADS)}: the library would make up random ones"
                    if name == "M3Embedder"
                    else name
                )
                raise ValueError(f"this checkpoint has no {kind} vectors ({why}); BGE-M3 has")

    def _plain(self, kind: str, row: Any) -> Any:
        if kind != "lexical":
            return np.asarray(row, np.float32)
        names = self.model.tokenizer.convert_ids_to_tokens([int(token) for token in row])
        return {name: float(weight) for name, weight in zip(names, row.values())}

    def _stack(self, rows: List[np.ndarray]) -> np.ndarray:
        if not rows:
            return np.zeros((0, int(self.model.model.config.hidden_size)), np.float32)
        return np.stack(rows)

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Embed with a tiny encoder (first token) and a tiny remote-code language model (last token)."""
        texts = ["What is water?", "A cat answers a document about energy, at length.", "retrieve"]
        with tiny_checkpoint(TINY / "sentence_bert.py", "sentence-bert", seed=0) as checkpoint:
            encoder = cls(
                checkpoint, placement=CPU, model_class="encoder-only-base", pooling="cls", max_length=64
            )
            first = encoder.embed(texts)[2]
        options = {"instruction": "Retrieve an answer", "max_length": 128, "trust_remote_code": True}
        with tiny_checkpoint(
            TINY / "gte.py", "gte-qwen2", seed=0, folder="gte_Qwen2_1_5B_instruct"
        ) as checkpoint:
            last = cls(checkpoint, placement=CPU, **options).embed_queries(texts)[2]
        with tiny_checkpoint(TINY / "bge_m3.py", "bge-m3", seed=0) as checkpoint:
            model = cls(checkpoint, placement=CPU, model_class=M3, max_length=64)
            kinds = model.encode(texts)
            every = model.score([[texts[0], texts[1]], [texts[0], texts[2]]])["all"]
        lexical = [sum(weights.values()) for weights in kinds["lexical"]]
        got = {"cls": first, "last": last, "m3": kinds["dense"][2], "lexical": lexical, "score": every}
        return compare({**got, "colbert": kinds["colbert"][1][-1]}, RECORDED, TOLERANCE)


def dense(value: Any) -> np.ndarray:
    """(n, dimensions) float32 of what the library's `encode_…` returned."""
    vectors = value["dense_vecs"] if isinstance(value, Mapping) else value
    return np.asarray(vectors, dtype=np.float32)
