"""MONAI's metrics on the same masks: overlap, areas under curves and distances."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from tests.evaluation.metrics.masks import Pair, all_pairs, both_hold_something
from vesselseg.evaluation.metrics import image_metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai import metrics as monai_metrics

OVERLAP = {
    "recall": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "matthews correlation coefficient",
    "dice": "f1 score",
}


def _batches(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(mask[None, None].astype(np.float32)) for mask in pair)  # type: ignore[return-value]


def test_overlap() -> None:
    """Where both masks hold vessel and background: MONAI has other words for the undefined."""
    for pair in both_hold_something(all_pairs(80, 12)):
        if pair[0].all() or pair[1].all():
            continue
        found = image_metrics(*pair)
        matrix = monai_metrics.get_confusion_matrix(*_batches(pair))
        for ours, theirs in OVERLAP.items():
            value = float(monai_metrics.compute_confusion_matrix_metric(theirs, matrix))
            assert found[ours] == pytest.approx(value, abs=1e-5), ours
        assert found["iou"] == pytest.approx(float(monai_metrics.compute_iou(*_batches(pair))), abs=1e-6)


def test_areas_under_curves() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        truth = generator.random((12, 17)) < 0.3
        scores = np.round(np.clip(0.4 * truth + 0.6 * generator.random(truth.shape), 0, 1), 2).astype(np.float32)
        found = image_metrics(scores > 0.5, truth, scores)
        flat = torch.from_numpy(scores.ravel()), torch.from_numpy(truth.ravel().astype(np.float32))
        assert found["roc_auc"] == pytest.approx(monai_metrics.compute_roc_auc(*flat), abs=1e-6)


def test_average_precision() -> None:
    """Without equal scores: MONAI takes equal ones one after the other."""
    generator = np.random.default_rng(1)
    for _ in range(20):
        truth = generator.random((9, 11)) < 0.3
        scores = (generator.permutation(truth.size) / truth.size).reshape(truth.shape).astype(np.float32)
        found = image_metrics(scores > 0.5, truth, scores)
        flat = torch.from_numpy(scores.ravel()), torch.from_numpy(truth.ravel().astype(np.float32))
        assert found["pr_auc"] == pytest.approx(monai_metrics.compute_average_precision(*flat), abs=1e-6)


@pytest.mark.parametrize("spacing", [None, (0.3, 0.17)])
def test_distances(spacing: tuple[float, float] | None) -> None:
    tolerance = 2.0 if spacing is None else 0.5
    given = {"include_background": True, "spacing": None if spacing is None else list(spacing)}
    for pair in both_hold_something(all_pairs(40, 12)):
        found = image_metrics(*pair, spacing=spacing)
        y_pred, y = _batches(pair)
        expected = {
            "hd": monai_metrics.compute_hausdorff_distance(y_pred, y, **given),
            "hd95": monai_metrics.compute_hausdorff_distance(y_pred, y, percentile=95, **given),
            "assd": monai_metrics.compute_average_surface_distance(y_pred, y, symmetric=True, **given),
            "nsd": monai_metrics.compute_surface_dice(y_pred, y, class_thresholds=[tolerance], **given),
        }
        for name, value in expected.items():
            assert found[name] == pytest.approx(float(value), abs=1e-4), name
