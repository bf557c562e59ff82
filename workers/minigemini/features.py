"""From pictures to the tokens that the language model reads: both towers, patch info mining and the projector."""

from __future__ import annotations

from typing import List, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import nn

from .preprocess import Pixels
from .towers import ClipGeometry, ClipTower, ConvNeXtGeometry, ConvNeXtTower, resize

__all__ = ["ImageTokens", "Settings", "projector_shapes"]


class Settings(NamedTuple):
    """What config.json says about the way from pictures to tokens."""

    select_layer: int
    grid: int  # 1, or the number of tiles per side in HD
    has_global: bool  # HD: the whole picture before its tiles


class ImageTokens(nn.Module):
    """Pictures to tokens. Submodules carry the checkpoint's names (`vlm_uni_*`, `mm_projector`)."""

    def __init__(
        self,
        clip: ClipGeometry,
        convnext: ConvNeXtGeometry,
        projector: Sequence[Tuple[int, int]],
        settings: Settings,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.clip = ClipTower(clip, settings.select_layer)
        self.convnext = ConvNeXtTower(convnext)
        width, detail = clip.width, sum(convnext.widths)
        self.vlm_uni_query_projector = norm_and_linear(width, width)
        self.vlm_uni_aux_projector = norm_and_linear(detail, width)
        self.vlm_uni_val_projector = norm_and_linear(detail, width)
        layers: List[nn.Module] = []
        for rows, columns in projector:
            layers += [nn.GELU()] if layers else []
            layers.append(nn.Linear(columns, rows))
        self.mm_projector = nn.Sequential(*layers)

    def forward(self, pixels: Pixels) -> torch.Tensor:
        """Tokens (tokens, hidden) of one picture.

        With tiles, the order is the whole picture's tokens, then tile after tile, row by row.
        """
        parameter = self.mm_projector[0].weight
        views = pixels.views.to(parameter.device, parameter.dtype)
        coarse = self.clip(views)[:, 1:]  # without the class token
        fine = self.convnext(pixels.detail.to(parameter.device, parameter.dtype)).to(coarse.dtype)
        maps = tiles(fine, self.settings.grid)
        order = list(range(len(maps)))
        if self.settings.has_global:
            maps.append(resize(fine, scale_factor=1 / self.settings.grid))
            order.insert(0, len(order))
        mined = [coarse[index] + self.mine(coarse[index], maps[index]) for index in order]
        return self.mm_projector(torch.cat(mined))

    def mine(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Patch info mining: every patch of `coarse` (n, width) attends to its own square of `fine` (1, detail, p, p)."""
        side = int(coarse.shape[0] ** 0.5)
        squares = patch_squares(fine, side)
        query = self.vlm_uni_query_projector(coarse).unsqueeze(1)
        key = self.vlm_uni_aux_projector(squares)
        value = self.vlm_uni_val_projector(squares)
        # The keys are scaled before the product, as in training: in float16 the order decides about overflow.
        scores = (query @ (key.transpose(-1, -2) / key.shape[-1] ** 0.5)).nan_to_num()
        return (scores.softmax(-1) @ value).squeeze(1)


def norm_and_linear(columns: int, rows: int) -> nn.Sequential:
    """The shape of the three `vlm_uni` projectors."""
    return nn.Sequential(nn.LayerNorm(columns), nn.Linear(columns, rows))


def tiles(fine: torch.Tensor, grid: int) -> List[torch.Tensor]:
    """Cut (1, c, p, p) into grid x grid squares, row by row."""
    if grid == 1:
        return [fine]
    return [tile for row in fine.chunk(grid, dim=2) for tile in row.chunk(grid, dim=3)]


def patch_squares(fine: torch.Tensor, side: int) -> torch.Tensor:
    """(1, c, p, p) to (side * side, s * s, c) with s = p // side: patches row by row, pixels in them row by row."""
    square = fine.shape[-1] // side
    cut = fine[0].permute(1, 2, 0).unflatten(0, (side, square)).unflatten(2, (side, square))
    return cut.transpose(1, 2).flatten(2, 3).flatten(0, 1).contiguous()


def projector_shapes(shapes: Mapping[str, Tuple[int, ...]]) -> List[Tuple[int, int]]:
    """(rows, columns) of the projector's linear layers; `shapes` has names such as `0.weight` and `2.weight`."""
    weights = sorted(
        (int(name.split(".")[0]), shape) for name, shape in shapes.items() if name.endswith(".weight")
    )
    return [(shape[0], shape[1]) for _, shape in weights]
