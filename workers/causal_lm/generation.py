"""One running generation: how tokens are chosen, the text as it comes, and where it stops."""

from __future__ import annotations

import queue
import threading
from typing import Any, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

import torch
from transformers import StoppingCriteria

from orchestrator.worker.inference import stop_if_cancelled

__all__ = ["Generation", "Sampling", "Until", "cut", "decode", "sow", "stops_of"]


class Sampling(NamedTuple):
    """How the next token is chosen, and how many of them at most."""

    new: int
    temperature: float
    top_p: float
    seed: Optional[int]


def sow(sampling: Sampling) -> None:
    """Seeds sampling; without a seed afresh, since torch begins every process with the same one."""
    if sampling.temperature > 0:
        torch.seed() if sampling.seed is None else torch.manual_seed(sampling.seed)


class Generation:
    """One running generation: iterating gives the text in pieces; `ids` and `finish_reason` fill as it goes.

    The model runs in a thread of its own and is stopped, at the next token, when the iterator is closed or the call
    is cancelled.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tokens: Mapping[str, torch.Tensor],
        config: Any,
        stops: Sequence[str],
    ) -> None:
        self.model, self.tokenizer, self.tokens, self.config, self.stops = (
            model,
            tokenizer,
            tokens,
            config,
            stops,
        )
        self.prompt_ids: List[int] = tokens["input_ids"][0].tolist()
        self.ids: List[int] = []
        self.finish_reason = "length"

    def __iter__(self) -> Iterator[str]:
        told = 0
        text = ""
        for token in self._ids():
            self.ids.append(token)
            text, stopped = cut(decode(self.tokenizer, self.ids), self.stops)
            if stopped:
                self.finish_reason = "stop"
                break
            ready = len(text) - held_back(text, self.stops)
            if ready > told:
                yield text[told:ready]
                told = ready
        if self.ids and self.ids[-1] in ends_of(self.config):
            self.finish_reason = "stop"
        if len(text) > told:
            yield text[told:]

    def _ids(self) -> Iterator[int]:
        """The ids as the model gives them, up to its end or ours."""
        news: queue.Queue[Any] = queue.Queue()
        halt = threading.Event()
        thread = threading.Thread(target=self._run, args=(news, halt), name="generation", daemon=True)
        thread.start()
        try:
            while True:
                item = news.get()
                stop_if_cancelled()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            halt.set()
            thread.join()

    def _run(self, news: queue.Queue[Any], halt: threading.Event) -> None:
        try:
            with torch.inference_mode():
                self.model.generate(
                    **self.tokens,
                    generation_config=self.config,
                    stopping_criteria=[Until(halt.is_set)],
                    streamer=Streamer(news),
                )
            news.put(None)
        except BaseException as error:
            news.put(error)


class Streamer:
    """Passes ids on; the first thing that generate puts is the prompt."""

    def __init__(self, news: queue.Queue[Any]) -> None:
        self.news = news
        self.prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt:
            for token in value.reshape(-1).tolist():
                self.news.put(token)
        self.prompt = False

    def end(self) -> None:
        """The end is told when generate has returned."""


class Until(StoppingCriteria):
    """Stops all rows when `halted()` is true."""

    def __init__(self, halted: Any) -> None:
        self.halted = halted

    def __call__(self, *_: Any, **__: Any) -> bool:
        return bool(self.halted())

    def __deepcopy__(self, memo: Any) -> Until:
        return self  # transformers copies criteria; an event cannot be copied and must not be


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first stop string, and whether there was one."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many last characters may yet change or turn out to begin a stop string."""
    held = len(text) - len(text.rstrip("\ufffd"))  # a character whose bytes are not all there
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:size]):
                held = size
                break
    return held


def stops_of(stop: Union[str, Sequence[str], None]) -> List[str]:
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if "" in stops:
        raise ValueError("a stop string cannot be empty")
    return stops


def ends_of(config: Any) -> List[int]:
    ends = config.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
