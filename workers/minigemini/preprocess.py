"""Pictures to pixels for both towers, as CLIP's image processor of transformers 4.36 makes them.

Written out here because that class changes between versions (from 5.x on it wants torchvision and resizes otherwise).
"""

from __future__ import annotations

import math
from typing import Any, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

__all__ = ["Pixels", "Preprocessor"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # PIL's number, as preprocessor_config.json has it


class Pixels(NamedTuple):
    """One picture, normalised, float32."""

    views: (
        torch.Tensor
    )  # (v, 3, s, s) for CLIP: the picture, or in HD its tiles row by row and then the whole
    detail: torch.Tensor  # (1, 3, d, d) for ConvNeXt


class Preprocessor:
    """Pictures to pixels.

    `config` is the CLIP folder's preprocessor_config.json (may be empty), `view` CLIP's pixels per side where that file
    does not say, `detail` ConvNeXt's; `pad` fills up to a square first; `grid` > 1 cuts tiles, `whole` adds the picture.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        view: int,
        detail: int,
        pad: bool,
        grid: int = 1,
        whole: bool = False,
    ) -> None:
        self.view = side_length(config.get("crop_size")) or view
        self.detail = detail
        self.pad = pad
        self.grid = grid
        self.whole = whole
        self.mean = tuple(config.get("image_mean") or CLIP_MEAN)
        self.std = tuple(config.get("image_std") or CLIP_STD)
        self.resample = config.get("resample", BICUBIC)
        self.scale = config.get("rescale_factor", 1 / 255)

    def __call__(self, image: Image.Image) -> Pixels:
        """Pixels of one RGB picture."""
        if self.pad:
            image = pad_to_square(image, tuple(int(value * 255) for value in self.mean))
        resized = resize_shortest(image, self.detail, self.resample)
        detail = torch.from_numpy(self.normalise(centre_crop(np.asarray(resized), self.detail))).unsqueeze(0)
        return Pixels(self.views(detail), detail)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) to float32 (3, h, w)."""
        scaled = (pixels * self.scale).astype(np.float32)
        scaled = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def views(self, detail: torch.Tensor) -> torch.Tensor:
        """What CLIP sees: the normalised detail picture made smaller, without antialiasing."""
        large = shrink(detail, self.view * self.grid)
        if self.grid == 1:
            return large
        cut = large[0].unflatten(1, (self.grid, self.view)).unflatten(3, (self.grid, self.view))
        views = cut.permute(1, 3, 0, 2, 4).flatten(0, 1)
        return torch.cat([views, shrink(large, self.view)]) if self.whole else views


def shrink(images: torch.Tensor, side: int) -> torch.Tensor:
    """Bilinear, without antialiasing, to side x side."""
    return functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def pad_to_square(image: Image.Image, colour: Tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of `colour` (rounded up and left by half a pixel)."""
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def resize_shortest(image: Image.Image, side: int, resample: int) -> Image.Image:
    """The shorter edge becomes `side`, the longer one follows, rounded down."""
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    return image.resize(size, resample=resample)  # type: ignore[arg-type]


def centre_crop(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle side x side pixels of (h, w, 3)."""
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def side_length(size: Optional[Any]) -> Optional[int]:
    """Pixels per side from 336, {"height": 336, "width": 336} or {"shortest_edge": 336}."""
    if size is None:
        return None
    if isinstance(size, Mapping):
        return int(size.get("shortest_edge") or size["height"])
    return math.floor(size)
