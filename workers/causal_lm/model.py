"""Text generation with any causal language model, whole or streamed. Runs on transformers 4.36 to 5.x."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Union

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

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

from .generation import Generation, Sampling, Until, cut, decode, sow, stops_of

__all__ = ["CausalLM"]

Message = Mapping[str, str]
# Recorded on transformers 5.23.0 (the family's pin); 4.36.2 and 4.39.3 gave the same bits. The text is long enough for a
# lost base of the rotary embeddings to move these logits by 0.5.
SELF_TEST_TEXT = "the cat sat on the mat, and the dog ran after the cat until both were tired. " * 2
SELF_TEST_LOGITS = (
    0.636162, -0.566040, 1.156216, 1.183129, 0.706754, -1.132709,
    0.316452, -1.448140, -0.610783, 1.157187, -0.407454, 0.460288,
)  # fmt: skip
SELF_TEST_IDS = (101, 101, 212, 212, 212, 212, 212, 212)


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
        prompts: Union[str, Sequence[Union[str, Sequence[Message]]]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: Optional[int] = None,
        stop: Union[str, Sequence[str], None] = None,
        batch_size: int = 8,
        chat: Optional[bool] = None,
    ) -> List[str]:
        """One text for each prompt (a string or a list of messages), in their order, computed in padded batches.

        A single string is a list of one. Padding moves logits by rounding errors, so that a text may differ from
        `generate`'s where two tokens are almost equally likely.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
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
        makers = Path(__file__).parent.parent / "tiny_checkpoints" / "llama.py"
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
