"""Video frames to pixels for the Qwen vision towers, without torchvision.

The library's video processors need torchvision; what they compute are two torch calls and a reshape. `VideoFrames` does
the same in the same order, so that its numbers are theirs to the bit, and stands in for them in the library's own
processor classes, which then write the placeholders (and Qwen3-VL's time stamps).
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

__all__ = ["VideoFrames"]

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_QWEN2: Dict[str, Any] = {
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, "patch_size": 14, "do_sample_frames": False,
    "fps": None, "max_video_tokens": 128000,
}  # fmt: skip
_QWEN3: Dict[str, Any] = {
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "patch_size": 16, "do_sample_frames": True,
    "fps": 2, "max_video_tokens": 768,
}  # fmt: skip
_SHARED: Dict[str, Any] = {
    "temporal_patch_size": 2, "merge_size": 2, "min_frames": 4, "max_frames": 768, "num_frames": None,
    "rescale_factor": 1 / 255, "cap_pixels_per_frame": None, "do_resize": True, "do_rescale": True, "do_normalize": True,
}  # fmt: skip


class VideoFrames:
    """Frames in, `pixel_values_videos` and `video_grid_thw` out.

    `config` is the checkpoint's video processor configuration (or its image processor's, as in the library), `qwen3`
    chooses Qwen3-VL's rules: a pixel budget for the whole clip instead of each frame, and sampling by default.
    """

    model_input_names = ("pixel_values_videos", "video_grid_thw")
    valid_kwargs = None  # the library's processors ask; None means that they do not check types here

    def __init__(self, config: Mapping[str, Any], *, qwen3: bool = False) -> None:
        self.qwen3 = qwen3
        self.config = {**_SHARED, **(_QWEN3 if qwen3 else _QWEN2)}
        self.config.update((key, value) for key, value in config.items() if value is not None)
        size = dict(self.config["size"])
        size["shortest_edge"] = (
            size.pop("min_pixels", None) or config.get("min_pixels") or size["shortest_edge"]
        )
        size["longest_edge"] = (
            size.pop("max_pixels", None) or config.get("max_pixels") or size["longest_edge"]
        )
        self.size: Dict[str, int] = size
        self.patch_size: int = self.config["patch_size"]
        self.merge_size: int = self.config["merge_size"]
        self.temporal_patch_size: int = self.config["temporal_patch_size"]

    def __call__(
        self,
        videos: Sequence[Any],
        video_metadata: Optional[Sequence[Mapping[str, Any]]] = None,
        do_sample_frames: Optional[bool] = None,
        return_metadata: bool = False,
        **_: Any,
    ) -> Any:
        """A BatchFeature for clips, each a uint8 array TxHxWx3; `video_metadata` may give each clip's `fps`."""
        import torch
        from transformers.feature_extraction_utils import BatchFeature
        from transformers.video_utils import VideoMetadata

        pixels: List[Any] = []
        grids: List[Tuple[int, int, int]] = []
        metadata: List[Any] = []
        for index, clip in enumerate(videos):
            given = dict(video_metadata[index]) if video_metadata is not None else {}
            about = VideoMetadata(total_num_frames=len(clip), fps=given.get("fps"))
            sample = self.config["do_sample_frames"] if do_sample_frames is None else do_sample_frames
            about.frames_indices = self.sample(len(clip), about.fps) if sample else list(range(len(clip)))
            patches, grid = self.patches(
                torch.from_numpy(clip[about.frames_indices]).permute(0, 3, 1, 2).contiguous()
            )
            pixels.append(patches)
            grids.append(grid)
            metadata.append(about)
        data: Dict[str, Any] = {
            "pixel_values_videos": torch.cat(pixels),
            "video_grid_thw": torch.tensor(grids),
        }
        return BatchFeature(dict(data, video_metadata=metadata) if return_metadata else data)

    def sample(self, total: int, clip_fps: Optional[float]) -> List[int]:
        """Which of `total` frames, taken `clip_fps` a second, are looked at: `fps` or `num_frames` of the configuration."""
        import numpy as np

        count, fps = self.config["num_frames"], self.config["fps"]
        low, high = self.config["min_frames"], self.config["max_frames"]
        if self.qwen3:
            if count is None:
                # 24 is what the library takes for frames whose rate nobody gave
                count = min(max(int(total / (clip_fps or 24) * fps), low), high, total)
            return [int(frame) for frame in np.linspace(0, total - 1, count).round()]
        step = self.temporal_patch_size
        if count is not None:
            count = round(count / step) * step
        elif fps is not None:
            if clip_fps is None:
                raise ValueError(
                    "this checkpoint samples frames by time: say with video_fps= how fast the frames go"
                )
            high = min(high, total) // step * step
            count = math.floor(min(max(total / clip_fps * fps, low), high, total) / step) * step
        else:
            return list(range(total))
        if not 0 < count <= total:
            raise ValueError(f"{count} frames are to be sampled from a clip of {total}")
        return [int(frame * (total / count)) for frame in range(count)]

    def patches(self, frames: Any) -> Tuple[Any, Tuple[int, int, int]]:
        """Normalised patches (number, 3 * temporal * patch * patch) float32 and their grid (time, height, width)."""
        import torch

        frames = self._normalise(self._resize(frames))
        missing = -len(frames) % self.temporal_patch_size
        if missing:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        count, channels, height, width = frames.shape
        patch, merge, time = self.patch_size, self.merge_size, self.temporal_patch_size
        grid = (count // time, height // patch, width // patch)
        blocks = frames.reshape(
            grid[0], time, channels, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
        )
        # neighbouring patches that are merged later stand together; inside one: channel, time, height, width
        blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return blocks.reshape(grid[0] * grid[1] * grid[2], channels * time * patch * patch), grid

    def _resize(self, frames: Any) -> Any:
        import torch

        count, _, height, width = frames.shape
        if not self.config["do_resize"]:
            return frames
        size = self._target(count, height, width)
        if size == (height, width):
            return frames
        return torch.nn.functional.interpolate(
            frames, size=list(size), mode="bicubic", align_corners=False, antialias=True
        )

    def _target(self, count: int, height: int, width: int) -> Tuple[int, int]:
        factor, least, most = (
            self.patch_size * self.merge_size,
            self.size["shortest_edge"],
            self.size["longest_edge"],
        )
        tokens = self.config["max_video_tokens"] * factor * factor
        if self.qwen3:
            if self.config["cap_pixels_per_frame"]:
                most = max(min(tokens, most // count), int(least * 1.05)) * count
            if count < self.temporal_patch_size:
                raise ValueError(f"a clip needs {self.temporal_patch_size} frames or more")
            if min(height, width) < factor:
                scale = max(factor / height, factor / width)
                height, width = int(height * scale), int(width * scale)
            steps = round(count / self.temporal_patch_size) * self.temporal_patch_size
            return _fit(height, width, factor, least, most, steps, count)
        if self.config["cap_pixels_per_frame"]:
            most = max(min(most, int(tokens * 0.9) * self.temporal_patch_size // count), int(least * 1.05))
        return _fit(height, width, factor, least, most, 1, 1)

    def _normalise(self, frames: Any) -> Any:
        import torch

        scale = 1.0 / self.config["rescale_factor"] if self.config["do_rescale"] else 1.0
        frames = frames.to(torch.float32)
        if not self.config["do_normalize"]:
            return frames * self.config["rescale_factor"] if self.config["do_rescale"] else frames
        mean, std = (torch.tensor(self.config[key]) * scale for key in ("image_mean", "image_std"))
        return frames.sub(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def _fit(
    height: int, width: int, factor: int, least: int, most: int, steps: int, count: int
) -> Tuple[int, int]:
    """The size, in multiples of `factor`, nearest to height x width with `steps` times its pixels in [least, most]."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"a picture of {width}x{height} is too narrow: one side is over 200 times the other")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if steps * rows * columns > most:
        shrink = math.sqrt(count * height * width / most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif steps * rows * columns < least:
        grow = math.sqrt(least / (count * height * width))
        rows, columns = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rows, columns
