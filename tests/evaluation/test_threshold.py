"""Threshold search against a loop over thresholds that builds every mask."""

from __future__ import annotations

import numpy as np
import pytest

from vesselseg.evaluation.metrics import METRIC_TABLE, METRICS, image_metrics
from vesselseg.evaluation.options import COUNT_METRICS, MASK_METRICS
from vesselseg.evaluation.threshold import (
    THRESHOLDS,
    apply_threshold,
    best_threshold,
    count_metrics,
    dice_iou_curves,
    metric_threshold,
    threshold_counts,
)


def _cases(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random probabilities, half of them exactly on thresholds, with empty and full truths among them."""
    generator = np.random.default_rng(11)
    cases = []
    for number in range(count):
        shape = tuple(generator.integers(1, 20, size=2))
        probabilities = generator.random(shape).astype(np.float32)
        if number % 2:
            probabilities = (np.round(probabilities * 100) / 100).astype(np.float32)
        cases.append((probabilities, generator.random(shape) < generator.choice([0.0, 0.3, 1.0])))
    cases.append((np.zeros((3, 3), np.float32), np.zeros((3, 3), bool)))
    return cases


def test_grid() -> None:
    assert len(THRESHOLDS) == 99
    assert THRESHOLDS[0] == 0.01
    assert THRESHOLDS[34] == 0.35
    assert THRESHOLDS[-1] == 0.99


def test_counts_equal_those_of_a_loop_over_masks() -> None:
    for probabilities, truth in _cases(60):
        counts = threshold_counts(probabilities, truth)
        assert counts.shape == (99, 3)
        assert counts.dtype == np.int64
        for index, threshold in enumerate(THRESHOLDS):
            mask = apply_threshold(probabilities, float(threshold))
            expected = [(mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum()]
            assert counts[index].tolist() == expected, threshold


def test_curves_equal_the_mean_of_the_metrics() -> None:
    cases = _cases(20)
    dice, iou = dice_iou_curves(np.stack([threshold_counts(p, t) for p, t in cases]))
    for index in (0, 24, 34, 49, 98):
        values = [image_metrics(apply_threshold(p, float(THRESHOLDS[index])), t) for p, t in cases]
        assert dice[index] == pytest.approx(np.mean([v["dice"] for v in values]))
        assert iou[index] == pytest.approx(np.mean([v["iou"] for v in values]))


@pytest.mark.slow
def test_best_threshold_is_the_best_of_a_loop() -> None:
    cases = [case for case in _cases(20) if case[0].size > 40]
    threshold, mean_dice = best_threshold(np.stack([threshold_counts(p, t) for p, t in cases]))
    means = [np.mean([image_metrics(apply_threshold(p, float(t)), m)["dice"] for p, m in cases]) for t in THRESHOLDS]
    assert mean_dice == pytest.approx(max(means))
    assert means[round(threshold * 100) - 1] == pytest.approx(max(means))


def test_best_threshold_finds_a_planted_one() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((50, 50)) < 0.3
    probabilities = np.where(truth, 0.30, 0.20).astype(np.float32) + generator.uniform(0, 0.04, (50, 50)).astype("f4")
    threshold, mean_dice = best_threshold(threshold_counts(probabilities, truth)[None])
    assert 0.25 <= threshold <= 0.29
    assert mean_dice == 1.0


def test_of_equal_thresholds_the_middle_one_is_taken() -> None:
    truth = np.eye(5, dtype=bool)
    assert best_threshold(threshold_counts(truth.astype(np.float32), truth)[None]) == (0.5, 1.0)


def test_a_probability_equal_to_the_threshold_is_no_mask() -> None:
    probabilities = np.full((1, 1), 0.35, np.float32)
    counts = threshold_counts(probabilities, np.ones((1, 1), bool))
    assert counts[33].tolist() == [1, 0, 0]
    assert counts[34].tolist() == [0, 0, 1]
    assert not apply_threshold(probabilities, 0.35).any()


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_values_that_are_no_probabilities_are_refused(bad: float) -> None:
    probabilities = np.full((4, 4), 0.5, np.float32)
    probabilities[1, 2] = bad
    with pytest.raises(ValueError, match=r"0\.\.1"):
        threshold_counts(probabilities, np.zeros((4, 4), bool))


def test_no_image_and_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        dice_iou_curves(np.zeros((0, 99, 3), np.int64))
    with pytest.raises(ValueError, match="expected bool"):
        threshold_counts(np.zeros((4, 4), np.float32), np.zeros((4, 5), bool))


def test_a_bool_truth_with_the_byte_255_counts_as_mask() -> None:
    truth = np.random.default_rng(4).random((16, 16)) < 0.5
    odd = np.where(truth, np.uint8(255), np.uint8(0)).view(np.bool_)
    probabilities = np.random.default_rng(5).random((16, 16)).astype(np.float32)
    assert (threshold_counts(probabilities, odd) == threshold_counts(probabilities, truth)).all()


def test_metrics_from_counts_are_those_of_the_masks() -> None:
    """The rules for empty and full masks included."""
    cases = _cases(40)
    found = count_metrics(np.stack([threshold_counts(p, t) for p, t in cases]), [t.size for _, t in cases])
    assert set(found) == set(COUNT_METRICS) < set(METRICS)
    for index in (0, 24, 49, 98):
        for item, (probabilities, truth) in enumerate(cases):
            expected = image_metrics(apply_threshold(probabilities, float(THRESHOLDS[index])), truth)
            for name in COUNT_METRICS:
                assert found[name][item, index] == pytest.approx(expected[name]), (name, item, index)


def test_what_another_splits_threshold_costs() -> None:
    grid = np.array([0.2, 0.4, 0.6, 0.8])
    searched = np.array([[0.1, 0.9, 0.5, 0.1], [0.3, 0.7, 0.5, 0.1]])
    reported = np.array([[0.1, 0.4, 0.6, 0.2]])
    found = metric_threshold("dice", grid, searched, reported, lower_is_better=False)
    assert (found.threshold, found.reported_best_threshold) == (0.4, 0.6)
    assert (found.search_value, found.reported_value, found.reported_best) == pytest.approx((0.8, 0.4, 0.6))
    assert found.loss == pytest.approx(0.2)
    errors = metric_threshold("hd95", grid, -searched, -reported, lower_is_better=True)
    assert (errors.threshold, errors.reported_best_threshold) == (0.4, 0.6)
    assert errors.loss == pytest.approx(0.2)


def test_a_threshold_that_leaves_items_undefined_does_not_win() -> None:
    grid = np.array([0.2, 0.4, 0.6])
    distances = np.array([[9.0, 8.0, 1.0], [9.0, 8.0, np.nan]])
    found = metric_threshold("assd", grid, distances, distances, lower_is_better=True)
    assert found.threshold == found.reported_best_threshold == 0.4
    assert np.isnan(found.searched[2])


def test_every_metric_that_can_be_searched_is_in_the_table() -> None:
    assert set(COUNT_METRICS) | set(MASK_METRICS) < set(METRICS)
    assert not any(METRIC_TABLE[name].needs_probabilities for name in (*COUNT_METRICS, *MASK_METRICS))
