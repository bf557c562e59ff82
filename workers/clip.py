"""CLIP and its relatives: pictures and texts in one space, candidate labels scored by likeness."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from orchestrator.worker.images import as_list, load_image
from orchestrator.worker.inference import CPU, compare, dtype_argument, dtype_on, map_batches, texts_of
from orchestrator.worker.tiny import tiny_checkpoint

TINY = Path(__file__).with_name("tiny_checkpoints") / "clip.py"
RECORDED = {  # transformers 4.36.2 and 4.39.3 to the bit, 5.23.0 within 1.2e-6
    "logits": [-0.4380623, -1.2212812, -1.5037529, 1.1101863, 0.4136253, -2.3744907],
    "image": [0.0863564, -0.0601145, 0.1337107, -0.0826077, -0.026549, 0.2241787],
}
TOLERANCE = 2e-5


class Clip:
    """A pair of towers in the layout of `openai/clip-vit-base-patch32`.

    Pictures, one or several, are paths, `data:` URLs, bytes, PIL images or uint8 arrays (height, width, 3).
    `half_on_gpu` is float16 where the device is a GPU.
    """

    def __init__(self, checkpoint: str, *, placement: Any, half_on_gpu: bool = False) -> None:
        self.device = torch.device(placement.device)
        model = AutoModel.from_pretrained(checkpoint, **dtype_argument(dtype_on(placement, half_on_gpu)))
        if not hasattr(model, "get_image_features") or not hasattr(model, "logit_scale"):
            raise TypeError(
                f"{checkpoint} holds a {type(model).__name__}, which has no picture and text towers"
            )
        self.model = model.to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.image_processor = AutoImageProcessor.from_pretrained(checkpoint)
        self.dtype = next(self.model.parameters()).dtype
        self.report = {"model": type(model).__name__, "dtype": str(self.dtype), "device": str(self.device)}

    def embed_images(self, images: Any, *, batch_size: int = 32, normalize: bool = True) -> np.ndarray:
        """Vectors of the pictures, (pictures, dimensions) float32, in their order; of length 1 with `normalize`."""
        numbered = list(enumerate(as_list(images)))
        return self._stack(
            map_batches(self._image_features, numbered, batch_size, what="pictures"), normalize
        )

    def embed_texts(
        self, texts: Sequence[str], *, batch_size: int = 64, normalize: bool = True
    ) -> np.ndarray:
        """Vectors of the texts, (texts, dimensions) float32, in their order; texts are cut at the model's 77 tokens."""
        rows = map_batches(self._text_features, texts_of(texts), batch_size, length=len, what="texts")
        return self._stack(rows, normalize)

    def scores(self, images: Any, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """The model's logits for every picture and text, (pictures, texts) float32: likeness times its own scale."""
        scale = float(self.model.logit_scale.detach().float().exp())
        pictures = self.embed_images(images, batch_size=batch_size)
        return (scale * pictures @ self.embed_texts(texts, batch_size=batch_size).T).astype(np.float32)

    def classify(
        self,
        images: Any,
        labels: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        top_k: Optional[int] = None,
        batch_size: int = 32,
    ) -> List[List[Dict[str, Any]]]:
        """For each picture its labels, best first: [{"label", "score"}], the scores of all labels adding up to 1.

        `template` holds one `{}` for the label; `top_k` keeps the best ones only.
        """
        labels = texts_of(labels)
        if not labels:
            raise ValueError("classify needs at least one label")
        if "{}" not in template:
            raise ValueError(f"the template {template!r} has no {{}} for the label")
        logits = self.scores(images, [template.format(label) for label in labels], batch_size=batch_size)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        best = np.argsort(-shares, axis=1, kind="stable")[:, :top_k]
        return [
            [{"label": labels[column], "score": float(shares[row, column])} for column in columns]
            for row, columns in enumerate(best)
        ]

    def close(self) -> None:
        """Give the memory back."""
        del self.model

    @torch.inference_mode()
    def _image_features(self, numbered: Sequence[Tuple[int, Any]]) -> np.ndarray:
        images = [load_image(image, f"images[{index}]") for index, image in numbered]
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return _vectors(self.model.get_image_features(pixel_values=pixels.to(self.device, self.dtype)))

    @torch.inference_mode()
    def _text_features(self, texts: List[str]) -> np.ndarray:
        limit = self.model.config.text_config.max_position_embeddings
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return _vectors(self.model.get_text_features(**inputs.to(self.device)))

    def _stack(self, rows: List[np.ndarray], normalize: bool) -> np.ndarray:
        if not rows:
            return np.zeros((0, self.model.config.projection_dim), np.float32)
        vectors = np.stack(rows)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Score two drawn pictures against three texts on a tiny seeded pair; hold the numbers against recorded ones."""
        with tiny_checkpoint(TINY, "clip", seed=0) as checkpoint:
            model = cls(checkpoint, placement=CPU)
            pictures = [_stripes(40, 32, 0), _stripes(33, 57, 1)]
            texts = ["a photo of a cat", "a red square", "blue dog"]
            vectors = model.embed_images(pictures)
            return compare(
                {"logits": model.scores(pictures, texts), "image": vectors[1]}, RECORDED, TOLERANCE
            )


def _vectors(features: Any) -> np.ndarray:
    """(n, dimensions) float32 of what a `get_…_features` returned: a tensor on 4.x, an output object on 5.x."""
    tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
    return tensor.float().cpu().numpy()


def _stripes(height: int, width: int, phase: int) -> np.ndarray:
    """A drawn picture, (height, width, 3) uint8."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [(rows * 7 + phase * 90) % 256, (columns * 5 + phase * 40) % 256, ((rows + columns) * 3) % 256]
    return np.stack(channels, axis=-1).astype(np.uint8)
