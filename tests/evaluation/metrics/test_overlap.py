"""Metrics of counts against sets of pixels and against scikit-learn. (MONAI: test_against_monai.py.)"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from tests.evaluation.metrics.masks import all_pairs
from vesselseg.evaluation.metrics import image_metrics


def _pixels(mask: np.ndarray) -> set[tuple[int, int]]:
    return {(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]}


def _by_sets(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The metrics' definitions over sets of pixels, the rules for empty masks written out."""
    p, t = _pixels(prediction), _pixels(truth)
    outside = _pixels(~truth)
    one = 1.0 if not p and not t else 0.0
    a, b = prediction.ravel().astype(float), truth.ravel().astype(float)
    if a.std() and b.std():
        mcc = np.corrcoef(a, b)[0, 1]
    elif a.std() or b.std():
        mcc = 0.0
    else:
        mcc = 1.0 if a[0] == b[0] else -1.0
    recalls = [len(p & t) / len(t)] if t else []
    recalls += [len(outside - p) / len(outside)] if outside else []
    return {
        "dice": 2 * len(p & t) / (len(p) + len(t)) if p or t else one,
        "iou": len(p & t) / len(p | t) if p or t else one,
        "precision": len(p & t) / len(p) if p else one,
        "recall": len(p & t) / len(t) if t else one,
        "specificity": len(outside - p) / len(outside) if outside else 1.0,
        "accuracy": sum(bool(x) == bool(y) for x, y in zip(prediction.ravel(), truth.ravel())) / truth.size,
        "balanced_accuracy": float(np.mean(recalls)),
        "mcc": mcc,
    }


def _by_sklearn(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Its word for an undefined value is set to the one for two empty masks, where the rule says so."""
    p, t = prediction.ravel(), truth.ravel()
    one = float(not p.any() and not t.any())
    return {
        "dice": sklearn_metrics.f1_score(t, p, zero_division=one),
        "iou": sklearn_metrics.jaccard_score(t, p, zero_division=one),
        "precision": sklearn_metrics.precision_score(t, p, zero_division=one),
        "recall": sklearn_metrics.recall_score(t, p, zero_division=one),
        "specificity": sklearn_metrics.recall_score(t, p, pos_label=False, zero_division=1.0),
        "accuracy": sklearn_metrics.accuracy_score(t, p),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(t, p),
        "mcc": sklearn_metrics.matthews_corrcoef(t, p),
    }


def test_agrees_with_sets_of_pixels() -> None:
    for prediction, truth in all_pairs(300, 10):
        found = image_metrics(prediction, truth)
        for name, expected in _by_sets(prediction, truth).items():
            assert found[name] == pytest.approx(expected, abs=1e-12), name


@pytest.mark.slow
def test_agrees_with_scikit_learn() -> None:
    """All but MCC where all pixels are of one kind: scikit-learn calls that 0, Chicco and Jurman 1 or -1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for prediction, truth in all_pairs(60, 5):
            found = image_metrics(prediction, truth)
            expected = _by_sklearn(prediction, truth)
            if all(mask.all() or not mask.any() for mask in (prediction, truth)):
                assert expected.pop("mcc") == 0 and abs(found["mcc"]) == 1
            assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_hand_computed() -> None:
    truth, prediction = np.zeros((2, 4, 5), bool)
    truth[1, 0:4] = prediction[1, 2:5] = prediction[3, 0] = True
    values = image_metrics(prediction, truth)  # tp 2, fp 2, fn 2, tn 14
    assert values["dice"] == values["precision"] == values["recall"] == pytest.approx(0.5)
    assert values["iou"] == pytest.approx(1 / 3)
    assert values["specificity"] == pytest.approx(14 / 16)
    assert values["accuracy"] == pytest.approx(16 / 20)
    assert values["balanced_accuracy"] == pytest.approx((0.5 + 14 / 16) / 2)
    assert values["mcc"] == pytest.approx((2 * 14 - 2 * 2) / math.sqrt(4 * 4 * 16 * 16))


@pytest.mark.parametrize(
    ("predicted", "labelled", "expected"), [(False, False, 1.0), (True, False, -1.0), (False, True, -1.0)]
)
def test_mcc_where_all_pixels_are_of_one_kind(predicted: bool, labelled: bool, expected: float) -> None:
    masks = [np.full((3, 4), value) for value in (predicted, labelled)]
    assert image_metrics(*masks)["mcc"] == expected


def test_balanced_accuracy_is_over_what_the_truth_holds() -> None:
    prediction = np.zeros((4, 5), bool)
    prediction[0] = True
    assert image_metrics(prediction, np.zeros((4, 5), bool))["balanced_accuracy"] == pytest.approx(15 / 20)
    assert image_metrics(prediction, np.ones((4, 5), bool))["balanced_accuracy"] == pytest.approx(5 / 20)
