"""Distances between the outlines of two masks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from vesselseg.evaluation.metrics.masks import Mask

# Above the square root of 2: an outline drawn one pixel aside lies within it whatever the vessel's direction.
NSD_TOLERANCE_PX = 2.0
NSD_TOLERANCE_MM = 0.5
_ROUNDING = 1e-9  # coordinates in mm are products


def surface_metrics(prediction: Mask, truth: Mask, spacing: tuple[float, float] | None) -> dict[str, float]:
    """HD, HD95, ASSD and NSD of masks (height, width), in mm where spacing is given, else in pixels.

    Conventions of MetricsReloaded (Maier-Hein et al., "Metrics reloaded", Nature Methods 2024) and of MONAI. NaN for
    the three distances where one of the masks is empty.
    """
    if not prediction.any() or not truth.any():
        both_empty = not prediction.any() and not truth.any()
        distance = 0.0 if both_empty else math.nan
        return {"hd": distance, "hd95": distance, "assd": distance, "nsd": float(both_empty)}
    of_prediction, of_truth = outline(prediction), outline(truth)
    step = np.array(spacing or (1.0, 1.0))
    to_truth, to_prediction = distances(of_prediction, of_truth, step), distances(of_truth, of_prediction, step)
    both = np.concatenate([to_truth, to_prediction])
    tolerance = NSD_TOLERANCE_PX if spacing is None else NSD_TOLERANCE_MM
    return {
        "hd": float(both.max()),
        "hd95": float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))),
        "assd": float(both.mean()),
        "nsd": float(np.mean(both <= tolerance + _ROUNDING)),
    }


def outline(mask: Mask) -> Mask:
    """The mask's pixels with background, or the image's edge, above, below, left or right of them."""
    return mask & ~binary_erosion(mask)


def distances(pixels: Mask, others: Mask, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each pixel to the nearest of others, in raster order. step: (row, column) length of a pixel."""
    return np.asarray(KDTree(np.argwhere(others) * step).query(np.argwhere(pixels) * step)[0])
