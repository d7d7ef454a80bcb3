"""All metrics together: the table, the ranges, the rule for empty masks, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.evaluation.metrics.masks import all_pairs, drawn_pairs
from vesselseg.evaluation.metrics import METRIC_TABLE, METRICS, image_metrics

# By the rule for empty masks: (both, only the prediction holds something, only the truth does).
OVERLAPS = ("dice", "iou", "precision", "recall", "cldice", "topology_precision", "topology_sensitivity", "nsd")


def test_the_table_names_what_is_computed_in_its_order() -> None:
    for prediction, truth in drawn_pairs(2):
        assert tuple(image_metrics(prediction, truth)) == METRICS == tuple(METRIC_TABLE)
    for name, metric in METRIC_TABLE.items():
        assert metric.name == name and metric.label and metric.meaning
        assert metric.lower_is_better == (metric.unit != "")
    assert [name for name in METRICS if METRIC_TABLE[name].needs_probabilities] == ["roc_auc", "pr_auc"]


def test_every_value_lies_in_its_range_and_a_perfect_prediction_is_best() -> None:
    for prediction, truth in all_pairs(60, 12):
        probabilities = 0.2 + 0.6 * prediction
        for name, value in image_metrics(prediction, truth, probabilities).items():
            lowest = -1 if name == "mcc" else 0
            highest = math.inf if METRIC_TABLE[name].unit else 1
            assert math.isnan(value) or lowest <= value <= highest, name
        for name, value in image_metrics(truth, truth, truth.astype(float)).items():
            assert math.isnan(value) or value == (0 if METRIC_TABLE[name].lower_is_better else 1), name


@pytest.mark.parametrize("rows", [slice(2, 3), slice(0, 1), slice(0, 6)])
def test_empty_masks_follow_the_one_rule(rows: slice) -> None:
    empty, some = np.zeros((2, 6, 6), bool)
    some[rows, 1:5] = True
    both, spurious, missed = image_metrics(empty, empty), image_metrics(some, empty), image_metrics(empty, some)
    for name in OVERLAPS:
        assert (both[name], spurious[name], missed[name]) == (1, 0, 0), name
    for name in ("hd", "hd95", "assd"):
        assert both[name] == 0 and math.isnan(spurious[name]) and math.isnan(missed[name])
    assert spurious["specificity"] == pytest.approx(1 - some.mean()) and missed["specificity"] == 1
    assert (both["mcc"], spurious["mcc"], missed["mcc"]) == (1, 0, 0)
    for name in ("betti_0_error", "betti_1_error", "components_error"):
        pieces = 0 if name == "betti_1_error" else 1
        assert (both[name], spurious[name], missed[name]) == (0, pieces, pieces)
    for word in ("thin", "medium", "wide"):
        assert math.isnan(spurious[f"recall_{word}"]) and math.isnan(missed[f"precision_{word}"])
    assert spurious["precision_thin"] == missed["recall_thin"] == 0


def test_whole_image_as_truth_leaves_specificity_at_one() -> None:
    assert image_metrics(*np.ones((2, 5, 5), bool))["specificity"] == 1.0


def test_dice_and_iou_are_tied() -> None:
    for prediction, truth in all_pairs(100, 0):
        values = image_metrics(prediction, truth)
        assert values["dice"] == pytest.approx(2 * values["iou"] / (1 + values["iou"]))


def test_spacing_changes_lengths_alone() -> None:
    """One mm per pixel gives the same lengths, and other tolerance and width classes."""
    by_size = {name for name in METRICS if METRIC_TABLE[name].scaled and METRIC_TABLE[name].unit == ""}
    for prediction, truth in drawn_pairs(3):
        pixels, ones, twos = (image_metrics(prediction, truth, spacing=s) for s in (None, (1, 1), (2, 2)))
        for name in set(METRICS) - by_size:
            factor = 2 if METRIC_TABLE[name].unit == "px/mm" else 1
            assert ones[name] == pytest.approx(pixels[name], nan_ok=True)
            assert twos[name] == pytest.approx(factor * pixels[name], nan_ok=True)


def test_wrong_input_is_refused() -> None:
    mask = np.zeros((4, 4), bool)
    with pytest.raises(ValueError, match="one size"):
        image_metrics(mask, np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match="bool mask"):
        image_metrics(mask.astype(np.uint8), mask)  # type: ignore[arg-type]


def test_bool_masks_with_the_byte_255_count_as_masks() -> None:
    """What ``np.asarray`` makes of a 1-bit image of Pillow."""
    generator = np.random.default_rng(4)
    prediction, truth = generator.random((2, 64, 64)) < 0.5
    odd = [np.where(mask, np.uint8(255), np.uint8(0)).view(np.bool_) for mask in (prediction, truth)]
    assert image_metrics(*odd) == pytest.approx(image_metrics(prediction, truth), nan_ok=True)
