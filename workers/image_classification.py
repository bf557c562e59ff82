"""ImageNet labels for photos with MobileNetV2, from torchvision's published weights and without torchvision."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from orchestrator.worker.images import as_list, load_image
from orchestrator.worker.inference import compare, map_batches, torch_dtype

RESIZE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Stages of MobileNetV2: expansion, channels, blocks, stride of the first one.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Recorded on torch 2.13.0: the first logits of the seeded model for the seeded picture.
SELF_TEST_LOGITS = (
    -2.1247168,
    -3.5475101,
    0.6036202,
    4.1010222,
    -0.0780953,
    -0.4961499,
    -1.4696130,
    -1.6885703,
)


class ImageClassification:
    """Photos to labels with probabilities.

    `labels` is a file that names the classes: a Python source that holds them as a list (torchvision's own, which is
    read and never run), a JSON list or object, or a text file with one name a line. Without it a label is its index.
    """

    def __init__(self, checkpoint: str, *, placement: Any, labels: Optional[str] = None) -> None:
        state = torch.load(weights_file(Path(checkpoint)), map_location="cpu", weights_only=True)
        classes = state["classifier.1.weight"].shape[0]
        self.names = (
            read_labels(Path(labels), classes) if labels else [str(index) for index in range(classes)]
        )
        model = MobileNetV2(classes)
        model.load_state_dict(state)
        self.dtype = torch.float32 if placement.dtype == "auto" else torch_dtype(placement.dtype)
        self.device = placement.device
        self.model = model.to(self.device, self.dtype).eval()
        self.report = {
            "architecture": "mobilenet_v2",
            "classes": classes,
            "dtype": str(self.dtype)[len("torch.") :],
        }

    def classify(self, images: Any, top_k: int = 5, batch_size: int = 32) -> List[List[Dict[str, Any]]]:
        """For each picture its `top_k` best [{"label", "index", "probability"}, …], best first, in input order.

        A picture is a path, a file's bytes, a uint8 array HxWx3 or a PIL image.
        """
        pictures = as_list(images)
        if not 1 <= top_k <= len(self.names):
            raise ValueError(f"top_k must be 1 to {len(self.names)}, not {top_k}")
        numbered = list(enumerate(pictures))
        return map_batches(lambda batch: self._classify(batch, top_k), numbered, batch_size, what="images")

    def thumbnail(self, image: Any, size: int = 256) -> bytes:
        """The picture as a JPEG that fits into `size` x `size` pixels."""
        picture = load_image(image)
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def close(self) -> None:
        """Frees the model."""
        del self.model

    @staticmethod
    def self_test() -> Dict[str, Any]:
        """Logits of a seeded model for a seeded picture, held against recorded ones."""
        random = np.random.RandomState(0)
        model = MobileNetV2(8).eval()
        model.load_state_dict(
            {name: seeded(random, name, value) for name, value in model.state_dict().items()}
        )
        picture = Image.fromarray(random.randint(0, 256, (240, 320, 3), dtype=np.uint8))
        with torch.inference_mode():
            logits = model(torch.from_numpy(preprocess(picture)[None]))[0].numpy()
        return compare({"logits": logits}, {"logits": SELF_TEST_LOGITS}, tolerance=1e-3)

    @torch.inference_mode()
    def _classify(self, batch: Sequence[Tuple[int, Any]], top_k: int) -> List[List[Dict[str, Any]]]:
        pixels = np.stack([preprocess(load_image(image, f"images[{index}]")) for index, image in batch])
        logits = self.model(torch.from_numpy(pixels).to(self.device, self.dtype)).float()
        best = logits.softmax(dim=1).topk(top_k, dim=1)
        return [
            [{"label": self.names[i], "index": i, "probability": p} for p, i in zip(values, indices)]
            for values, indices in zip(best.values.tolist(), best.indices.tolist())
        ]


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 whose parameters have the names of torchvision's."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: List[nn.Module] = [convolution(3, 32, kernel=3, stride=2)]
        channels = 32
        for expansion, out, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, out, stride if block == 0 else 1, expansion))
                channels = out
        self.features = nn.Sequential(*layers, convolution(channels, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, h, w), normalised, to logits (n, classes)."""
        return self.classifier(self.features(pixels).mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, inside: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inside * expansion
        widen = [convolution(inside, hidden)] if expansion != 1 else []
        depthwise = convolution(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        narrow = [nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*widen, depthwise, *narrow)
        self.residual = stride == 1 and inside == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def convolution(inside: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = (kernel - 1) // 2
    conv = nn.Conv2d(inside, out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


def preprocess(image: Image.Image) -> np.ndarray:
    """The published evaluation transform: shorter side to 256, centre 224x224, normalised; float32 (3, 224, 224)."""
    width, height = image.size
    short = min(width, height)
    size = (int(RESIZE * width / short), int(RESIZE * height / short))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - CROP) / 2), round((size[1] - CROP) / 2)
    pixels = np.asarray(image.crop((left, top, left + CROP, top + CROP)), dtype=np.float32) / np.float32(255)
    normal = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def weights_file(path: Path) -> Path:
    """The .pth itself, or the only one in a folder."""
    if path.is_file():
        return path
    found = sorted([*path.glob("*.pth"), *path.glob("*.pt")])
    if len(found) != 1:
        raise FileNotFoundError(f"{path} holds {len(found)} .pth files; give the file to load")
    return found[0]


def read_labels(path: Path, classes: int) -> List[str]:
    """The names of the classes, in the order of their indices."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        names = longest_list(ast.parse(text))
    elif path.suffix == ".json":
        names = named_in(json.loads(text))
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != classes:
        raise ValueError(f"{path} names {len(names)} classes; the checkpoint has {classes}")
    return names


def longest_list(module: ast.Module) -> List[str]:
    """The longest list of strings that a module assigns at its top level."""
    lists: List[List[str]] = [[]]
    for node in module.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, (ast.List, ast.Tuple)):
            values = [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
            lists.append([value for value in values if isinstance(value, str)])
    return max(lists, key=len)


def named_in(document: Any) -> List[str]:
    """`["tench", …]`, `{"0": "tench", …}` and `{"0": ["n01440764", "tench"], …}` are all in use."""
    if isinstance(document, dict):
        document = [document[key] for key in sorted(document, key=int)]
    return [str(item[-1] if isinstance(item, list) else item) for item in document]


def seeded(random: np.random.RandomState, name: str, value: torch.Tensor) -> torch.Tensor:
    """Numbers for one parameter that keep activations in a useful range, the same in every version."""
    if not value.dtype.is_floating_point:
        return value
    if value.dim() > 1:
        fan_in = value[0].numel()
        numbers = random.standard_normal(tuple(value.shape)) * np.sqrt(2.0 / fan_in)
    else:
        numbers = (
            random.uniform(0.5, 1.5, tuple(value.shape)) if "bias" not in name else np.zeros(value.shape)
        )
    return torch.from_numpy(numbers.astype(np.float32))
