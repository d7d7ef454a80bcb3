"""Areas under curves against all pairs of pixels and against sums over thresholds. (MONAI: test_against_monai.py.)"""

from __future__ import annotations

import math

import numpy as np
import pytest

from vesselseg.evaluation.metrics import image_metrics


def _by_pairs(scores: np.ndarray, truth: np.ndarray) -> float:
    """How often a vessel pixel has a higher score than a background pixel; equal ones count half."""
    differences = scores[truth][:, None] - scores[~truth][None]
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def _by_steps(scores: np.ndarray, truth: np.ndarray) -> float:
    """Precision at every threshold, weighted by the recall that the threshold adds."""
    area = recall = 0.0
    for threshold in np.unique(scores)[::-1]:
        mask = scores >= threshold
        gained = (mask & truth).sum() / truth.sum()
        area += (gained - recall) * (mask & truth).sum() / mask.sum()
        recall = gained
    return area


@pytest.mark.parametrize("levels", [2, 5, 256, 10**6])
def test_agrees_with_pairs_and_steps(levels: int) -> None:
    generator = np.random.default_rng(levels)
    for _ in range(20):
        shape = tuple(generator.integers(2, 15, size=2))
        truth = generator.random(shape) < generator.uniform(0.1, 0.9)
        truth[0, 0], truth[0, 1] = True, False
        scores = np.clip(0.3 * truth + generator.random(shape) * 0.7, 0, 1)
        scores = (np.round(scores * (levels - 1)) / (levels - 1)).astype(np.float32)
        found = image_metrics(scores > 0.5, truth, scores)
        assert found["roc_auc"] == pytest.approx(_by_pairs(scores, truth), abs=1e-9)
        assert found["pr_auc"] == pytest.approx(_by_steps(scores, truth), abs=1e-9)


def test_hand_computed() -> None:
    truth = np.array([[True, False, True, False]])
    scores = np.array([[0.9, 0.6, 0.6, 0.1]], np.float32)
    found = image_metrics(scores > 0.5, truth, scores)
    assert found["roc_auc"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert found["pr_auc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    chance = image_metrics(scores > 0.5, truth, np.full((1, 4), 0.5))
    assert (chance["roc_auc"], chance["pr_auc"]) == (0.5, 0.5)


def test_undefined_without_probabilities_and_with_one_class() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1] = True
    scores = np.full((4, 4), 0.5, np.float32)
    for prediction, truth, given in ((mask, mask, None), (mask, ~mask & mask, scores), (mask, mask | ~mask, scores)):
        found = image_metrics(prediction, truth, given)
        assert math.isnan(found["roc_auc"]) and math.isnan(found["pr_auc"])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (np.full((4, 5), 0.5), "one size"),
        (np.full((4, 4), 1.5), "need a sigmoid"),
        (np.full((4, 4), -0.1), "need a sigmoid"),
        (np.full((4, 4), np.nan), "found nan"),
    ],
)
def test_wrong_probabilities_are_refused(scores: np.ndarray, expected: str) -> None:
    mask = np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match=expected):
        image_metrics(mask, mask, scores)
