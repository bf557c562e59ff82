"""Chinese CLIP of ModelScope (`damo/multi-modal_clip-vit-*_zh`) through the library's own model class.

The library's `pipeline()` is not used: it imports the whole multi-modal extra (fairseq, torchaudio, decord, timm,
torchvision, opencv) for a resize and a normalisation, and its call is broken for this task in 1.40.2. The family
`modelscope-pipeline` runs it where it works.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

import numpy as np
import torch
from modelscope.models.multi_modal.clip.model import CLIPForMultiModalEmbedding, convert_weights

from orchestrator.worker.images import as_list, load_image
from orchestrator.worker.inference import CPU, compare, map_batches, texts_of
from orchestrator.worker.tiny import tiny_checkpoint

TINY = Path(__file__).with_name("tiny_checkpoints") / "modelscope_clip.py"
FILES = ("vision_model_config.json", "text_model_config.json", "vocab.txt", "pytorch_model.bin")
CONTEXT = 52
"""Tokens that a text is cut or filled to, as in the library's preprocessor."""
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
RECORDED = {  # modelscope 1.40.2 and 1.0.4 within 4e-7
    "image": [-0.2234518, -0.2314565, -0.1886293, -0.0853185],
    "text": [0.0009166, 0.1398042, -0.0100417, 0.0954705],
    "scores": [0.4234562, 0.3251726, 0.1464457, 0.1049255],
}
TOLERANCE = 1e-5


class ModelscopeClip:
    """One Chinese CLIP pair.

    Pictures, one or several, are paths, `data:` URLs, bytes, PIL images or uint8 arrays (height, width, 3). `dtype` may
    be float32, float16, or "auto": what the library does (float16 on a GPU, float32 on a CPU).
    """

    def __init__(self, checkpoint: str, *, placement: Any) -> None:
        # A relative path of one slash would be taken for an id of the hub and looked up on the network.
        folder = os.path.abspath(checkpoint)
        missing = [name for name in FILES if not os.path.isfile(os.path.join(folder, name))]
        if missing:
            raise FileNotFoundError(
                f"{folder} is not a ModelScope CLIP checkpoint: it has no {', '.join(missing)}"
            )
        self.model = CLIPForMultiModalEmbedding(folder)
        self.clip = self.model.clip_model
        self.device = torch.device(placement.device)
        self._use(placement.dtype)
        self.resolution = int(self.model.model_info["image_resolution"])
        self.dimensions = int(self.model.model_info["embed_dim"])
        self.report = {
            "dimensions": self.dimensions,
            "resolution": self.resolution,
            "temperature": self.temperature(),
            "dtype": str(self.clip.dtype),
        }

    def embed_images(self, images: Any, *, batch_size: int = 32) -> np.ndarray:
        """Vectors of the pictures, (pictures, dimensions) float32 of length 1, in their order."""
        numbered = list(enumerate(as_list(images)))
        return self._stack(map_batches(self._image_batch, numbered, batch_size, what="pictures"))

    def embed_texts(self, texts: Union[str, Sequence[str]], *, batch_size: int = 64) -> np.ndarray:
        """Vectors of the texts, (texts, dimensions) float32 of length 1, in their order; cut at 52 tokens."""
        return self._stack(map_batches(self._text_batch, texts_of(texts), batch_size, what="texts"))

    def match(self, images: Any, texts: Union[str, Sequence[str]], *, batch_size: int = 32) -> np.ndarray:
        """Share of each text for each picture, (pictures, texts) float32; a row adds up to 1."""
        pictures = self.embed_images(images, batch_size=batch_size)
        logits = pictures @ self.embed_texts(texts, batch_size=batch_size).T / self.temperature()
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def rank(
        self, images: Any, texts: Union[str, Sequence[str]], *, batch_size: int = 32
    ) -> List[List[Dict[str, Any]]]:
        """For each picture its texts, best first: [{"label", "score"}], the shares of `match`."""
        labels = texts_of(texts)
        return [
            [
                {"label": labels[column], "score": float(row[column])}
                for column in np.argsort(-row, kind="stable")
            ]
            for row in self.match(images, labels, batch_size=batch_size)
        ]

    def temperature(self) -> float:
        """What likenesses are divided by before a softmax (0.01 in the published pairs)."""
        return float(self.model.temperature.detach().float())

    def close(self) -> None:
        """Give the memory back."""
        del self.model, self.clip

    @torch.inference_mode()
    def _image_batch(self, numbered: Sequence[Tuple[int, Any]]) -> np.ndarray:
        pixels = np.stack([self._pixels(load_image(image, f"images[{index}]")) for index, image in numbered])
        return self._unit(self.clip.encode_image(torch.from_numpy(pixels).to(self.device)))

    @torch.inference_mode()
    def _text_batch(self, texts: List[str]) -> np.ndarray:
        tokenizer = self.clip.tokenizer
        ids = np.full((len(texts), CONTEXT), tokenizer.vocab["[PAD]"], np.int64)
        for row, text in enumerate(texts):
            inner = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[: CONTEXT - 2]
            ids[row, : len(inner) + 2] = [tokenizer.vocab["[CLS]"], *inner, tokenizer.vocab["[SEP]"]]
        return self._unit(self.clip.encode_text(torch.from_numpy(ids).to(self.device)))

    def _pixels(self, picture: Any) -> np.ndarray:
        """(3, resolution, resolution) float32: stretched to a square, scaled, normalised."""
        from PIL import Image

        square = picture.resize((self.resolution, self.resolution), Image.BICUBIC)
        scaled = (np.asarray(square, np.float32) / np.float32(255) - MEAN) / DEVIATION
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def _unit(self, features: torch.Tensor) -> np.ndarray:
        vectors: np.ndarray = (features / features.norm(dim=-1, keepdim=True)).float().cpu().numpy()
        return vectors

    def _stack(self, rows: List[np.ndarray]) -> np.ndarray:
        return np.stack(rows) if rows else np.zeros((0, self.dimensions), np.float32)

    def _use(self, dtype: str) -> None:
        """Move to the device. The library chose cuda:0 or the CPU by itself, and a dtype to go with it."""
        if dtype == "float32":
            self.clip.float()
        elif dtype == "float16":
            convert_weights(self.clip)
        elif dtype != "auto":
            raise ValueError(f"this model runs in float32 or float16, not {dtype}")
        self.clip.to(self.device)
        self.model.device = str(self.device)

    @classmethod
    def self_test(cls) -> Dict[str, Any]:
        """Embed a drawn picture and two texts with a tiny seeded pair; hold the numbers against recorded ones."""
        with tiny_checkpoint(TINY, "modelscope-clip-base", seed=0) as checkpoint:
            model = cls(checkpoint, placement=CPU)
            rows, columns = np.mgrid[0:45, 0:60]
            picture = np.stack([rows * 5 % 256, columns * 4 % 256, (rows + columns) * 2 % 256], -1).astype(
                np.uint8
            )
            texts = ["一只猫坐在沙发上", "红色的方块", "皮卡丘", "a 3d 图片"]
            got = {
                "image": model.embed_images([picture]),
                "text": model.embed_texts(texts)[1],
                "scores": model.match([picture], texts),
            }
            return compare(got, RECORDED, TOLERANCE)
