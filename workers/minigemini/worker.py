"""The family's class: questions about pictures in, answers out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image

from orchestrator.worker.images import Turn, as_list, load_image, parse_messages, pictures
from orchestrator.worker.inference import CPU, compare, map_batches, once_more, stop_if_cancelled
from orchestrator.worker.tiny import tiny_checkpoint

from .decoding import Row, Sampling, all_logits, decode
from .loading import load
from .places import read_json
from .prompts import IMAGE, IMAGE_ID, image_token_ids, render
from .tokens import answer_text, text_pieces
from .variants import knows

__all__ = ["MiniGemini"]

Messages = Sequence[Mapping[str, Any]]
Answer = Union[str, Dict[str, Any]]


class Question(NamedTuple):
    """A prompt with its pictures and how it is to be answered."""

    prompt: str
    ids: List[int]
    images: List[Image.Image]
    sampling: Sampling


class MiniGemini:
    """Answers about pictures.

    Options: `template` names the conversation format (vicuna_v1, chatml_direct, mistral_instruct, gemma, llama_3; it is
    read off the checkpoint otherwise); `vision_tower` and `vision_tower_aux` are folders or cached hub ids that override
    config.json; `allow_offload` lets layers that no GPU has room for be computed on the CPU; `load_in_8bit` or
    `load_in_4bit` quantize the language model's layers (needs bitsandbytes).
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        template: Optional[str] = None,
        vision_tower: Optional[str] = None,
        vision_tower_aux: Optional[str] = None,
        allow_offload: bool = False,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
    ) -> None:
        if load_in_8bit and load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit exclude each other")
        folder = Path(checkpoint)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no checkpoint folder {checkpoint}")
        self.loaded = load(
            folder,
            placement,
            template=template,
            vision_tower=vision_tower,
            vision_tower_aux=vision_tower_aux,
            allow_offload=allow_offload,
            bits=8 if load_in_8bit else 4 if load_in_4bit else 0,
        )
        self.report = self.loaded.report
        self._defaults = read_json(folder / "generation_config.json")

    def generate(
        self,
        images: Any = None,
        prompt: Optional[str] = None,
        messages: Optional[Messages] = None,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: Optional[float] = None,
        top_k: Optional[int] = None,
        seed: Optional[int] = None,
        return_ids: bool = False,
        return_timings: bool = False,
    ) -> Answer:
        """The answer to `prompt`, or to a conversation of `messages`, about `images`.

        Greedy at temperature 0; otherwise drawn with `seed`. A text, or with `return_ids` {"text", "token_ids" (new
        tokens, the ending one included), "finish_reason" ("stop" or "length")}, with `return_timings` also "timings" in
        seconds.
        """
        began = time.perf_counter()
        question = self._question(
            {"images": images, "prompt": prompt, "messages": messages},
            {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "seed": seed,
            },
        )
        clock = Clock(began)

        def answer() -> Row:
            row = Row(question.sampling)
            for _ in self._decode([question], [row], clock):
                pass
            return row

        row = once_more(answer)
        return self._answer(row, return_ids, clock.timings(len(row.ids)) if return_timings else None)

    def generate_stream(
        self,
        images: Any = None,
        prompt: Optional[str] = None,
        messages: Optional[Messages] = None,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: Optional[float] = None,
        top_k: Optional[int] = None,
        seed: Optional[int] = None,
    ) -> Iterator[str]:
        """The same answer in pieces, as it grows; the pieces joined are the text of `generate`."""
        question = self._question(
            {"images": images, "prompt": prompt, "messages": messages},
            {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "seed": seed,
            },
        )
        row = Row(question.sampling)
        steps = self._decode([question], [row], Clock(time.perf_counter()))
        yield from text_pieces(self.loaded.tokenizer, (row.ids[-1] for _ in steps))

    def generate_batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        batch_size: int = 8,
        return_ids: bool = False,
        **options: Any,
    ) -> List[Answer]:
        """Answers to several requests ({"images", "prompt" or "messages", …}), in their order.

        `options` (as for `generate`) hold for all requests; a request's own win. Requests of like length share a batch.
        """
        questions = [self._request(request, index, options) for index, request in enumerate(requests)]

        def answer(batch: List[Question]) -> List[Answer]:
            rows = [Row(question.sampling) for question in batch]
            for _ in self._decode(batch, rows, Clock(time.perf_counter())):
                pass
            return [self._answer(row, return_ids, None) for row in rows]

        return map_batches(answer, questions, batch_size, length=self._length, what="requests")

    def forward(
        self, images: Any = None, prompt: Optional[str] = None, messages: Optional[Messages] = None
    ) -> Dict[str, Any]:
        """One pass over the prompt, for comparisons.

        {"prompt": str, "input_ids": int64 (n,) with -200 for each picture, "logits": float32 (t, vocabulary) of the
        sequence with picture tokens in place, "image_features": [float32 (tokens, hidden), …]}.
        """
        question = self._question(
            {"images": images, "prompt": prompt, "messages": messages}, {"max_new_tokens": 1}
        )

        @torch.inference_mode()
        def run() -> Tuple[List[torch.Tensor], torch.Tensor]:
            features = self._features(question)
            return features, all_logits(self.loaded.language, self._embeddings(question, features))

        features, logits = once_more(run)
        return {
            "prompt": question.prompt,
            "input_ids": np.array(question.ids, dtype=np.int64),
            "logits": logits.cpu().numpy(),
            "image_features": [feature.float().cpu().numpy() for feature in features],
        }

    def close(self) -> None:
        """Frees the model."""
        del self.loaded

    @staticmethod
    def self_test() -> Dict[str, Any]:
        """Tiny seeded checkpoints of the language models at hand, one pass each, held against recorded logits."""
        here = Path(__file__).parent
        recorded = json.loads((here / "selftest.json").read_text("utf-8"))
        picture = (np.arange(40 * 60 * 3) * 7 % 256).astype(np.uint8).reshape(40, 60, 3)
        got: Dict[str, np.ndarray] = {}
        for style in ["minigemini-7b", *(["minigemini-2b"] if knows("gemma") else [])]:
            with tiny_checkpoint(here.parent / "tiny_checkpoints" / "minigemini.py", style) as folder:
                model = MiniGemini(folder, placement=CPU)
                got[style] = model.forward(images=picture, prompt=recorded["prompt"])["logits"][-1, :8]
        return compare(got, {style: recorded["expected"][style] for style in got}, recorded["tolerance"])

    def _request(self, request: Mapping[str, Any], index: int, shared: Mapping[str, Any]) -> Question:
        if not isinstance(request, Mapping):
            raise ValueError(f"requests[{index}] is a {type(request).__name__}, not a mapping")
        content = {key: request.get(key) for key in ("images", "prompt", "messages")}
        options = {**shared, **{key: value for key, value in request.items() if key not in content}}
        try:
            return self._question(content, options)
        except (ValueError, TypeError, OSError) as error:
            raise type(error)(f"requests[{index}]: {error}") from error

    def _question(self, content: Mapping[str, Any], options: Mapping[str, Any]) -> Question:
        turns, images = arrange(content["images"], content["prompt"], content["messages"])
        if len(images) > 1 and not self.loaded.multiple:
            raise ValueError(
                f"this is an HD checkpoint, which takes one image per prompt; {len(images)} are given"
            )
        prompt = render(self.loaded.template, turns, self.loaded.placeholder)
        ids = image_token_ids(prompt, self.loaded.tokenizer)
        return Question(prompt, ids, images, self._sampling(**options))

    def _sampling(
        self,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: Optional[float] = None,
        top_k: Optional[int] = None,
        seed: Optional[int] = None,
    ) -> Sampling:
        """What is not given comes from the checkpoint's generation_config.json, then from transformers' defaults."""
        top_p = self._defaults.get("top_p", 1.0) if top_p is None else top_p
        top_k = self._defaults.get("top_k", 50) if top_k is None else top_k
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
        if temperature < 0:
            raise ValueError(f"temperature must be 0 or more, not {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        return Sampling(
            max_new_tokens, temperature, top_k, top_p, self._defaults.get("repetition_penalty", 1.0), seed
        )

    def _decode(self, questions: Sequence[Question], rows: Sequence[Row], clock: Clock) -> Iterator[None]:
        with torch.inference_mode():
            clock.mark("prepare")
            features = [self._features(question) for question in questions]
            clock.mark("vision")
            embeddings = [self._embeddings(question, found) for question, found in zip(questions, features)]
        for _ in decode(self.loaded.language, embeddings, rows, set(self.loaded.stops)):
            clock.mark("first_token", once=True)
            stop_if_cancelled()
            yield
        clock.mark("decode")

    def _features(self, question: Question) -> List[torch.Tensor]:
        features = []
        for image in question.images:
            features.append(self.loaded.images(self.loaded.preprocess(image)))
            stop_if_cancelled()
        return features

    def _embeddings(self, question: Question, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Text and picture tokens as one sequence (t, hidden), cut where the checkpoint says."""
        ids = torch.tensor(question.ids, device=self.loaded.device)
        embed = self.loaded.language.model.embed_tokens
        # From transformers 5 on, Gemma scales in its embedding layer, which picture tokens do not pass.
        scale = getattr(embed, "embed_scale", None)
        waiting = iter(features if scale is None else [feature * scale.to(feature) for feature in features])
        pieces: List[torch.Tensor] = []
        start = 0
        for place in [*(ids == IMAGE_ID).nonzero().flatten().tolist(), len(ids)]:
            pieces.append(embed(ids[start:place]))
            start = place + 1
            if place < len(ids):
                pieces.append(next(waiting).to(pieces[0].device))
        merged = torch.cat(pieces)
        return merged[: self.loaded.max_length] if features else merged

    def _length(self, question: Question) -> int:
        settings = self.loaded.images.settings
        patches = (self.loaded.images.clip.geometry.positions - 1) * (settings.grid**2 + settings.has_global)
        return len(question.ids) + patches * len(question.images)

    def _answer(self, row: Row, return_ids: bool, timings: Optional[Dict[str, float]]) -> Answer:
        text = answer_text(self.loaded.tokenizer, row.ids)
        if not return_ids and timings is None:
            return text
        answer: Dict[str, Any] = {"text": text, "token_ids": row.ids, "finish_reason": row.finish_reason}
        return answer if timings is None else {**answer, "timings": timings}


class Clock:
    """Seconds between the steps of one call."""

    def __init__(self, began: float) -> None:
        self.last = began
        self.seconds: Dict[str, float] = {}

    def mark(self, step: str, once: bool = False) -> None:
        """The step that ends now."""
        if once and step in self.seconds:
            return
        now = time.perf_counter()
        self.seconds[step] = now - self.last
        self.last = now

    def timings(self, tokens: int) -> Dict[str, float]:
        """{"prepare", "vision", "first_token", "decode", "total"} in seconds and "tokens_per_second" after the first."""
        decode_seconds = self.seconds.get("decode", 0.0)
        rate = (tokens - 1) / decode_seconds if tokens > 1 and decode_seconds > 0 else 0.0
        return {**self.seconds, "total": sum(self.seconds.values()), "tokens_per_second": rate}


def arrange(
    images: Any, prompt: Optional[str], messages: Optional[Messages]
) -> tuple[List[Turn], List[Image.Image]]:
    """Turns and pictures in reading order; `<image>` written in a text is a place for the next picture."""
    marks = text_marks(prompt, messages)
    if not marks:
        turns = parse_messages(images, prompt, messages)
        return turns, pictures(turns)
    turns = parse_messages(None, prompt, messages)
    given = [load_image(value, f"images[{index}]") for index, value in enumerate(as_list(images))]
    if len(given) != marks or pictures(turns):
        raise ValueError(
            f"the text has {IMAGE} {marks} time(s), and {len(given)} image(s) are given beside it"
        )
    return turns, given


def text_marks(prompt: Optional[str], messages: Optional[Messages]) -> int:
    """How often `<image>` is written in the texts."""
    texts: List[Any] = [prompt]
    for message in messages or ():
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = content if isinstance(content, (list, tuple)) else [content]
        texts += [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return sum(text.count(IMAGE) for text in texts if isinstance(text, str))
