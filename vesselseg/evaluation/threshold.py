"""The threshold above which a probability becomes mask: counts at 99 thresholds, curves, the best one.

Empty masks follow the rule of ``metrics``: truth and prediction both empty give Dice = IoU = 1, one of them empty 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THRESHOLDS: NDArray[np.float64] = np.arange(1, 100) / 100
"""0.01 to 0.99 in steps of 0.01."""


def apply_threshold(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """The mask ``probability > threshold``, compared in float32, as torch compares a float32 tensor with a number."""
    return probabilities > np.float32(threshold)


def threshold_counts(probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixel counts at every threshold: (thresholds, 3) int64, true positives, false positives, false negatives.

    probabilities: (height, width) float32 in 0..1; truth: (height, width) bool. One pass over the pixels however many
    thresholds. Raises ValueError for another size or type of truth, NaN, and values outside 0..1.
    """
    if truth.dtype != np.bool_ or truth.shape != probabilities.shape:
        raise ValueError(f"truth: expected bool {probabilities.shape}, found {truth.dtype} {truth.shape}")
    truth = truth.view(np.uint8) != 0  # 1-bit images come out of Pillow as bool arrays with the byte 255
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError(
            f"probabilities must lie in 0..1, found {probabilities.min()} to {probabilities.max()}; "
            "logits need a sigmoid first"
        )
    # How many thresholds a pixel exceeds: bin k means that it is mask at the first k thresholds.
    exceeded = np.searchsorted(THRESHOLDS.astype(np.float32), probabilities.ravel().astype(np.float32), side="left")
    bins = len(THRESHOLDS) + 1
    positive = _mask_pixels(np.bincount(exceeded[truth.ravel()], minlength=bins))
    everything = _mask_pixels(np.bincount(exceeded, minlength=bins))
    missed = np.count_nonzero(truth) - positive
    return np.stack([positive, everything - positive, missed], axis=1).astype(np.int64)


def dice_iou_curves(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean Dice and mean IoU over the images at every threshold, each (thresholds,).

    counts: (images, thresholds, 3) as from ``threshold_counts``. Raises ValueError for no image.
    """
    if counts.ndim != 3 or counts.shape[0] == 0 or counts.shape[2] != 3:
        raise ValueError(f"counts: expected (images, thresholds, 3) with at least one image, found {counts.shape}")
    tp, fp, fn = (counts[..., column].astype(np.float64) for column in range(3))
    wrong = fp + fn
    empty = (tp + wrong) == 0
    dice = np.where(empty, 1.0, 2 * tp / np.where(empty, 1.0, 2 * tp + wrong))
    iou = np.where(empty, 1.0, tp / np.where(empty, 1.0, tp + wrong))
    return dice.mean(axis=0), iou.mean(axis=0)


def best_threshold(counts: NDArray[np.int64]) -> tuple[float, float]:
    """The threshold with the highest mean Dice over the images, and that Dice; of equal ones the middle one.

    counts: (images, 99, 3) as from ``threshold_counts``.
    """
    dice, _ = dice_iou_curves(counts)
    candidates = np.flatnonzero(np.isclose(dice, dice.max(), rtol=0, atol=1e-12))
    best = candidates[len(candidates) // 2]
    return float(THRESHOLDS[best]), float(dice[best])


def _mask_pixels(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Histogram of exceeded thresholds (thresholds + 1,) -> pixels above each threshold (thresholds,)."""
    return np.cumsum(histogram[::-1])[::-1][1:]
