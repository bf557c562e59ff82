"""Generation with everything stated: greedy or sampled, seeds, the stop reason, and text while it comes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from orchestrator.worker import cancelled

__all__ = ["Answered", "Clock", "Decoder", "Sampling"]


class Sampling(NamedTuple):
    """How one answer is found; the checks of its numbers are in `Decoder`."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: Optional[float] = None
    top_k: Optional[int] = None
    seed: Optional[int] = None


class Answered(NamedTuple):
    """New tokens only; the end token, where the model produced one, is the last of them."""

    text: str
    token_ids: List[int]
    finish_reason: str


class Clock:
    """When the inputs were ready, the first token came and the last."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.ready = time.perf_counter()
        self.first: Optional[float] = None

    def tick(self) -> None:
        """A token came."""
        if self.first is None:
            self.first = time.perf_counter()

    def timings(self, tokens: int) -> Dict[str, float]:
        """{"prepare", "first_token" (the vision tower and the prompt), "decode", "total"} and "tokens_per_second" after it."""
        now = time.perf_counter()
        first = self.first or now
        decode = now - first
        return {
            "prepare": self.ready - self.began,
            "first_token": first - self.ready,
            "decode": decode,
            "total": now - self.began,
            "tokens_per_second": (tokens - 1) / decode if tokens > 1 and decode > 0 else 0.0,
        }


class Decoder:
    """Runs the library's `generate` for a model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        ends = model.generation_config.eos_token_id
        if ends is None:
            ends = tokenizer.eos_token_id
        self.ends = [ends] if isinstance(ends, int) else list(ends or [])
        pad = model.generation_config.pad_token_id
        self.pad = next(
            (token for token in (pad, tokenizer.pad_token_id, *self.ends) if token is not None), 0
        )

    def run(
        self,
        inputs: Any,
        sampling: Sampling,
        *,
        streamer: Any = None,
        stopped: Callable[[], bool] = cancelled,
        clock: Optional[Clock] = None,
    ) -> List[Answered]:
        """An answer for each row of `inputs`. `stopped` is asked after every token."""
        import torch

        arguments = self._arguments(sampling)
        criteria = _criteria(stopped, clock.tick if clock else None)
        with torch.inference_mode(), _seeded(sampling.seed if sampling.temperature else None):
            rows = self.model.generate(**inputs, **arguments, streamer=streamer, stopping_criteria=criteria)
        prompt = inputs["input_ids"].shape[1]
        return [self._answer(row[prompt:].tolist()) for row in rows]

    def stream(self, inputs: Any, sampling: Sampling) -> Iterator[str]:
        """Pieces that add up to the text of `run`. Closing the iterator ends the generation."""
        left = threading.Event()
        pieces = _Pieces(self.tokenizer)
        failure: List[BaseException] = []

        def work() -> None:
            try:
                self.run(inputs, sampling, streamer=pieces, stopped=left.is_set)
            except BaseException as error:  # raised again where the caller is
                failure.append(error)
            finally:
                pieces.queue.put(None)

        thread = threading.Thread(target=work, name="generate", daemon=True)
        thread.start()
        try:
            for piece in iter(pieces.queue.get, None):
                if cancelled():
                    break
                yield piece
            if failure:
                raise failure[0]
        finally:
            left.set()
            thread.join()

    def shortened(self, answer: Answered, max_new_tokens: int) -> Answered:
        """The greedy answer that a smaller budget would have given."""
        if len(answer.token_ids) <= max_new_tokens:
            return answer
        return self._answer(answer.token_ids[:max_new_tokens])

    def _answer(self, tokens: List[int]) -> Answered:
        """Cut the padding after a row's own end."""
        end = next((index for index, token in enumerate(tokens) if token in self.ends), None)
        tokens = tokens if end is None else tokens[: end + 1]
        return Answered(_text(self.tokenizer, tokens), tokens, "length" if end is None else "stop")

    def _arguments(self, sampling: Sampling) -> Dict[str, Any]:
        budget, temperature, top_p, top_k, _ = sampling
        if budget < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {budget!r}")
        if temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature!r}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be over 0 and at most 1, not {top_p!r}")
        arguments: Dict[str, Any] = {
            "max_new_tokens": budget,
            "do_sample": temperature > 0,
            "pad_token_id": self.pad,
            "eos_token_id": self.ends or None,
        }
        if temperature:
            arguments.update(temperature=float(temperature), top_p=float(top_p or 1.0), top_k=top_k or 0)
        return arguments


@contextlib.contextmanager
def _seeded(seed: Optional[int]) -> Iterator[None]:
    """The same seed gives the same answer, and leaves other calls' randomness alone."""
    import torch

    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


class _Pieces:
    """The library's streamer protocol: tokens in, certain text out into `queue`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.queue: queue.Queue[Optional[str]] = queue.Queue()
        self.prompt_passed = False
        self.tokens: List[int] = []
        self.settled = 0  # tokens before this one are in `said`
        self.window = 0  # and are decoded again from here, for what joins them to the next

    def put(self, value: Any) -> None:
        if not self.prompt_passed:
            self.prompt_passed = True
            return
        self.tokens += value.reshape(-1).tolist()
        self._say(last=False)

    def end(self) -> None:
        self._say(last=True)

    def _say(self, *, last: bool) -> None:
        before = _text(self.tokenizer, self.tokens[self.window : self.settled])
        now = _text(self.tokenizer, self.tokens[self.window :])
        if now.endswith("\ufffd") and not last:
            return  # half a character: the rest is still to come
        if len(now) > len(before):
            self.window, self.settled = self.settled, len(self.tokens)
            self.queue.put(now[len(before) :])


def _text(tokenizer: Any, tokens: List[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _criteria(stopped: Callable[[], bool], tick: Optional[Callable[[], None]]) -> Any:
    """Asked by the library after every token: stop now?"""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stopped(StoppingCriteria):
        def __call__(self, input_ids: Any, *_: Any, **__: Any) -> Any:
            if tick is not None:
                tick()
            return torch.full((input_ids.shape[0],), stopped(), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Stopped()])
