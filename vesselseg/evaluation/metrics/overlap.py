"""Metrics of pixel counts, independent of where the pixels are."""

from __future__ import annotations

import math

import numpy as np

from vesselseg.evaluation.metrics.masks import Mask


def overlap_metrics(prediction: Mask, truth: Mask) -> dict[str, float]:
    """Dice to MCC of masks of one shape, bool, from TP, FP, FN and TN over the whole image; 0..1, MCC -1..1.

    Sources: see ``METRIC_TABLE``.
    """
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    tn = truth.size - tp - fp - fn
    both_empty = tp + fp + fn == 0
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn, both_empty),
        "iou": _ratio(tp, tp + fp + fn, both_empty),
        "precision": _ratio(tp, tp + fp, both_empty),
        "recall": _ratio(tp, tp + fn, both_empty),
        "specificity": _ratio(tn, tn + fp, True),
        "accuracy": _ratio(tp + tn, truth.size, True),
        "balanced_accuracy": _balanced_accuracy(tp, fp, fn, tn),
        "mcc": _matthews(tp, fp, fn, tn),
    }


def _ratio(part: int, whole: int, without_whole: bool) -> float:
    return part / whole if whole else float(without_whole)


def _balanced_accuracy(tp: int, fp: int, fn: int, tn: int) -> float:
    """Mean recall over the classes that the truth contains."""
    recalls = [right / (right + wrong) for right, wrong in ((tp, fn), (tn, fp)) if right + wrong]
    return sum(recalls) / len(recalls) if recalls else 1.0


def _matthews(tp: int, fp: int, fn: int, tn: int) -> float:
    """Matthews' correlation coefficient; where a margin is 0, by Chicco and Jurman, "The advantages of the Matthews
    correlation coefficient (MCC) over F1 score and accuracy in binary classification evaluation", BMC Genomics 2020:
    1 or -1 where all pixels are of one kind, right or wrong, and 0 otherwise.
    """
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    if margins:
        return (tp * tn - fp * fn) / math.sqrt(margins)
    kinds = [kind for kind in (tp, fp, fn, tn) if kind]
    if len(kinds) > 1:
        return 0.0
    return 1.0 if tp or tn else -1.0
