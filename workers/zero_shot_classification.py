"""Zero-shot classification by entailment: does the text entail "This example is LABEL."?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from orchestrator.worker.inference import CPU, compare, dtype_argument, dtype_on, map_batches, texts_of
from orchestrator.worker.tiny import tiny_checkpoint

STEMS = {"entailment": "entail", "contradiction": "contradict"}  # "entails" and "contradicts" occur too
TINY = Path(__file__).with_name("tiny_checkpoints") / "bert_mnli.py"
RECORDED = {  # transformers 4.36.2 and 4.39.3 to the bit, 5.23.0 within 1.5e-7
    "judged": [0.1681445, 0.1665308, 0.1749363, 0.1872789, 0.1845432, 0.1954176],
    "scores": [0.3562152, 0.3079526, 0.3358322],
}
TOLERANCE = 1e-5


class ZeroShotClassification:
    """A natural-language-inference classifier such as `textattack/bert-base-uncased-MNLI`.

    `entailment` and `contradiction` are the indices of these classes. They are read from the checkpoint's label names;
    where it names its labels LABEL_0, LABEL_1, … the index must be given (`entailment=1` for textattack's checkpoints:
    contradiction, entailment, neutral). Nothing is guessed: transformers' own pipeline then takes the last class, which
    is "neutral" there, and ranks by it. `report["entailment"]` says which index is used and why. `half_on_gpu` is
    float16 where the device is a GPU.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        entailment: Optional[int] = None,
        contradiction: Optional[int] = None,
        half_on_gpu: bool = False,
    ) -> None:
        self.device = torch.device(placement.device)
        model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, **dtype_argument(dtype_on(placement, half_on_gpu))
        )
        names = {int(index): str(name) for index, name in model.config.id2label.items()}
        found = class_index("entailment", names, entailment)
        if found is None:
            raise ValueError(_unnamed(checkpoint, names))
        self.entailment = found
        self.contradiction = class_index("contradiction", names, contradiction)
        if self.contradiction == self.entailment:
            raise ValueError(f"entailment and contradiction cannot both be class {self.entailment}")
        self.model = model.to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.report = {
            "labels": [names[index] for index in sorted(names)],
            "entailment": self.entailment,
            "contradiction": self.contradiction,
            "entailment_from": "checkpoint" if entailment is None else "option",
        }

    def classify(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        template: str = "This example is {}.",
        multi_label: bool = False,
        batch_size: int = 32,
    ) -> List[List[Dict[str, Any]]]:
        """For each text its labels, best first: [{"label", "score"}].

        Scores add up to 1 over the labels; with `multi_label` each is the probability of entailment against
        contradiction, on its own. `template` holds one `{}` for the label.
        """
        texts, labels = texts_of(texts), texts_of(labels)
        if not labels:
            raise ValueError("classify needs at least one label")
        if "{}" not in template:
            raise ValueError(f"the template {template!r} has no {{}} for the label")
        pairs = [(text, template.format(label)) for text in texts for label in labels]
        logits = self._logits(pairs, batch_size).reshape(len(texts), len(labels), -1)
        scores = (
            self._against_contradiction(logits) if multi_label else _softmax(logits[:, :, self.entailment])
        )
        return [
            [
                {"label": labels[column], "score": float(row[column])}
                for column in np.argsort(-row, kind="stable")
            ]
            for row in scores
        ]

    def entailments(
        self, premises: Sequence[str], hypotheses: Sequence[str], *, batch_size: int = 32
    ) -> np.ndarray:
        """Probability among all classes that each premise entails the hypothesis beside it, (pairs,) float32."""
        premises, hypotheses = texts_of(premises), texts_of(hypotheses)
        if len(premises) != len(hypotheses):
            raise ValueError(f"{len(premises)} premises for {len(hypotheses)} hypotheses")
        return _softmax(self._logits(list(zip(premises, hypotheses)), batch_size))[:, self.entailment]

    def close(self) -> None:
        """Give the memory back."""
        del self.model

    def _logits(self, pairs: List[Tuple[str, str]], batch_size: int) -> np.ndarray:
        rows = map_batches(
            self._forward, pairs, batch_size, length=lambda pair: len(pair[0]) + len(pair[1]), what="pairs"
        )
        return np.stack(rows) if rows else np.zeros((0, self.model.config.num_labels), np.float32)

    @torch.inference_mode()
    def _forward(self, pairs: List[Tuple[str, str]]) -> np.ndarray:
        premises, hypotheses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        limit = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        inputs = self.tokenizer(
            premises, hypotheses, padding=True, truncation="only_first", max_length=limit, return_tensors="pt"
        )
        logits: np.ndarray = self.model(**inputs.to(self.device)).logits.float().cpu().numpy()
        return logits

    def _against_contradiction(self, logits: np.ndarray) -> np.ndarray:
        if self.contradiction is None:
            raise ValueError("multi_label needs the index of contradiction: load with contradiction=…")
        return _softmax(logits[:, :, [self.contradiction, self.entailment]])[:, :, 1]

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Judge pairs with a tiny seeded classifier whose labels are unnamed; hold the numbers against recorded ones."""
        with tiny_checkpoint(TINY, "bert-mnli", seed=0) as checkpoint:
            model = cls(checkpoint, placement=CPU, entailment=1)
            texts = ["the dog plays football in the water", "a red car", "it is fast"]
            pairs = [(text, f"This example is {label}.") for text in texts for label in ("sport", "a car")]
            judged = model.entailments([pair[0] for pair in pairs], [pair[1] for pair in pairs], batch_size=4)
            ranked = model.classify(texts[:1], ["sport", "money", "art"])[0]
            scores = [entry["score"] for entry in sorted(ranked, key=lambda entry: entry["label"])]
            return compare({"judged": judged, "scores": scores}, RECORDED, TOLERANCE)


def class_index(role: str, names: Mapping[int, str], given: Optional[int]) -> Optional[int]:
    """The index of the class that is the `role` ("entailment"): the one that is named so, else `given`, else None.

    Raises:
        ValueError: `given` does not exist, or the names say that it is another class.
    """
    matching = [index for index, name in names.items() if name.lower().startswith(STEMS[role])]
    named = matching[0] if len(matching) == 1 else None
    if given is None:
        return named
    if given not in names:
        raise ValueError(f"there is no class {given}: the checkpoint has {_listed(names)}")
    if named not in (None, given):
        raise ValueError(
            f"{role}={given}, but the checkpoint says {_listed(names)}: leave the option out, or say {role}={named}"
        )
    return given


def _unnamed(checkpoint: str, names: Mapping[int, str]) -> str:
    return (
        f"{checkpoint} does not say which class is entailment (its labels: {_listed(names)}). Load it with entailment=INDEX;"
        " in textattack's MNLI checkpoints it is 1 (0 contradiction, 2 neutral)."
    )


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{index} {name}" for index, name in sorted(names.items()))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares
