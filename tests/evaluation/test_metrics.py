"""Metrics against hand-computed values and against set arithmetic that shares no code with them."""

from __future__ import annotations

import numpy as np
import pytest

from vesselseg.evaluation.metrics import METRICS, centreline_dice, image_metrics, topology_precision_sensitivity


def _random_masks(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(7)
    pairs = []
    for _ in range(count):
        shape = tuple(generator.integers(1, 24, size=2))
        density = generator.choice([0.0, 0.02, 0.3, 0.9, 1.0], size=2)
        pairs.append((generator.random(shape) < density[0], generator.random(shape) < density[1]))
    return pairs


def _pixels(mask: np.ndarray) -> set[tuple[int, int]]:
    return {(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]}


def _by_sets(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The metrics' definitions over sets of pixels, empty-mask rule written out."""
    p, t = _pixels(prediction), _pixels(truth)
    background = _pixels(~truth)
    one = 1.0 if not p and not t else 0.0
    return {
        "dice": 2 * len(p & t) / (len(p) + len(t)) if p or t else one,
        "iou": len(p & t) / len(p | t) if p or t else one,
        "precision": len(p & t) / len(p) if p else one,
        "recall": len(p & t) / len(t) if t else one,
        "specificity": len(background - p) / len(background) if background else 1.0,
        "accuracy": sum(bool(a) == bool(b) for a, b in zip(prediction.ravel(), truth.ravel())) / truth.size,
    }


def test_hand_computed() -> None:
    truth = np.zeros((4, 5), bool)
    truth[1, 0:4] = True
    prediction = np.zeros((4, 5), bool)
    prediction[1, 2:5] = True
    prediction[3, 0] = True
    values = image_metrics(prediction, truth)  # tp 2, fp 2, fn 2, tn 14
    assert values["dice"] == pytest.approx(0.5)
    assert values["iou"] == pytest.approx(1 / 3)
    assert values["precision"] == pytest.approx(0.5)
    assert values["recall"] == pytest.approx(0.5)
    assert values["specificity"] == pytest.approx(14 / 16)
    assert values["accuracy"] == pytest.approx(16 / 20)
    assert tuple(values) == METRICS


def test_agrees_with_sets_on_random_masks() -> None:
    for prediction, truth in _random_masks(300):
        values = image_metrics(prediction, truth)
        for name, expected in _by_sets(prediction, truth).items():
            assert values[name] == pytest.approx(expected, abs=1e-12), name
        assert all(0 <= value <= 1 for value in values.values())


def test_dice_and_iou_are_tied() -> None:
    for prediction, truth in _random_masks(100):
        values = image_metrics(prediction, truth)
        assert values["dice"] == pytest.approx(2 * values["iou"] / (1 + values["iou"]))


@pytest.mark.parametrize(
    ("predicted", "labelled", "expected"), [(False, False, 1.0), (True, False, 0.0), (False, True, 0.0)]
)
def test_empty_masks_follow_the_one_rule(predicted: bool, labelled: bool, expected: float) -> None:
    prediction, truth = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    prediction[2, 1:5] = predicted
    truth[3, 1:5] = labelled
    values = image_metrics(prediction, truth)
    assert [values[name] for name in ("dice", "iou", "precision", "recall", "cldice")] == [expected] * 5
    assert values["specificity"] == pytest.approx(1 - 4 / 36 if predicted else 1.0)


def test_whole_image_as_truth_leaves_specificity_at_one() -> None:
    truth = np.ones((5, 5), bool)
    assert image_metrics(truth, truth)["specificity"] == 1.0


def test_cldice_of_lines_one_pixel_wide_counts_their_pixels() -> None:
    truth, prediction = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    truth[10, 4:36] = True  # a line of one pixel is its own skeleton: 32 pixels
    prediction[10, 4:20] = True  # the first 16 of them
    prediction[2, 4:12] = True  # and a line of 8 elsewhere
    precision, sensitivity = topology_precision_sensitivity(prediction, truth)
    assert precision == pytest.approx(16 / 24)
    assert sensitivity == pytest.approx(16 / 32)
    assert centreline_dice(prediction, truth) == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))


def test_cldice_ignores_width_but_not_gaps() -> None:
    truth = np.zeros((40, 80), bool)
    truth[15:24, 5:75] = True
    thin, broken = np.zeros_like(truth), truth.copy()
    thin[18:21, 5:75] = True
    broken[:, 30:50] = False
    values = image_metrics(thin, truth)
    assert values["cldice"] > 0.95 > 0.6 > values["dice"]
    assert image_metrics(truth, thin)["cldice"] > 0.95
    assert centreline_dice(broken, truth) == pytest.approx(2 * (50 / 70) / (1 + 50 / 70), abs=0.03)


def test_cldice_does_not_depend_on_the_margin_around_the_vessel() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        prediction, truth = (generator.random((2, 15, 15)) < 0.6).astype(bool)
        wide = [np.pad(mask, 9) for mask in (prediction, truth)]
        assert centreline_dice(*wide) == pytest.approx(centreline_dice(*[np.pad(m, 1) for m in (prediction, truth)]))


def test_wrong_input_is_refused() -> None:
    mask = np.zeros((4, 4), bool)
    with pytest.raises(ValueError, match="one size"):
        image_metrics(mask, np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match="bool mask"):
        image_metrics(mask.astype(np.uint8), mask)


def test_bool_masks_with_the_byte_255_count_as_masks() -> None:
    """What ``np.asarray`` makes of a 1-bit image of Pillow."""
    generator = np.random.default_rng(4)
    prediction, truth = generator.random((2, 64, 64)) < 0.5
    odd = [np.where(mask, np.uint8(255), np.uint8(0)).view(np.bool_) for mask in (prediction, truth)]
    assert image_metrics(*odd) == image_metrics(prediction, truth)
