"""How clips are sampled and sized, without torch: expected values worked out from the published rules by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[3] / "workers" / "qwen2_vl" / "videos.py"


@pytest.fixture(scope="module")
def videos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("qwen2_vl_videos", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frames(videos: ModuleType, *, qwen3: bool = False, **config: Any) -> Any:
    return videos.VideoFrames(config, qwen3=qwen3)


def test_qwen2_takes_every_frame_unless_told_otherwise(videos: ModuleType) -> None:
    assert frames(videos).sample(7, None) == [0, 1, 2, 3, 4, 5, 6]


def test_qwen2_samples_by_time_in_pairs(videos: ModuleType) -> None:
    # 40 frames at 10 a second are 4 s; 2 a second make 8
    assert frames(videos, fps=2).sample(40, 10.0) == [0, 5, 10, 15, 20, 25, 30, 35]
    with pytest.raises(ValueError, match="video_fps="):
        frames(videos, fps=2).sample(40, None)


def test_qwen2_samples_a_number_of_frames(videos: ModuleType) -> None:
    assert frames(videos, num_frames=4).sample(8, None) == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="12 frames are to be sampled from a clip of 8"):
        frames(videos, num_frames=12).sample(8, None)


def test_qwen3_samples_two_a_second_and_four_at_least(videos: ModuleType) -> None:
    reader = frames(videos, qwen3=True)
    assert reader.sample(48, 12.0) == [0, 7, 13, 20, 27, 34, 40, 47]  # 4 s
    assert reader.sample(8, None) == [0, 2, 5, 7]  # a third of a second at the assumed 24
    assert reader.sample(3, 24.0) == [0, 1, 2]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((280, 280), (336, 336)),  # under 100,352 pixels: times 1.131 is 316.8, rounded up to 12 x 28
        ((400, 300), (392, 308)),  # between the bounds: the nearest multiples of 28
        ((2000, 1000), (1092, 532)),  # over 602,112: by 1.823 is 1097 x 549, rounded down
    ],
)
def test_qwen2_fits_each_frame(videos: ModuleType, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert frames(videos)._target(2, *size) == expected


def test_qwen3_shares_the_budget_among_the_frames(videos: ModuleType) -> None:
    reader = frames(videos, qwen3=True, size={"shortest_edge": 4096, "longest_edge": 8 * 64 * 64})
    assert reader._target(8, 64, 64) == (64, 64)
    assert reader._target(32, 64, 64) == (32, 32)  # four times the frames, a quarter of the pixels
    with pytest.raises(ValueError, match="2 frames or more"):
        reader._target(1, 64, 64)


def test_bounds_by_their_old_names(videos: ModuleType) -> None:
    reader = frames(videos, min_pixels=3136, max_pixels=28 * 28 * 4)
    assert reader._target(2, 560, 560) == (56, 56)


def test_a_strip_is_refused(videos: ModuleType) -> None:
    with pytest.raises(ValueError, match="3x700 is too narrow"):
        frames(videos)._target(2, 700, 3)
