"""Metrics of probabilities over all thresholds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vesselseg.evaluation.metrics.masks import Mask


def ranking_metrics(probabilities: NDArray[np.floating] | None, truth: Mask) -> dict[str, float]:
    """ROC-AUC and PR-AUC of probabilities (height, width), 0..1; NaN without them or where the truth has one class.

    Raises ValueError for probabilities of another size and for values outside 0..1.
    """
    if probabilities is None:
        return {"roc_auc": math.nan, "pr_auc": math.nan}
    if probabilities.shape != truth.shape:
        raise ValueError(f"probabilities are {probabilities.shape}, truth {truth.shape}; expected one size")
    if not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError(
            f"probabilities must lie in 0..1, found {probabilities.min()} to {probabilities.max()}; "
            "logits need a sigmoid first"
        )
    if truth.all() or not truth.any():
        return {"roc_auc": math.nan, "pr_auc": math.nan}
    from sklearn.metrics import average_precision_score, roc_auc_score  # imports in seconds; masks do not need it

    labels, scores = truth.ravel(), probabilities.ravel()
    return {
        "roc_auc": float(roc_auc_score(labels, scores)),
        "pr_auc": float(average_precision_score(labels, scores)),
    }
