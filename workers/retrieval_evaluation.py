"""Retrieval evaluation in the formats of BEIR and MS MARCO: exact search, and metrics from ir-measures (trec_eval).

The vectors come from any embedding family; this one needs no checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import ir_measures
import numpy as np
import torch

from orchestrator.worker import progress
from orchestrator.worker.inference import CPU, compare, stop_if_cancelled

METRICS = ("nDCG@10", "RR@10", "R@10", "R@100", "AP@100")
"""Names of ir-measures; RR@10 is what MS MARCO calls MRR@10, R@100 is Recall@100."""
SCORES_AT_ONCE = 1 << 26
RECORDED = {
    "nDCG@10": [0.8154649],
    "RR@10": [0.75],
    "R@10": [1.0],
}  # by hand: (1 + 1/log2(3)) / 2, (1 + 1/2) / 2

Qrels = Dict[str, Dict[str, int]]


class RetrievalEvaluation:
    """Reads collections, searches exactly, and computes metrics."""

    def __init__(self, checkpoint: Optional[str] = None, *, placement: Any) -> None:  # noqa: ARG002 - needs none
        self.device = torch.device(placement.device)
        self.report = {"library": f"ir-measures {_version('ir-measures')}", "device": str(self.device)}

    def read(
        self,
        folder: str = ".",
        *,
        corpus: str = "corpus.jsonl",
        queries: str = "queries.jsonl",
        qrels: str = "qrels.tsv",
        judged_only: bool = True,
        queries_limit: Optional[int] = None,
        documents_limit: Optional[int] = None,
    ) -> Dict[str, Any]:
        """A collection: {"document_ids", "documents", "query_ids", "queries", "qrels", "counts"}.

        Documents are their title and text. JSON lines (`_id` or `id`, `title`, `text`) and tab-separated files (id,
        text) are read; judgements with three columns (query, document, score; with or without a header) or the four of
        TREC. Paths are relative to `folder`. With `judged_only` queries without a judgement are left out.
        `queries_limit` takes the first queries; `documents_limit` keeps the documents judged for them and as many
        others, in the file's order: figures of a smaller collection are not those of the whole.

        Raises:
            FileNotFoundError, ValueError: a file is missing or a line cannot be read; the line is named.
        """
        place = Path(folder)
        judgements = read_qrels(place / qrels)
        documents = read_texts(place / corpus)
        asked = read_texts(place / queries)
        if judged_only:
            asked = {query: text for query, text in asked.items() if query in judgements}
        asked = dict(list(asked.items())[:queries_limit])
        kept = {query: judgements[query] for query in asked if query in judgements}
        counts = {"documents_in_file": len(documents)}
        wanted = {document for judged in kept.values() for document in judged}
        if documents_limit is not None:
            documents = _limited(documents, wanted, documents_limit)
        counts.update(
            documents=len(documents),
            queries=len(asked),
            judgements=sum(map(len, kept.values())),
            judged_documents_missing=len(wanted - set(documents)),
        )
        return {
            "document_ids": list(documents),
            "documents": list(documents.values()),
            "query_ids": list(asked),
            "queries": list(asked.values()),
            "qrels": kept,
            "counts": counts,
        }

    @torch.inference_mode()
    def search(
        self, query_vectors: np.ndarray, document_vectors: np.ndarray, *, k: int = 100
    ) -> Dict[str, np.ndarray]:
        """The `k` documents of highest inner product for each query, best first, found exactly.

        Vectors are (n, dimensions) of one dtype; the answer is {"indices": (queries, k) int64, "scores": float32}.
        """
        if query_vectors.shape[1] != document_vectors.shape[1]:
            raise ValueError(
                f"queries have {query_vectors.shape[1]} dimensions, documents {document_vectors.shape[1]}"
            )
        k = min(k, len(document_vectors))
        documents = torch.as_tensor(np.asarray(document_vectors, np.float32)).to(self.device)
        block = max(1, SCORES_AT_ONCE // max(1, len(document_vectors)))
        indices, scores = [], []
        for start in range(0, len(query_vectors), block):
            stop_if_cancelled()
            some = torch.as_tensor(np.asarray(query_vectors[start : start + block], np.float32)).to(
                self.device
            )
            best = torch.topk(some @ documents.T, k, dim=1)
            indices.append(best.indices.cpu().numpy())
            scores.append(best.values.cpu().numpy())
            progress("queries", min(start + block, len(query_vectors)), len(query_vectors))
        if not indices:
            return {"indices": np.zeros((0, k), np.int64), "scores": np.zeros((0, k), np.float32)}
        return {"indices": np.concatenate(indices), "scores": np.concatenate(scores)}

    def evaluate(
        self,
        collection: Mapping[str, Any],
        query_vectors: Union[np.ndarray, Sequence[np.ndarray]],
        document_vectors: Union[np.ndarray, Sequence[np.ndarray]],
        *,
        metrics: Sequence[str] = METRICS,
        k: int = 100,
        ignore_identical_ids: bool = False,
        per_query: bool = False,
    ) -> Dict[str, Any]:
        """Search and judge: {"metrics": {name: mean over the judged queries}, "counts", "k"}.

        Args:
            collection: what `read` gave.
            query_vectors, document_vectors: (n, dimensions) arrays, or lists of n vectors, in the order of its queries
                and documents.
            ignore_identical_ids: drop a document that has the query's id, as BEIR does (ArguAna, Quora).
            per_query: also give {"per_query": {metric: {query: value}}}.
        """
        query_ids, document_ids = list(collection["query_ids"]), list(collection["document_ids"])
        for what, ids, vectors in (
            ("query", query_ids, query_vectors),
            ("document", document_ids, document_vectors),
        ):
            if len(ids) != len(vectors):
                raise ValueError(f"{len(vectors)} {what} vectors for {len(ids)} ids")
        found = self.search(
            np.asarray(query_vectors), np.asarray(document_vectors), k=k + int(ignore_identical_ids)
        )
        run = {
            query: {
                document_ids[index]: float(score)
                for index, score in zip(row, scores)
                if not (ignore_identical_ids and document_ids[index] == query)
            }
            for query, row, scores in zip(query_ids, found["indices"], found["scores"])
        }
        judged = judge(run, {query: dict(rows) for query, rows in collection["qrels"].items()}, metrics)
        answer = {
            "metrics": {name: mean for name, (mean, _) in judged.items()},
            "counts": collection.get("counts"),
            "k": k,
        }
        if per_query:
            answer["per_query"] = {name: values for name, (_, values) in judged.items()}
        return answer

    def compare(
        self,
        first: Mapping[str, Any],
        second: Mapping[str, Any],
        *,
        names: Sequence[str] = ("first", "second"),
    ) -> List[Dict[str, Any]]:
        """Two answers of `evaluate` side by side: [{"metric", first's name, second's name, "difference"}]."""
        left, right = first["metrics"], second["metrics"]
        return [
            {
                "metric": name,
                names[0]: left[name],
                names[1]: right[name],
                "difference": right[name] - left[name],
            }
            for name in left
            if name in right
        ]

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Two queries over three documents whose metrics are known by hand."""
        collection = {
            "query_ids": ["a", "b"],
            "document_ids": ["1", "2", "3"],
            "qrels": {"a": {"1": 1}, "b": {"2": 1}},
        }
        documents = np.eye(3, dtype=np.float32)
        queries = np.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.1]], np.float32)
        answer = cls(placement=CPU).evaluate(collection, queries, documents, metrics=list(RECORDED))
        return compare(answer["metrics"], RECORDED, 1e-6)


def judge(
    run: Mapping[str, Mapping[str, float]], qrels: Qrels, metrics: Sequence[str]
) -> Dict[str, Tuple[float, Dict[str, float]]]:
    """Each metric's mean over the judged queries, and its value for each; a query without an answer counts as 0."""
    measures = [ir_measures.parse_measure(name) for name in metrics]
    values: Dict[str, Dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in metrics}
    named = dict(zip(map(str, measures), metrics))
    for result in ir_measures.iter_calc(measures, qrels, run):
        values[named[str(result.measure)]][result.query_id] = float(result.value)
    return {name: (sum(rows.values()) / max(1, len(rows)), rows) for name, rows in values.items()}


def read_texts(path: Path) -> Dict[str, str]:
    """Id -> title and text, from JSON lines or a tab-separated file, in the file's order."""
    texts: Dict[str, str] = {}
    for number, line in _lines(path):
        if path.suffix in (".tsv", ".txt"):
            name, tab, text = line.partition("\t")
            if not tab:
                raise ValueError(f"{path}:{number}: no tab between id and text")
        else:
            name, text = _json_text(path, number, line)
        if name in texts:
            raise ValueError(f"{path}:{number}: the id {name} occurs twice")
        texts[name] = text
    return texts


def read_qrels(path: Path) -> Qrels:
    """Query -> document -> score; three columns (a header is skipped) or the four of TREC."""
    qrels: Qrels = {}
    for number, line in _lines(path):
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) == 4:
            del parts[1]
        if number == 1 and not parts[-1].lstrip("-").isdigit():
            continue
        if len(parts) != 3 or not parts[2].lstrip("-").isdigit():
            raise ValueError(f"{path}:{number}: {line!r} is not query, document and score")
        qrels.setdefault(parts[0], {})[parts[1]] = int(parts[2])
    if not qrels:
        raise ValueError(f"{path} holds no judgement")
    return qrels


def _lines(path: Path) -> Iterator[Tuple[int, str]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def _json_text(path: Path, number: int, line: str) -> Tuple[str, str]:
    try:
        entry = json.loads(line)
        name = str(entry["_id"] if "_id" in entry else entry["id"])
        return name, f"{entry.get('title') or ''} {entry['text']}".strip()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}:{number}: not an object with `_id` and `text` ({error!r})") from error


def _limited(documents: Dict[str, str], wanted: set[str], limit: int) -> Dict[str, str]:
    others: List[str] = [name for name in documents if name not in wanted]
    kept = wanted | set(others[:limit])
    return {name: text for name, text in documents.items() if name in kept}


def _version(distribution: str) -> str:
    from importlib.metadata import version

    return version(distribution)
