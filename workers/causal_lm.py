"""Text generation with any causal language model, whole or streamed. Runs on transformers 4.36 to 5.x."""

from __future__ import annotations

import copy
import queue
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, StoppingCriteria

from orchestrator.worker import cancelled
from orchestrator.worker.inference import (
    CPU,
    compare,
    dtype_argument,
    map_batches,
    once_more,
    stop_if_cancelled,
)
from orchestrator.worker.tiny import tiny_checkpoint

Message = Mapping[str, str]
# Recorded on transformers 5.23.0 (the family's pin); 4.36.2 and 4.39.3 gave the same bits. The text is long enough for a
# lost base of the rotary embeddings to move these logits by 0.5.
SELF_TEST_TEXT = "the cat sat on the mat, and the dog ran after the cat until both were tired. " * 2
SELF_TEST_LOGITS = (
    0.636162, -0.566040, 1.156216, 1.183129, 0.706754, -1.132709,
    0.316452, -1.448140, -0.610783, 1.157187, -0.407454, 0.460288,
)  # fmt: skip
SELF_TEST_IDS = (101, 101, 212, 212, 212, 212, 212, 212)


class Sampling(NamedTuple):
    """How the next token is chosen, and how many of them at most."""

    new: int
    temperature: float
    top_p: float
    seed: Optional[int]


class CausalLM:
    """Prompts or chats to text.

    A prompt is a user's message when the checkpoint has a chat template, and the beginning of a text when it has none
    or `chat=False`. Decoding is greedy unless `temperature` is above 0, whatever the checkpoint's own
    generation_config says; with a `seed` it can be repeated.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        attention: Optional[str] = None,
        trust_remote_code: bool = False,
    ) -> None:
        arguments = dict(dtype_argument(placement.dtype), trust_remote_code=trust_remote_code)
        if attention is not None:
            arguments["attn_implementation"] = attention
        self.tokenizer = load_tokenizer(checkpoint, trust_remote_code)
        self.model = load_model(checkpoint, placement, arguments).eval()
        self.device = self.model.get_input_embeddings().weight.device
        limit = getattr(self.model.config, "max_position_embeddings", None)
        self.context = int(limit or 1 << 30)
        devices = getattr(self.model, "hf_device_map", None) or {"": self.model.device}
        self.report = {
            "dtype": str(self.model.dtype).replace("torch.", ""),
            "parameters": self.model.num_parameters(),
            "context": self.context,
            "chat": self.tokenizer.chat_template is not None,
            "device_map": {name: str(device) for name, device in devices.items()},
        }

    def generate(
        self,
        prompt: Optional[str] = None,
        messages: Optional[Sequence[Message]] = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: Optional[int] = None,
        stop: Union[str, Sequence[str], None] = None,
        return_ids: bool = False,
        chat: Optional[bool] = None,
    ) -> Any:
        """The text that follows `prompt` or `messages` ([{"role": …, "content": …}, …]).

        `stop`: strings that end the text, themselves left out. With `return_ids`: {"text", "ids" (int64, generated),
        "prompt_ids" (int64), "finish_reason" ("stop" or "length")}.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, seed)

        def answer() -> Any:
            run = self._start(prompt, messages, chat, stop, sampling)
            return run, "".join(run)

        run, text = once_more(answer)
        if not return_ids:
            return text
        ids, prompt_ids = (np.asarray(values, dtype=np.int64) for values in (run.ids, run.prompt_ids))
        return {"text": text, "ids": ids, "prompt_ids": prompt_ids, "finish_reason": run.finish_reason}

    def generate_stream(
        self,
        prompt: Optional[str] = None,
        messages: Optional[Sequence[Message]] = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: Optional[int] = None,
        stop: Union[str, Sequence[str], None] = None,
        chat: Optional[bool] = None,
    ) -> Iterator[str]:
        """The same text as `generate`, in pieces as they come."""
        yield from self._start(
            prompt, messages, chat, stop, Sampling(max_new_tokens, temperature, top_p, seed)
        )

    def generate_batch(
        self,
        prompts: Sequence[Union[str, Sequence[Message]]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: Optional[int] = None,
        stop: Union[str, Sequence[str], None] = None,
        batch_size: int = 8,
        chat: Optional[bool] = None,
    ) -> List[str]:
        """One text for each prompt (a string or a list of messages), in their order, computed in padded batches.

        Padding moves logits by rounding errors, so that a text may differ from `generate`'s where two tokens are
        almost equally likely.
        """
        is_chat = self._is_chat(chat) or any(not isinstance(prompt, str) for prompt in prompts)
        texts = [self._text(prompt, is_chat) for prompt in prompts]
        sampling, stops = Sampling(max_new_tokens, temperature, top_p, seed), stops_of(stop)
        sow(sampling)

        @torch.inference_mode()
        def run(batch: List[str]) -> List[str]:
            tokens = self._tokens(batch, special=not is_chat)
            config, until = self._config(tokens, sampling), [Until(cancelled)]
            rows = self.model.generate(**tokens, generation_config=config, stopping_criteria=until)
            stop_if_cancelled()
            begin = tokens["input_ids"].shape[1]
            return [cut(decode(self.tokenizer, row[begin:].tolist()), stops)[0] for row in rows]

        return map_batches(run, texts, batch_size, length=len, what="prompts")

    @torch.inference_mode()
    def logits(self, text: str, all_positions: bool = False) -> np.ndarray:
        """Logits of the token after `text` (vocabulary,), or after each of its tokens (tokens, vocabulary); float32."""
        tokens = self._tokens([text], special=True)
        values = self.model(**tokens).logits[0].float().cpu().numpy()
        return np.ascontiguousarray(values if all_positions else values[-1])

    def close(self) -> None:
        """Frees the model."""
        del self.model

    @staticmethod
    def self_test() -> Dict[str, Any]:
        """Logits and a greedy continuation of a tiny seeded Llama, held against recorded ones."""
        makers = Path(__file__).parent / "tiny_checkpoints" / "llama.py"
        with tiny_checkpoint(makers, "llama") as folder:
            model = CausalLM(folder, placement=CPU)
            ids = model.generate("the cat", max_new_tokens=8, chat=False, return_ids=True)["ids"]
            got = {"logits": model.logits(SELF_TEST_TEXT), "ids": ids}
        return compare(got, {"logits": SELF_TEST_LOGITS, "ids": SELF_TEST_IDS}, tolerance=1e-4)

    def _start(
        self, prompt: Any, messages: Any, chat: Optional[bool], stop: Any, sampling: Sampling
    ) -> Generation:
        if (prompt is None) == (messages is None):
            raise ValueError("give either a prompt or messages")
        text = self._text(prompt if messages is None else messages, chat)
        tokens = self._tokens([text], special=not self._is_chat(chat, messages))
        config = self._config(tokens, sampling)
        sow(sampling)
        return Generation(self.model, self.tokenizer, tokens, config, stops_of(stop))

    def _is_chat(self, chat: Optional[bool], messages: Any = None) -> bool:
        if messages is not None:
            return True
        return self.tokenizer.chat_template is not None if chat is None else chat

    def _text(self, prompt: Union[str, Sequence[Message], None], chat: Optional[bool]) -> str:
        is_text = isinstance(prompt, str)
        if is_text and not self._is_chat(chat):
            return str(prompt)
        if self.tokenizer.chat_template is None:  # old versions would make one up
            raise ValueError("this checkpoint has no chat template: give a prompt with chat=False")
        messages = (
            [{"role": "user", "content": prompt}] if is_text else [dict(message) for message in prompt or ()]
        )
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def _tokens(self, texts: List[str], special: bool) -> Dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            texts, padding=len(texts) > 1, add_special_tokens=special, return_tensors="pt"
        )
        # Only these two: some tokenizers also return token_type_ids, which generate refuses.
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def _config(self, tokens: Mapping[str, torch.Tensor], sampling: Sampling) -> Any:
        """The checkpoint's generation_config with every value that decides about sampling given explicitly.

        Published configurations sample by default, and transformers 5 fills a value left out from them.
        """
        room = self.context - tokens["input_ids"].shape[1]
        new, drawn = sampling.new, sampling.temperature > 0
        if room < 1 or new < 1:
            raise ValueError(
                f"no room for {new} new tokens: {self.context - room} of {self.context} are taken"
            )
        config = copy.deepcopy(self.model.generation_config)
        config.max_new_tokens, config.max_length = min(new, room), None
        config.num_beams, config.do_sample, config.top_k = 1, drawn, 0 if drawn else 50
        config.temperature = float(sampling.temperature) if drawn else 1.0
        config.top_p = float(sampling.top_p) if drawn else 1.0
        config.pad_token_id = self.tokenizer.pad_token_id
        return config


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


def sow(sampling: Sampling) -> None:
    """Seeds sampling; without a seed afresh, since torch begins every process with the same one."""
    if sampling.temperature > 0:
        torch.seed() if sampling.seed is None else torch.manual_seed(sampling.seed)


def load_tokenizer(checkpoint: str, trust_remote_code: bool) -> Any:
    """The checkpoint's tokenizer, padded on the left; with what transformers 5 saves and 4.x does not find."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "TokenizersBackend" not in str(error):
            raise
        tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    template = Path(checkpoint) / "chat_template.jinja"
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = template.read_text("utf-8")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(checkpoint: str, placement: Any, arguments: Dict[str, Any]) -> Any:
    """The model where the placement says: moved there whole, or spread by accelerate."""
    if placement.device_map == "cpu":
        return AutoModelForCausalLM.from_pretrained(checkpoint, **arguments).to(placement.device)
    limits = {int(name) if str(name).isdigit() else name: size for name, size in placement.max_memory.items()}
    device_map = placement.device_map
    return AutoModelForCausalLM.from_pretrained(
        checkpoint,
        device_map=dict(device_map) if isinstance(device_map, Mapping) else device_map,
        max_memory=limits or None,
        **arguments,
    )
