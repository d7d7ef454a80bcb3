"""More than 8 bits per pixel as 8 bits, scaled linearly."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Pillow modes with more than 8 bits per pixel.
HIGH_DEPTH_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def scale_to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map [low, high] linearly to [0, 255], clip and round. values: any shape; returns uint8, all 0 if low == high."""
    factor = 255 / (high - low) if high > low else 0.0
    return np.round(np.clip((values.astype(np.float64) - low) * factor, 0, 255)).astype(np.uint8)


def to_8_bit(image: Image.Image) -> Image.Image:
    """An image in one of HIGH_DEPTH_MODES as mode L, scaled from its own range; NaN and infinity count as 0."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)  # (height, width)
    return Image.fromarray(scale_to_uint8(values, float(values.min()), float(values.max())))


def describe_depth(image: Image.Image) -> str:
    """The note on an image in one of HIGH_DEPTH_MODES: the range of its values and the scaling."""
    values = np.asarray(image)
    return f"more than 8 bits per pixel; values {values.min():g} to {values.max():g} are scaled to 0 to 255"
