"""The two vision towers in plain PyTorch: CLIP's vision transformer and OpenCLIP's ConvNeXt, both without heads.

Parameter names follow the published files, geometry is read off the weights. Nothing here has dropout or stochastic
depth: the original code leaves ConvNeXt's drop path on at inference, which makes its answers differ from run to run.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

import torch
from torch import nn
from torch.nn import functional

__all__ = [
    "ClipGeometry",
    "ClipTower",
    "ConvNeXtGeometry",
    "ConvNeXtTower",
    "clip_geometry",
    "convnext_geometry",
]

Shapes = Mapping[str, Tuple[int, ...]]

CLIP_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}  # width of OpenAI's and LAION's towers: heads
XXLARGE_STEM = 384  # the stem of ConvNeXt-XXLarge, the only published size whose norms have eps 1e-5


class ClipGeometry(NamedTuple):
    """Sizes of a CLIP vision transformer."""

    width: int
    layers: int
    heads: int
    inner: int
    patch: int
    positions: int  # patches and the class token
    activation: str
    eps: float

    @property
    def image_size(self) -> int:
        """Pixels per side that the position embeddings are made for."""
        return round((self.positions - 1) ** 0.5) * self.patch


def clip_geometry(shapes: Shapes, config: Mapping[str, Any]) -> ClipGeometry:
    """From the weights (names without `vision_model.`); heads, activation and eps from the tower's config.json."""
    width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
    vision = config.get("vision_config", config)
    if vision.get("hidden_size", width) != width:
        vision = {}  # of another tower: a hub's cache has one name for all of them
    heads = vision.get("num_attention_heads") or CLIP_HEADS.get(width)
    if not heads or width % heads:
        raise ValueError(
            f"the number of attention heads of a CLIP tower of width {width} is not known: give its folder with "
            "config.json as vision_tower="
        )
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers."))
    return ClipGeometry(
        width=width,
        layers=layers,
        heads=heads,
        inner=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        patch=patch,
        positions=shapes["embeddings.position_embedding.weight"][0],
        activation=vision.get("hidden_act", "quick_gelu"),
        eps=vision.get("layer_norm_eps", 1e-5),
    )


class ClipTower(nn.Module):
    """CLIP's vision transformer up to one hidden state: images (n, 3, s, s) -> (n, 1 + patches, width).

    `select_layer` counts as in transformers' hidden_states: 0 is the embeddings, -1 the last layer's output, -2 the one
    before. Layers behind it are not built (their weights are not needed), and there is no final norm.
    """

    def __init__(self, geometry: ClipGeometry, select_layer: int) -> None:
        super().__init__()
        count = select_layer if select_layer >= 0 else geometry.layers + 1 + select_layer
        if not 0 <= count <= geometry.layers:
            raise ValueError(
                f"mm_vision_select_layer {select_layer} is outside a tower of {geometry.layers} layers"
            )
        self.geometry = geometry
        self.embeddings = ClipEmbeddings(geometry)
        self.pre_layrnorm = nn.LayerNorm(geometry.width, eps=geometry.eps)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(ClipLayer(geometry) for _ in range(count))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Hidden state of the selected layer, the class token first."""
        hidden = self.pre_layrnorm(self.embeddings(images))
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return hidden


class ClipEmbeddings(nn.Module):
    """Patches and the class token, with learned positions."""

    def __init__(self, geometry: ClipGeometry) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(geometry.width))
        self.patch_embedding = nn.Conv2d(3, geometry.width, geometry.patch, geometry.patch, bias=False)
        self.position_embedding = nn.Embedding(geometry.positions, geometry.width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        token = self.class_embedding.expand(images.shape[0], 1, -1)
        return torch.cat([token, patches], dim=1) + self.position_embedding.weight


class ClipLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, geometry: ClipGeometry) -> None:
        super().__init__()
        self.self_attn = ClipAttention(geometry.width, geometry.heads)
        self.layer_norm1 = nn.LayerNorm(geometry.width, eps=geometry.eps)
        self.mlp = ClipMlp(geometry)
        self.layer_norm2 = nn.LayerNorm(geometry.width, eps=geometry.eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class ClipAttention(nn.Module):
    """Full self-attention with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            project(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class ClipMlp(nn.Module):
    """Two linear layers with the activation that the tower's config names."""

    def __init__(self, geometry: ClipGeometry) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[geometry.activation]
        self.fc1 = nn.Linear(geometry.width, geometry.inner)
        self.fc2 = nn.Linear(geometry.inner, geometry.width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activate(self.fc1(hidden)))


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": functional.gelu}


class ConvNeXtGeometry(NamedTuple):
    """Sizes of a ConvNeXt trunk."""

    depths: Tuple[int, ...]
    widths: Tuple[int, ...]
    eps: float


def convnext_geometry(shapes: Shapes, name: str) -> ConvNeXtGeometry:
    """From the weights (names `vision_stem.*`, `vision_stages.*`); eps from the tower's name or the published size."""
    blocks: Dict[int, int] = {}
    for key in shapes:
        parts = key.split(".")
        if parts[0] == "vision_stages" and parts[2] == "blocks":
            blocks[int(parts[1])] = max(blocks.get(int(parts[1]), 0), int(parts[3]) + 1)
    widths: List[int] = [
        shapes[f"vision_stages.{stage}.blocks.0.conv_dw.weight"][0] for stage in sorted(blocks)
    ]
    large = "xxlarge" in name.lower() or widths[0] == XXLARGE_STEM
    return ConvNeXtGeometry(
        tuple(blocks[stage] for stage in sorted(blocks)), tuple(widths), 1e-5 if large else 1e-6
    )


class ConvNeXtTower(nn.Module):
    """ConvNeXt's stages, each brought to the first one's size: (n, 3, s, s) -> (n, sum of widths, s/4, s/4)."""

    def __init__(self, geometry: ConvNeXtGeometry) -> None:
        super().__init__()
        first = geometry.widths[0]
        self.vision_stem = nn.Sequential(nn.Conv2d(3, first, 4, 4), ChannelNorm(first, geometry.eps))
        inputs = (0, *geometry.widths)  # the first stage has no downsampling
        self.vision_stages = nn.ModuleList(
            ConvNeXtStage(before, width, depth, geometry.eps)
            for before, width, depth in zip(inputs, geometry.widths, geometry.depths)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.vision_stem(images)
        outputs = []
        for stage in self.vision_stages:
            hidden = stage(hidden)
            outputs.append(hidden if not outputs else resize(hidden, size=outputs[0].shape[-2:]))
        return torch.cat(outputs, dim=1)


class ConvNeXtStage(nn.Module):
    """Halving (except in the first stage), then residual blocks."""

    def __init__(self, before: int, width: int, depth: int, eps: float) -> None:
        super().__init__()
        halve = [ChannelNorm(before, eps), nn.Conv2d(before, width, 2, 2)] if before else []
        self.downsample = nn.Sequential(*halve)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, eps) for _ in range(depth)))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(hidden))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, then norm and MLP over the channels, scaled by `gamma`, beside a shortcut."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(width, 4 * width)
        self.mlp.fc2 = nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.norm(self.conv_dw(hidden).permute(0, 2, 3, 1))
        inner = self.mlp.fc2(functional.gelu(self.mlp.fc1(inner)))
        return hidden + self.gamma.view(-1, 1, 1) * inner.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (n, c, h, w)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def resize(images: torch.Tensor, **how: Any) -> torch.Tensor:
    """Bilinear without antialiasing, computed in float32 and given back in the images' own dtype."""
    scaled = functional.interpolate(images.float().contiguous(), mode="bilinear", align_corners=False, **how)
    return scaled.to(images.dtype)
