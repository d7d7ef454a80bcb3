"""Distances between outlines against all pairs of pixels and against scikit-image. (MONAI: test_against_monai.py.)"""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import hausdorff_distance

from tests.evaluation.metrics.masks import all_pairs, both_hold_something, drawn_pairs, special_pairs
from vesselseg.evaluation.metrics import image_metrics

NAMES = ("hd", "hd95", "assd", "nsd")


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels with one of four neighbours that is background or beyond the image."""
    height, width = mask.shape
    inside = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside[y, x] = all(0 <= a < height and 0 <= b < width and mask[a, b] for a, b in around)
    return mask & ~inside


def _by_pairs(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float], tolerance: float
) -> dict[str, float]:
    ours, theirs = (np.argwhere(_outline(mask)) for mask in (prediction, truth))
    apart = np.sqrt((((ours[:, None] - theirs[None]) * spacing) ** 2).sum(axis=-1))
    there, back = apart.min(axis=1), apart.min(axis=0)
    both = [*there, *back]
    return {
        "hd": max(both),
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "assd": float(np.mean(both)),
        "nsd": sum(distance <= tolerance + 1e-9 for distance in both) / len(both),
    }


@pytest.mark.parametrize("spacing", [None, (0.1, 0.1), (0.3, 0.17), (2.0, 5.0)])
def test_agrees_with_all_pairs_of_outline_pixels(spacing: tuple[float, float] | None) -> None:
    for prediction, truth in both_hold_something(all_pairs(40, 12)):
        found = image_metrics(prediction, truth, spacing=spacing)
        expected = _by_pairs(prediction, truth, spacing or (1, 1), 2.0 if spacing is None else 0.5)
        assert {name: found[name] for name in NAMES} == pytest.approx(expected, abs=1e-9)


def test_the_largest_distance_agrees_with_scikit_image() -> None:
    for prediction, truth in both_hold_something(all_pairs()):
        expected = hausdorff_distance(_outline(prediction), _outline(truth))
        assert image_metrics(prediction, truth)["hd"] == pytest.approx(expected)


def test_two_parallel_lines_by_hand() -> None:
    """Ten pixels each, three rows apart, the prediction four columns further: 3 where above each other, else more."""
    truth, prediction = np.zeros((2, 12, 20), bool)
    truth[4, 2:12] = prediction[7, 6:16] = True
    ends = [math.hypot(3, step) for step in (1, 2, 3, 4)]
    found = image_metrics(prediction, truth)
    assert found["hd"] == pytest.approx(5)
    assert found["hd95"] == pytest.approx(ends[2] + 0.55 * (ends[3] - ends[2]))  # rank 0.95 * 9 = 8.55 of 0..9
    assert found["assd"] == pytest.approx((6 * 3 + sum(ends)) / 10)
    assert found["nsd"] == 0
    in_mm = image_metrics(prediction, truth, spacing=(0.1, 0.2))
    assert in_mm["hd"] == pytest.approx(math.hypot(0.3, 0.8))
    assert in_mm["nsd"] == pytest.approx(8 / 10)  # 0.3 above each other, then 0.36, 0.5 and two beyond 0.5


def test_the_percentile_is_of_the_worse_direction() -> None:
    """One of 21 outline pixels is far away: the 95th percentile of its direction is the last of the near ones, that of
    both directions pooled (MedPy's convention) would not see it either; two of them count.
    """
    truth = np.zeros((30, 60), bool)
    truth[5, 5:25] = True
    one, two = truth.copy(), truth.copy()
    one[25, 5] = two[25, 5] = two[25, 7] = True
    assert image_metrics(one, truth)["hd95"] == 0
    assert image_metrics(two, truth)["hd95"] == pytest.approx(0.95 * 20)  # rank 0.95 * 21 = 19.95: 0 to 20
    pooled = [0.0] * 40 + [20.0] * 2
    assert np.percentile(pooled, 95) == 0


@pytest.mark.parametrize("turn", [0, 1])
def test_an_outline_drawn_one_pixel_aside_is_within_the_tolerance(turn: int) -> None:
    straight, diagonal = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    straight[10:14, 5:35] = True
    for row in range(5, 33):
        diagonal[row, row : row + 3] = True
    for mask in (straight, diagonal):
        moved = np.roll(np.rot90(mask, turn), (1, 1), axis=(0, 1))
        assert image_metrics(moved, np.rot90(mask, turn))["nsd"] == 1
        assert image_metrics(moved, np.rot90(mask, turn))["hd"] == pytest.approx(math.sqrt(2))


def test_empty_masks_follow_the_rule() -> None:
    for prediction, truth in special_pairs():
        found = image_metrics(prediction, truth)
        values = [found[name] for name in NAMES]
        if not prediction.any() and not truth.any():
            assert values == [0, 0, 0, 1]
        elif not prediction.any() or not truth.any():
            assert values == pytest.approx([math.nan] * 3 + [0], nan_ok=True)
        else:
            assert all(math.isfinite(value) for value in values)


def test_distances_do_not_depend_on_the_order_or_on_the_margin() -> None:
    for prediction, truth in both_hold_something(drawn_pairs(10)):
        there, back = image_metrics(prediction, truth), image_metrics(truth, prediction)
        wide = image_metrics(np.pad(prediction, 7), np.pad(truth, 7))
        for name in NAMES:
            assert there[name] == pytest.approx(back[name]) == pytest.approx(wide[name])


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, -1.0), (1.0,), (float("nan"), 1.0), (1.0, 1.0, 1.0)])
def test_a_wrong_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    mask = np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match="mm per pixel"):
        image_metrics(mask, mask, spacing=spacing)  # type: ignore[arg-type]
