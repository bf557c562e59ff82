"""Pictures inside the page: files as they are, arrays as PNG. No imaging library is needed for it."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.workflow.values import File

__all__ = ["Pictures", "png"]

LARGEST = 4_000_000  # bytes of one picture that are put into the page
ALL = 48_000_000  # bytes of all
EDGE = 640  # pixels of an array's longer side
_KINDS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"BM", "bmp"))


class Pictures:
    """The pictures of a page, as long as there is room in it: each content is in it once, however often it is shown."""

    def __init__(self) -> None:
        self.room = ALL
        self.images: dict[bytes, tuple[str, str]] = {}
        """By the digest of the content: the picture's name in the page, and its `data:` address."""

    def name(self, value: Any) -> str | None:
        """The picture's name in the page; None where it is none, too large, or of a kind that browsers do not show."""
        data = self._bytes(value)
        kind = None if data is None else _kind(data)
        if data is None or kind is None:
            return None
        digest = hashlib.blake2b(data, digest_size=20).digest()
        if digest not in self.images:
            if len(data) > min(LARGEST, self.room):
                return None
            self.room -= len(data)
            address = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
            self.images[digest] = (f"picture-{len(self.images)}", address)
        return self.images[digest][0]

    def definitions(self) -> str:
        """An SVG that shows nothing and holds every picture, for `<use>`; each fills the place where it is used."""
        if not self.images:
            return ""
        images = "".join(
            f'<image id="{name}" href="{address}" width="100%" height="100%" preserveAspectRatio="xMidYMid slice"/>'
            for name, address in self.images.values()
        )
        return f'<svg class="pictures" aria-hidden="true" width="0" height="0"><defs>{images}</defs></svg>'

    def _bytes(self, value: Any) -> bytes | None:
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        if isinstance(value, np.ndarray):
            return png(value) if _is_picture(value) else None
        if not isinstance(value, (File, str, Path)) or not str(value):
            return None
        path = Path(str(value))
        try:
            small = path.is_file() and path.stat().st_size <= LARGEST
            return path.read_bytes() if small else None
        except (OSError, ValueError):
            return None


def png(array: np.ndarray[Any, Any]) -> bytes:
    """An array of height x width, or height x width x 1, 3 or 4, of uint8, as a PNG; large ones are thinned out."""
    pixels = array if array.ndim == 3 else array[:, :, None]
    step = max(1, -(-max(pixels.shape[:2]) // EDGE))
    pixels = np.ascontiguousarray(pixels[::step, ::step])
    height, width, channels = pixels.shape
    color = {1: 0, 3: 2, 4: 6}[channels]
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return _KINDS[0][0] + b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        for tag, data in parts
    )


def _is_picture(array: np.ndarray[Any, Any]) -> bool:
    shape = array.shape
    right = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    return array.dtype == np.uint8 and right and shape[0] > 0 and shape[1] > 0


def _kind(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((kind for magic, kind in _KINDS if data.startswith(magic)), None)
