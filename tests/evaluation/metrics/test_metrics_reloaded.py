"""Values that MetricsReloaded publishes for its own tests.

Arrays and expected values are those of test/test_metrics/test_pairwise_measures.py and test_prob_pairwise_measures.py
in Project-MONAI/MetricsReloaded (Apache-2.0), which take them from figures of Reinke et al., "Understanding metric-
related pitfalls in image analysis validation", Nature Methods 2024. The package is on no index, so its code cannot run
here.
"""

from __future__ import annotations

import numpy as np
import pytest

from vesselseg.evaluation.metrics import image_metrics
from vesselseg.evaluation.metrics.surfaces import surface_metrics


def _row(*runs: tuple[int, int]) -> np.ndarray:
    """One row of pixels: (value, how many)."""
    return np.concatenate([np.full(count, bool(value)) for value, count in runs])[None]


def _mask(side: int, *parts: tuple[slice | int, slice | int]) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    for part in parts:
        mask[part] = True
    return mask


SQUARE = _mask(11, (slice(3, 8), slice(3, 8)))
STAR = SQUARE | _mask(11, (5, slice(1, 10)), (slice(1, 10), 5))  # figure 10 of the pitfalls
LARGE = _mask(11, (slice(2, 5), slice(2, 9)), (slice(5, 9), slice(2, 6)))
HOOK = _mask(14, (slice(1, 4), 1), (3, slice(1, 4)))
F27_TRUTH, F27_PREDICTION = _row((1, 70), (0, 1)), _row((1, 40), (0, 30), (1, 1))
F38_TRUTH, F38_PREDICTION = _row((1, 1999), (0, 1)), _row((1, 1499), (0, 501))
BLOCK = _mask(14, (slice(9, 12), slice(9, 12)))
BLOCK_AND_PIXEL = BLOCK | _mask(14, (1, 1))


@pytest.mark.parametrize(
    ("name", "prediction", "truth", "expected", "tolerance"),
    [
        ("dice", STAR, SQUARE, 0.862, 0.001),
        ("iou", STAR, SQUARE, 0.76, 0.01),
        ("assd", STAR, SQUARE, 0.44, 0.01),
        ("dice", LARGE & ~_mask(11, (8, 2)), LARGE, 0.986, 0.001),
        ("recall", F27_PREDICTION, F27_TRUTH, 0.57, 0.01),
        ("precision", _row((1, 45), (0, 5), (1, 10), (0, 40)), _row((1, 50), (0, 50)), 0.82, 0.01),
        ("precision", _row((1, 81), (0, 9), (1, 2), (0, 8)), _row((1, 90), (0, 10)), 0.98, 0.01),
        ("accuracy", _row((1, 105)), _row((1, 30), (0, 75)), 0.286, 0.001),
        ("accuracy", _row((1, 20), (0, 15), (1, 60), (0, 10)), _row((1, 35), (0, 70)), 0.286, 0.001),
        ("mcc", F38_PREDICTION, F38_TRUTH, 0.0386, 0.001),
        ("balanced_accuracy", F38_PREDICTION, F38_TRUTH, 0.87, 0.01),
        ("hd", BLOCK, BLOCK_AND_PIXEL, 11.31, 0.01),
        ("hd95", BLOCK, BLOCK_AND_PIXEL, 6.79, 0.01),
        ("cldice", HOOK & ~_mask(14, (1, 1)), HOOK, 0.86, 0.03),
        ("cldice", HOOK & ~_mask(14, (slice(1, 3), 1)), HOOK, 0.67, 0.03),
    ],
)
def test_published_values(
    name: str, prediction: np.ndarray, truth: np.ndarray, expected: float, tolerance: float
) -> None:
    assert image_metrics(prediction, truth)[name] == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(("tolerance", "expected"), [(1.0, 0.89), (2.0, 1.0)])
def test_normalised_surface_distance(monkeypatch: pytest.MonkeyPatch, tolerance: float, expected: float) -> None:
    monkeypatch.setattr("vesselseg.evaluation.metrics.surfaces.NSD_TOLERANCE_PX", tolerance)
    assert surface_metrics(STAR, SQUARE, None)["nsd"] == pytest.approx(expected, abs=0.01)


def test_area_under_the_roc_curve() -> None:
    """PR-AUC differs: MetricsReloaded joins the points of the curve, which is optimistic; here they are steps."""
    truth = np.array([[0, 0, 0, 1, 1, 1]], bool)
    scores = np.array([[0.21, 0.35, 0.63, 0.92, 0.32, 0.79]])
    found = image_metrics(scores > 0.5, truth, scores)
    assert found["roc_auc"] == pytest.approx(0.78, abs=0.01)
    assert found["pr_auc"] == pytest.approx((1 + 1 + 3 / 5) / 3)


def test_both_empty() -> None:
    found = image_metrics(*np.zeros((2, 14, 14), bool))
    assert [found[name] for name in ("hd", "hd95", "assd", "dice")] == [0, 0, 0, 1]
