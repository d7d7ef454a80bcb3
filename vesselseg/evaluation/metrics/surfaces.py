"""Distances between the outlines of two masks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from vesselseg.evaluation.metrics.masks import Mask

# Above the square root of 2: an outline shifted by one pixel stays within it in every direction of the vessel.
NSD_TOLERANCE_PX = 2.0
NSD_TOLERANCE_MM = 0.5
_ROUNDING = 1e-9  # coordinates in mm are rounded products


def surface_metrics(prediction: Mask, truth: Mask, spacing: tuple[float, float] | None) -> dict[str, float]:
    """HD, HD95 and ASSD (0 or more; mm with spacing, else pixels) and NSD (0..1) of masks (height, width) bool.

    With d(a, B) the distance from outline pixel a to outline B: HD = max of d over both outlines; HD95 = the larger of
    the 95th percentiles of both directions; ASSD = mean of d over both outlines; NSD = fraction of both outlines with d
    within the tolerance. Conventions of MetricsReloaded (Maier-Hein et al., "Metrics reloaded: recommendations for
    image analysis validation", Nature Methods 2024) and MONAI; sources: see ``METRIC_TABLE``. The three distances are
    NaN where exactly one mask is empty.
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
    """The mask's pixels next to background or to the image's edge (4 neighbours), (height, width) bool."""
    return mask & ~binary_erosion(mask)


def distances(pixels: Mask, others: Mask, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from each true pixel to the nearest one of others, (n,) in raster order. step: (row, column) length of
    a pixel.
    """
    return np.asarray(KDTree(np.argwhere(others) * step).query(np.argwhere(pixels) * step)[0])
