"""Input of the metrics: masks of one size, with every byte 0 or 1, and their bounding box."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def checked_masks(prediction: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Both masks with every byte 0 or 1. Raises ValueError unless they are (height, width) bool masks of one size.

    Pillow returns 1-bit images as bool arrays whose true bytes are 255: NumPy counts them as 255, and scikit-image
    uses them as an index beyond the end of its table.
    """
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.size:
            raise ValueError(f"{name}: expected a (height, width) bool mask, found {mask.dtype} {mask.shape}")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape}, truth {truth.shape}; expected one size")
    return prediction.view(np.uint8) != 0, truth.view(np.uint8) != 0


def checked_spacing(spacing: tuple[float, float]) -> tuple[float, float]:
    """(row, column) mm per pixel as floats. Raises ValueError for anything but two positive numbers."""
    values = tuple(float(value) for value in spacing)
    if len(values) != 2 or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"spacing: expected (row, column) mm per pixel, both above 0, found {spacing}")
    return values[0], values[1]


def bounding_box(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns of the mask with a margin of one pixel, cut at the image's edge; one pixel for an empty mask.

    Pixels outside change no metric of shape: the background pixel nearest to a mask's pixel touches the mask.
    """
    if not mask.any():
        return slice(0, 1), slice(0, 1)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
