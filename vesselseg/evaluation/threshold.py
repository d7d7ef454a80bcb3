"""The threshold between background and vessel: counts at 99 thresholds, curves, the best one for each metric.

Empty masks follow ``metrics.EMPTY_MASK_RULE``: both empty give Dice = IoU = 1, one of them empty 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vesselseg.evaluation.result_types import MetricThreshold

Table = NDArray[np.float64]
THRESHOLDS: NDArray[np.float64] = np.arange(1, 100) / 100
"""0.01 to 0.99 in steps of 0.01."""
COARSE_THRESHOLDS: NDArray[np.float64] = np.arange(1, 20) / 20
"""0.05 to 0.95 in steps of 0.05."""


def apply_threshold(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """The mask ``probability > threshold``, compared in float32, as torch compares a float32 tensor with a number."""
    return probabilities > np.float32(threshold)


def threshold_counts(probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixel counts at every threshold, (thresholds, 3) int64: true positives, false positives, false negatives.

    probabilities: (height, width) float32 in 0..1; truth: (height, width) bool. One pass over the pixels for all
    thresholds. Raises ValueError for another size or type of truth, NaN, and values outside 0..1.
    """
    if truth.dtype != np.bool_ or truth.shape != probabilities.shape:
        raise ValueError(f"truth: expected bool {probabilities.shape}, found {truth.dtype} {truth.shape}")
    truth = truth.view(np.uint8) != 0  # Pillow returns 1-bit images as bool arrays whose true bytes are 255
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError(
            f"probabilities must lie in 0..1, found {probabilities.min()} to {probabilities.max()}; "
            "logits need a sigmoid first"
        )
    exceeded = exceeded_thresholds(probabilities).ravel()
    bins = len(THRESHOLDS) + 1
    # (thresholds,) vessel pixels above each threshold, and all pixels above it
    positive = _mask_pixels(np.bincount(exceeded[truth.ravel()], minlength=bins))
    everything = _mask_pixels(np.bincount(exceeded, minlength=bins))
    missed = np.count_nonzero(truth) - positive
    return np.stack([positive, everything - positive, missed], axis=1).astype(np.int64)


def exceeded_thresholds(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Number of THRESHOLDS that each pixel exceeds: with k it is vessel at the first k thresholds; same shape."""
    found = np.searchsorted(THRESHOLDS.astype(np.float32), probabilities.ravel().astype(np.float32), side="left")
    return found.astype(np.uint8).reshape(probabilities.shape)


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
    """(threshold with the highest mean Dice over the images, that Dice); the middle one of equally good ones.

    counts: (images, 99, 3) as from ``threshold_counts``.
    """
    dice, _ = dice_iou_curves(counts)
    best = best_index(dice)
    return float(THRESHOLDS[best]), float(dice[best])


def count_metrics(counts: NDArray[np.int64], pixels: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """The metrics of ``COUNT_METRICS``, each (items, thresholds), equal to those of ``image_metrics``.

    counts: (items, thresholds, 3) as from ``threshold_counts``; pixels: (items,) of the whole image.
    """
    tp, fp, fn = (counts[..., column].astype(np.float64) for column in range(3))
    # All (items, thresholds).
    tn = np.asarray(pixels, dtype=np.float64)[:, None] - tp - fp - fn
    both_empty = tp + fp + fn == 0
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn, both_empty),
        "iou": _ratio(tp, tp + fp + fn, both_empty),
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "balanced_accuracy": _balanced_accuracy(tp, fp, fn, tn),
        "mcc": _matthews(tp, fp, fn, tn),
    }


def _balanced_accuracy(tp: Table, fp: Table, fn: Table, tn: Table) -> Table:
    vessel, background = tp + fn > 0, tn + fp > 0
    recall, specificity = _ratio(tp, tp + fn, 0.0), _ratio(tn, tn + fp, 0.0)
    return (recall + specificity) / (vessel.astype(np.float64) + background)


def _matthews(tp: Table, fp: Table, fn: Table, tn: Table) -> Table:
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    of_one_kind = np.count_nonzero([tp, fp, fn, tn], axis=0) == 1
    right = np.where(tp + tn > 0, 1.0, -1.0)
    return _ratio(tp * tn - fp * fn, np.sqrt(margins), np.where(of_one_kind, right, 0.0))


def metric_threshold(
    metric: str,
    grid: NDArray[np.float64],
    searched: NDArray[np.float64],
    reported: NDArray[np.float64],
    lower_is_better: bool,
) -> MetricThreshold:
    """The search split's best threshold for a metric, and its value on the reported split.

    grid: (n,) thresholds; searched, reported: (items, n) values on the two splits, NaN where undefined.
    """
    curves = [competing_means(values) for values in (searched, reported)]
    best, own = (best_index(-curve if lower_is_better else curve) for curve in curves)
    return MetricThreshold(
        metric=metric,
        threshold=float(grid[best]),
        search_value=float(curves[0][best]),
        reported_value=float(mean_of_defined(reported)[best]),
        reported_best_threshold=float(grid[own]),
        reported_best=float(curves[1][own]),
        grid=grid,
        searched=curves[0],
        reported=curves[1],
    )


def best_index(curve: Table) -> int:
    """Index of the maximum of a curve (n,); the middle one of equal maxima."""
    candidates = np.flatnonzero(np.isclose(curve, np.nanmax(curve), rtol=0, atol=1e-12))
    return int(candidates[len(candidates) // 2])


def competing_means(values: Table) -> Table:
    """Mean of each column of (items, thresholds); NaN at thresholds where fewer items have a value than at others.

    A distance is undefined where nothing is predicted; a mean over the remaining items would be biased.
    """
    counts = np.isfinite(values).sum(axis=0)
    return np.where(counts == counts.max(), mean_of_defined(values), np.nan)


def mean_of_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each column of (items, n) over its defined values, (n,); NaN without any."""
    defined = np.isfinite(values)
    counts = defined.sum(axis=0)
    sums = np.where(defined, values, 0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _ratio(part: Table, whole: Table, without_whole: Table | float) -> Table:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), without_whole)


def _mask_pixels(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Histogram of exceeded thresholds (thresholds + 1,) -> pixels above each threshold (thresholds,)."""
    return np.cumsum(histogram[::-1])[::-1][1:]
