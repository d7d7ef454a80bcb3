"""Recall and precision by the width of the vessel."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from vesselseg.evaluation.metrics.masks import Mask
from vesselseg.evaluation.metrics.surfaces import distances

CLASSES = ("thin", "medium", "wide")
# Lower limits of medium and wide: about the first quartile and the upper third of the centreline pixels of coronary
# angiograms of 512 x 512; in mm, common limits of small and large coronary segments.
EDGES_PX = (6.0, 10.0)
EDGES_MM = (1.5, 3.0)


def width_metrics(
    prediction: Mask,
    truth: Mask,
    prediction_skeleton: Mask,
    truth_skeleton: Mask,
    spacing: tuple[float, float] | None,
) -> dict[str, float]:
    """Recall of the truth's and precision of the prediction's thin, medium and wide parts, 0..1; NaN for a missing
    class.

    Masks and skeletons: (height, width) bool. spacing: (row, column) in mm per pixel.
    """
    return {
        **_shares("recall", truth, truth_skeleton, prediction, spacing),
        **_shares("precision", prediction, prediction_skeleton, truth, spacing),
    }


def _shares(
    name: str, mask: Mask, skeleton: Mask, other: Mask, spacing: tuple[float, float] | None
) -> dict[str, float]:
    """Fraction of each width class of mask's pixels that is inside other."""
    classes = width_classes(mask, skeleton, spacing)
    inside = other[mask]
    parts = [inside[classes == number] for number in range(len(CLASSES))]
    return {f"{name}_{word}": float(part.mean()) if part.size else math.nan for word, part in zip(CLASSES, parts)}


def width_classes(mask: Mask, skeleton: Mask, spacing: tuple[float, float] | None) -> NDArray[np.int64]:
    """Class of each pixel of mask, (pixels,) in raster order: 0 thin, 1 medium, 2 wide.

    It is that of the nearest skeleton pixel, of equally near ones the wider class.
    """
    step = np.array(spacing or (1.0, 1.0))
    of_skeleton = np.digitize(local_widths(mask, skeleton, step), EDGES_PX if spacing is None else EDGES_MM)
    nearest = np.full((len(CLASSES), np.count_nonzero(mask)), np.inf)  # (classes, pixels) distances
    for number in np.unique(of_skeleton):
        pixels = np.zeros_like(mask)
        pixels[skeleton] = of_skeleton == number
        nearest[number] = distances(mask, pixels, step)
    return len(CLASSES) - 1 - nearest[::-1].argmin(axis=0)  # reversed: argmin takes the first, the wider class


def local_widths(mask: Mask, skeleton: Mask, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vessel's width at each skeleton pixel, (n,) in raster order, in the unit of step; infinite in a full image.

    Twice the distance to the nearest background pixel minus one pixel: both pixel centres are half a pixel from the
    wall between them. The image's edge is not a wall, so a vessel that leaves the image does not become thin there.
    """
    wall = binary_dilation(mask) & ~mask
    if not wall.any():
        return np.full(np.count_nonzero(skeleton), np.inf)
    return 2 * distances(skeleton, wall, step) - step.mean()
