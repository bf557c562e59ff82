"""Pictures and chat messages as the vision-language families take them: one reading for all, with errors that say where.

Needs Pillow and numpy when it is called, nothing when it is imported.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

__all__ = ["ROLES", "Part", "Turn", "as_list", "load_image", "parse_messages", "pictures"]

ROLES = ("system", "user", "assistant")

Part = Dict[str, Any]
"""{"type": "text", "text": str}, {"type": "image", "image": PIL image} or {"type": "video", "video": [PIL images]}."""

Turn = Dict[str, Any]
"""{"role": one of ROLES, "content": [Part, …]}."""


def load_image(value: Any, what: str = "image") -> Any:
    """An RGB PIL image from a PIL image, a uint8 array HxWx3 (or HxW), a path, the bytes of a file or a data URL.

    `what` names the value in errors. Raises ValueError for what cannot be read, FileNotFoundError for a missing file.
    """
    from PIL import Image

    if isinstance(value, Image.Image):
        return _decode(value.convert, what, "RGB")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _open(io.BytesIO(bytes(value)), what)
    if isinstance(value, (str, os.PathLike)):
        return _from_text(os.fspath(value), what)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _from_array(value, what)
    raise ValueError(
        f"{what} is a {type(value).__name__}; give a PIL image, a uint8 array HxWx3, a path, bytes or a data URL"
    )


def parse_messages(
    images: Any = None,
    prompt: Optional[str] = None,
    messages: Optional[Sequence[Mapping[str, Any]]] = None,
    videos: Optional[Sequence[Any]] = None,
) -> List[Turn]:
    """Turns with their pictures in place, from `prompt` or `messages` and the images given beside them.

    Image parts without a picture of their own are filled from `images` in order; otherwise `images` (and `videos`, each
    a sequence of frames) stand before the first user message. Raises ValueError for an unknown role, an empty
    conversation, an unreadable part, or a count of images that does not match.
    """
    if (prompt is None) == (messages is None):
        raise ValueError("give either prompt= or messages=" + (", not both" if prompt is not None else ""))
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"prompt is a {type(prompt).__name__}, not a text")
    given = [load_image(value, f"images[{index}]") for index, value in enumerate(as_list(images))]
    turns = (
        [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        if messages is None
        else [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    )
    if not any(turn["role"] == "user" for turn in turns):
        raise ValueError("messages hold no user message")
    clips = [_frames(clip, f"videos[{index}]") for index, clip in enumerate(videos or ())]
    _place(turns, given, [{"type": "video", "video": clip} for clip in clips])
    return turns


def pictures(turns: Sequence[Turn]) -> List[Any]:
    """The images of all turns in reading order."""
    return [part["image"] for turn in turns for part in turn["content"] if part["type"] == "image"]


def as_list(values: Any) -> List[Any]:
    """None, one value, or several, as a list; a 4-dimensional array is a list of pictures."""
    if values is None:
        return []
    return list(values) if isinstance(values, (list, tuple)) or getattr(values, "ndim", 0) == 4 else [values]


def _from_text(text: str, what: str) -> Any:
    if text.startswith("data:"):
        header, comma, body = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ValueError(f"{what}: only data URLs in base64 are read (data:image/png;base64,…)")
        try:
            return _open(io.BytesIO(base64.b64decode(body, validate=True)), what)
        except binascii.Error as error:
            raise ValueError(f"{what}: the data URL is not base64: {error}") from None
    if text.startswith(("http://", "https://")):
        raise ValueError(f"{what}: {text} is on the network; fetch it first and give a path or the bytes")
    if not os.path.isfile(text):
        raise FileNotFoundError(f"{what}: there is no file {text}")
    return _open(text, what)


def _from_array(array: Any, what: str) -> Any:
    import numpy as np
    from PIL import Image

    array = np.asarray(array)
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise ValueError(
            f"{what} is a {array.dtype} array of shape {array.shape}; a picture is uint8, HxWx3 or HxW"
        )
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _open(source: Union[str, io.BytesIO], what: str) -> Any:
    from PIL import Image

    where = f"{what} ({source})" if isinstance(source, str) else what

    def decode() -> Any:
        with Image.open(source) as image:
            return image.convert("RGB")

    return _decode(decode, where)


def _decode(convert: Any, where: str, *arguments: Any) -> Any:
    """Pillow raises OSError, SyntaxError, struct.error and more for broken files: all mean the same to the caller."""
    try:
        return convert(*arguments)
    except Exception as error:
        raise ValueError(f"{where} cannot be read as an image: {error}") from error


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise ValueError(f"{where} is not a mapping with 'role' and 'content'")
    if message["role"] not in ROLES:
        raise ValueError(f"{where} has the role {message['role']!r}; roles are {', '.join(ROLES)}")
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"{where}: content is a {type(content).__name__}; it is a text or a list of parts")
    parts = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    if message["role"] != "user" and any(part["type"] != "text" for part in parts):
        raise ValueError(f"{where}: only user messages hold pictures")
    return {"role": message["role"], "content": parts}


def _part(part: Any, where: str) -> Part:
    """One content part; {"type": "image_url", "image_url": {"url": …}} is what OpenAI's clients send."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "image_url"):
        source = next(
            (part[key] for key in ("image", "image_url", "url", "path", "data") if part.get(key) is not None),
            None,
        )
        source = source.get("url") if isinstance(source, Mapping) else source
        return {"type": "image", "image": None if source is None else load_image(source, where)}
    if kind == "video" and part.get("video") is not None:
        return {"type": "video", "video": _frames(part["video"], where)}
    raise ValueError(
        f"{where} is not a part: text (with 'text'), image (with 'image') or video (with 'video', its frames)"
    )


def _frames(clip: Any, where: str) -> List[Any]:
    if isinstance(clip, (str, bytes, os.PathLike)):
        raise ValueError(
            f"{where}: give the frames of a video (images, or a uint8 array TxHxWx3), not a file"
        )
    return [load_image(frame, f"{where}[{index}]") for index, frame in enumerate(as_list(clip))]


def _place(turns: Sequence[Turn], given: Sequence[Any], clips: Sequence[Part]) -> None:
    """Put the images given beside the messages where they belong (in place)."""
    open_places = [
        part
        for turn in turns
        for part in turn["content"]
        if part["type"] == "image" and part["image"] is None
    ]
    if open_places:
        if len(open_places) != len(given):
            raise ValueError(
                f"the messages leave {len(open_places)} image(s) open, and {len(given)} image(s) are given"
            )
        for place, image in zip(open_places, given):
            place["image"] = image
        given = ()
    first = next(turn for turn in turns if turn["role"] == "user")
    first["content"][:0] = [{"type": "image", "image": image} for image in given] + list(clips)
