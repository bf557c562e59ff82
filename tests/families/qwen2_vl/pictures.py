"""Drawn pictures and clips, the same on both sides of a comparison."""

import numpy as np

PROMPT = "Describe the red boat."


def picture(height, width, phase):
    """uint8 (height, width, 3)."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [
        (rows * 3 + phase * 80) % 256,
        (columns * 2 + phase * 50) % 256,
        (rows * columns + phase * 20) % 256,
    ]
    return np.stack(channels, axis=-1).astype(np.uint8)


def clip(frames, height, width):
    """uint8 (frames, height, width, 3)."""
    return np.stack([picture(height, width, phase) for phase in range(frames)])
