"""The library's Qwen processors, put together without torchvision and with the PIL backend for pictures on every version.

PIL and torchvision resize by slightly different numbers (one 8-bit step, 0.015 after normalising), so which of the two
runs must not depend on what happens to be installed.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

from orchestrator.worker.inference import version_of

from .videos import VideoFrames

__all__ = ["Chat", "load_processor", "read_chat_template"]

_PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "qwen3_vl_moe": "Qwen3VLProcessor",
}
_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load_processor(
    checkpoint: str,
    model_type: str,
    *,
    min_pixels: Optional[int] = None,
    max_pixels: Optional[int] = None,
    video_min_pixels: Optional[int] = None,
    video_max_pixels: Optional[int] = None,
    image_backend: str = "pil",
) -> Any:
    """A processor of the library for `checkpoint` whose pictures go through PIL and whose videos through `VideoFrames`.

    `image_backend` "torchvision" is faster where torchvision works, and gives slightly other numbers.
    """
    import transformers

    if image_backend not in ("pil", "torchvision"):
        raise ValueError(f"image_backend is 'pil' or 'torchvision', not {image_backend!r}")
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    limits = {key: value for key, value in limits.items() if value is not None}
    new = version_of(transformers) >= (5, 0)
    backend: Dict[str, Any] = {"backend": image_backend} if new else {"use_fast": image_backend != "pil"}
    images = transformers.AutoImageProcessor.from_pretrained(
        checkpoint, local_files_only=True, **backend, **limits
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    tokenizer.padding_side = "left"
    library = getattr(transformers, _PROCESSORS[model_type])
    template = read_chat_template(checkpoint, tokenizer)
    if version_of(transformers) < (
        4,
        52,
    ):  # videos still went through the image processor, and so through PIL
        return library(image_processor=images, tokenizer=tokenizer, chat_template=template)
    limits = {"min_pixels": video_min_pixels, "max_pixels": video_max_pixels}
    videos = VideoFrames(
        {**_video_config(checkpoint), **{key: value for key, value in limits.items() if value is not None}},
        qwen3=model_type.startswith("qwen3"),
    )

    class WithoutTorchvision(library):  # type: ignore[misc, valid-type]
        """The library's processor; its check would refuse a video processor that is not the library's own."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return type(argument)
            return super().check_argument_for_proper_class(argument_name, argument)

    return WithoutTorchvision(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=template
    )


class Chat:
    """Turns to model inputs: the chat template, the pictures, the video frames."""

    def __init__(self, processor: Any, *, sample_frames: Optional[bool] = None) -> None:
        self.processor = processor
        self.sample_frames = sample_frames

    def text(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """The prompt, with one `<|image_pad|>` or `<|video_pad|>` for each picture or clip.

        Raises ValueError when the user's own words hold such a placeholder: it would be taken for a picture.
        """
        plain = [{"role": turn["role"], "content": _without_media(turn["content"])} for turn in turns]
        prompt: str = self.processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        for kind in ("image", "video"):
            wanted = sum(part["type"] == kind for turn in turns for part in turn["content"])
            found = prompt.count(f"<|{kind}_pad|>")
            if found != wanted:
                raise ValueError(
                    f"the prompt holds <|{kind}_pad|> {found} times for {wanted} {kind}(s): the words of a message "
                    "may not contain it, and the checkpoint's chat template must write it"
                )
        return prompt

    def inputs(self, chats: Sequence[Sequence[Mapping[str, Any]]], video_fps: Any = None) -> Any:
        """The tensors of one or several chats, padded on the left: every key that the processor of this version makes."""
        parts = [part for turns in chats for turn in turns for part in turn["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        # 4.45 does not repeat the last frame of an odd clip by itself; later versions do, after the time stamps
        even = not hasattr(self.processor, "video_processor")
        videos = [_stack(part["video"], even) for part in parts if part["type"] == "video"]
        kwargs: Dict[str, Any] = self._video_arguments(videos, video_fps) if videos else {}
        return self.processor(
            text=[self.text(turns) for turns in chats],  # a new list each time: 4.45 writes into it
            images=images or None,
            videos=videos or None,
            padding=True,
            return_tensors="pt",
            **kwargs,
        )

    def _video_arguments(self, videos: Sequence[Any], video_fps: Any) -> Dict[str, Any]:
        rates = list(video_fps) if isinstance(video_fps, (list, tuple)) else [video_fps] * len(videos)
        if len(rates) != len(videos):
            raise ValueError(f"video_fps holds {len(rates)} rates for {len(videos)} videos")
        if not hasattr(self.processor, "video_processor"):
            return {}
        about = [{"fps": rate, "total_num_frames": len(clip)} for rate, clip in zip(rates, videos)]
        arguments: Dict[str, Any] = {"video_metadata": about, "do_sample_frames": self.sample_frames}
        import transformers

        if version_of(transformers) < (5, 0) and all(rate is not None for rate in rates):
            arguments["fps"] = rates  # there Qwen2.5-VL reads the rate from here, not from the metadata
        return {"videos_kwargs": arguments}


def read_chat_template(checkpoint: str, tokenizer: Any) -> str:
    """The checkpoint's chat template: chat_template.jinja, chat_template.json, the tokenizer's, else ChatML."""
    for name in ("chat_template.jinja", "chat_template.json"):
        path = os.path.join(checkpoint, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                text = file.read()
            return str(json.loads(text)["chat_template"]) if name.endswith(".json") else text
    return str(getattr(tokenizer, "chat_template", None) or _PLAIN_TEMPLATE)


def _video_config(checkpoint: str) -> Dict[str, Any]:
    """As the library looks for it: inside processor_config.json, in a file of its own, in the image processor's."""
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        path = os.path.join(checkpoint, name)
        if not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8") as file:
            config: Dict[str, Any] = json.load(file)
        if name == "processor_config.json":
            if "video_processor" not in config:
                continue
            config = config["video_processor"]
        return config
    return {}


def _without_media(parts: Sequence[Mapping[str, Any]]) -> Any:
    """Parts for the template; a lone text goes as a plain string, which every template takes."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return [dict(part) if part["type"] == "text" else {"type": part["type"]} for part in parts]


def _stack(frames: Sequence[Any], even: bool) -> np.ndarray:
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise ValueError(
            f"the frames of a video must have one size; there are {sorted(sizes) or 'no frames'}"
        )
    arrays: List[np.ndarray] = [np.asarray(frame) for frame in frames]
    if even and len(arrays) % 2:
        arrays.append(arrays[-1])
    return np.stack(arrays)
