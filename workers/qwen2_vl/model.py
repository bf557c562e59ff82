"""The worker: one call signature for the vision-language families, here for Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np

from orchestrator.worker.images import parse_messages
from orchestrator.worker.inference import map_batches, once_more, release_memory, stop_if_cancelled

from .decoding import Answered, Clock, Decoder, Sampling
from .loading import load_model
from .processing import Chat, load_processor

__all__ = ["Qwen2VL"]

Messages = Optional[Sequence[Mapping[str, Any]]]
Answer = Union[str, Dict[str, Any]]


class Request(NamedTuple):
    """One conversation of a batch: its turns, the frame rates of its clips, how it is answered, about how long it is."""

    turns: List[Any]
    rates: List[Any]
    sampling: Sampling
    size: int


class Qwen2VL:
    """A Qwen vision-language model.

    Options: `min_pixels`/`max_pixels` bound a picture's area (its tokens are area / 28² or 32²), `video_min_pixels`/
    `video_max_pixels` a clip's, `sample_frames` overrides whether the checkpoint's processor thins out the frames,
    `image_backend` "pil" gives the same pixels on every machine and version, "torchvision" is faster where it works;
    `attn_implementation` goes to the library, `load_in_8bit` or `load_in_4bit` quantize the layers (needs bitsandbytes),
    `quantization_config` holds further settings of its `BitsAndBytesConfig`.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        placement: Any,
        min_pixels: Optional[int] = None,
        max_pixels: Optional[int] = None,
        video_min_pixels: Optional[int] = None,
        video_max_pixels: Optional[int] = None,
        sample_frames: Optional[bool] = None,
        image_backend: str = "pil",
        attn_implementation: Optional[str] = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        quantization_config: Optional[Mapping[str, Any]] = None,
    ) -> None:
        if checkpoint is None:
            raise ValueError(
                "qwen2-vl needs a checkpoint: a folder, hf:Qwen/Qwen2-VL-2B-Instruct or modelscope:…"
            )
        if not isinstance(quantization_config or {}, Mapping):
            raise ValueError(
                f"quantization_config is a mapping of settings, not {quantization_config!r}; bits are load_in_4bit=True or "
                "load_in_8bit=True"
            )
        quantization = dict(quantization_config or {})
        quantization.update({"load_in_8bit": True} if load_in_8bit else {})
        quantization.update({"load_in_4bit": True} if load_in_4bit else {})
        self.model = load_model(
            checkpoint, placement, attn_implementation=attn_implementation, quantization=quantization
        )
        processor = load_processor(
            checkpoint,
            self.model.config.model_type,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            video_min_pixels=video_min_pixels,
            video_max_pixels=video_max_pixels,
            image_backend=image_backend,
        )
        self.chat = Chat(processor, sample_frames=sample_frames)
        self.decoder = Decoder(self.model, processor.tokenizer)
        self.device = next(self.model.parameters()).device
        self.report = _report(self.model, placement, image_backend)

    def generate(
        self,
        images: Any = None,
        prompt: Optional[str] = None,
        messages: Messages = None,
        *,
        videos: Optional[Sequence[Any]] = None,
        video_fps: Any = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: Optional[float] = None,
        top_k: Optional[int] = None,
        seed: Optional[int] = None,
        return_ids: bool = False,
        return_timings: bool = False,
    ) -> Answer:
        """The answer to a prompt or a conversation about pictures and clips.

        `videos` are clips, each a list of pictures or a uint8 array TxHxWx3, `video_fps` how fast their frames go.
        Greedy at temperature 0; otherwise drawn with `seed` from the `top_k` and `top_p` likeliest, from all without.
        A text, or with `return_ids` {"text", "token_ids" (new tokens, the ending one included), "finish_reason" ("stop"
        or "length")}, with `return_timings` also "timings" in seconds.
        """
        began = time.perf_counter()
        turns = parse_messages(images, prompt, messages, videos)
        inputs = self._inputs([turns], video_fps)
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
        clock = Clock(began)
        [answer] = once_more(lambda: self.decoder.run(inputs, sampling, clock=clock))
        stop_if_cancelled()
        return _shaped(answer, return_ids, clock.timings(len(answer.token_ids)) if return_timings else None)

    def generate_stream(
        self,
        images: Any = None,
        prompt: Optional[str] = None,
        messages: Messages = None,
        *,
        videos: Optional[Sequence[Any]] = None,
        video_fps: Any = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: Optional[float] = None,
        top_k: Optional[int] = None,
        seed: Optional[int] = None,
    ) -> Iterator[str]:
        """The same answer in pieces of text, each given out as soon as it is certain."""
        turns = parse_messages(images, prompt, messages, videos)
        inputs = self._inputs([turns], video_fps)
        return self.decoder.stream(inputs, Sampling(max_new_tokens, temperature, top_p, top_k, seed))

    def generate_batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        batch_size: int = 8,
        return_ids: bool = False,
        **options: Any,
    ) -> List[Answer]:
        """Answers to several requests ({"images", "prompt" or "messages", …}), in their order.

        `options` (as for `generate`) hold for all requests; a request's own win. Greedy requests of like length share a
        batch; one that samples runs by itself, so that its seed means the same as alone.
        """
        parsed = [self._request(request, index, options) for index, request in enumerate(requests)]
        rows: List[Any] = [None] * len(parsed)
        greedy = [index for index, request in enumerate(parsed) if not request.sampling.temperature]
        found = map_batches(
            lambda batch: self._answers([parsed[index] for index in batch]),
            greedy,
            batch_size,
            length=lambda index: parsed[index].size,
            what="requests",
        )
        for index, answer in zip(greedy, found):
            rows[index] = answer
        for index, request in enumerate(parsed):
            if rows[index] is None:
                rows[index] = self._answers([request])[0]
        return [_shaped(row, return_ids, None) for row in rows]

    def forward(
        self,
        images: Any = None,
        prompt: Optional[str] = None,
        messages: Messages = None,
        *,
        videos: Optional[Sequence[Any]] = None,
        video_fps: Any = None,
    ) -> Dict[str, Any]:
        """One pass without generating.

        {"prompt": the text before its placeholders are multiplied, "input_ids": int64 (tokens,), "logits": float32
        (tokens, vocabulary), "image_features": a float32 array (tokens, hidden) for each picture}.
        """
        import torch

        turns = parse_messages(images, prompt, messages, videos)
        inputs = self._inputs([turns], video_fps)
        seen: List[Any] = []
        tower = _tower(self.model)
        hook = tower.register_forward_hook(lambda _, __, output: seen.append(_features(output)))

        def run() -> Any:
            seen.clear()
            return self.model(**inputs, **self._positions(inputs), use_cache=False).logits[0]

        try:
            with torch.inference_mode():
                logits = once_more(run)
        finally:
            hook.remove()
        pictures = seen[0] if "pixel_values" in inputs else None
        return {
            "prompt": self.chat.text(turns),
            "input_ids": inputs["input_ids"][0].cpu().numpy().astype(np.int64),
            "logits": logits.float().cpu().numpy(),
            "image_features": self._split(pictures, inputs),
        }

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Tiny checkpoints of the three generations against recorded numbers: {"ok", "max_abs", "tolerance", …}."""
        from .selftest import run

        return run(cls, Path(__file__).resolve().parent.parent / "tiny_checkpoints" / "qwen2_vl.py")

    def close(self) -> None:
        """Give the memory back."""
        del self.model, self.decoder, self.chat
        release_memory()

    def _inputs(self, chats: Sequence[Any], video_fps: Any = None) -> Any:
        return self.chat.inputs(chats, video_fps).to(self.device)

    def _request(self, request: Mapping[str, Any], index: int, shared: Mapping[str, Any]) -> Request:
        if not isinstance(request, Mapping):
            raise ValueError(f"requests[{index}] is a {type(request).__name__}, not a mapping")
        content = ("images", "prompt", "messages", "videos")
        try:
            options = {**shared, **{key: value for key, value in request.items() if key not in content}}
            turns = parse_messages(*(request.get(key) for key in content))
            rates = options.pop("video_fps", None)
            clips = sum(part["type"] == "video" for turn in turns for part in turn["content"])
            every = list(rates) if isinstance(rates, (list, tuple)) else [rates] * clips
            return Request(turns, every, Sampling(**options), _size(turns))
        except (ValueError, TypeError, OSError) as error:
            raise type(error)(f"requests[{index}]: {error}") from error

    def _answers(self, requests: Sequence[Request]) -> List[Answered]:
        """Answers to a batch, all of it greedy or a single request; the longest budget rules, and answers are cut to theirs."""
        rates = [rate for request in requests for rate in request.rates]
        inputs = self._inputs([request.turns for request in requests], rates)
        budget = max(request.sampling.max_new_tokens for request in requests)
        answers = self.decoder.run(inputs, requests[0].sampling._replace(max_new_tokens=budget))
        stop_if_cancelled()
        pairs = zip(answers, requests)
        return [self.decoder.shortened(answer, request.sampling.max_new_tokens) for answer, request in pairs]

    def _positions(self, inputs: Any) -> Dict[str, Any]:
        """4.45's bare forward does not make the three-dimensional positions that its generate makes."""
        if not hasattr(self.model, "get_rope_index") or hasattr(
            getattr(self.model, "model", None), "get_rope_index"
        ):
            return {}
        grids = [inputs.get("image_grid_thw"), inputs.get("video_grid_thw")]
        return {
            "position_ids": self.model.get_rope_index(inputs["input_ids"], *grids, inputs["attention_mask"])[
                0
            ]
        }

    def _split(self, features: Any, inputs: Any) -> List[np.ndarray]:
        if features is None:
            return []
        merge = self.chat.processor.image_processor.merge_size
        counts = (inputs["image_grid_thw"].prod(-1) // merge**2).tolist()
        return [part.float().cpu().numpy() for part in features.split(counts)]


def _tower(model: Any) -> Any:
    """The vision tower: `model.visual` from 4.52 on, `visual` of the outer class before."""
    inner = getattr(model, "model", None)
    return inner.visual if hasattr(inner, "visual") else model.visual


def _features(output: Any) -> Any:
    """What replaces the placeholders: a tensor (4.x), the first of a tuple (Qwen3-VL), or `pooler_output` (5.x)."""
    if hasattr(output, "pooler_output"):
        return output.pooler_output
    return output[0] if isinstance(output, (tuple, list)) else output


def _size(turns: Sequence[Mapping[str, Any]]) -> int:
    """About how many tokens a conversation has: a picture has one for each 28 x 28 pixels, a text one for four letters."""
    size = 0
    for part in (part for turn in turns for part in turn["content"]):
        if part["type"] == "text":
            size += len(part["text"]) // 4
        else:
            frames = [part["image"]] if part["type"] == "image" else part["video"]
            size += sum(frame.width * frame.height for frame in frames) // 784
    return size


def _shaped(answer: Answered, return_ids: bool, timings: Optional[Dict[str, float]]) -> Answer:
    if not return_ids and timings is None:
        return answer.text
    shaped = {"text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason}
    return shaped if timings is None else {**shaped, "timings": timings}


def _report(model: Any, placement: Any, image_backend: str) -> Dict[str, Any]:
    """What the load tells: the map, the dtype, the size, and which backend reads pictures."""
    import transformers

    device_map = getattr(model, "hf_device_map", None) or {"": placement.device}
    return {
        "model_type": model.config.model_type,
        "transformers": transformers.__version__,
        "dtype": str(next(model.parameters()).dtype).replace("torch.", ""),
        "device_map": {name: str(device) for name, device in device_map.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_backend": image_backend,
    }
