"""Recall and precision by width: bars by hand, and the definition by all pairs of pixels and by distance transforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from skimage.morphology import skeletonize

from tests.evaluation.metrics.masks import all_pairs
from vesselseg.evaluation.metrics import image_metrics
from vesselseg.evaluation.metrics.widths import local_widths

CLASSES = ("thin", "medium", "wide")
Spacing = tuple[float, float] | None


def _classes_by_pairs(mask: np.ndarray, spacing: Spacing) -> np.ndarray:
    """0, 1, 2 per pixel of mask: every distance computed; of equally near centreline pixels the wider counts."""
    step = np.array(spacing or (1.0, 1.0))
    edges = (6.0, 10.0) if spacing is None else (1.5, 3.0)
    pixels, background, line = (np.argwhere(one) * step for one in (mask, ~mask, skeletonize(mask)))
    if len(background):
        walls = np.sqrt(((line[:, None] - background[None]) ** 2).sum(-1)).min(1)
        widths = 2 * walls - step.mean()
    else:
        widths = np.full(len(line), np.inf)
    of_line = np.array([sum(width >= edge for edge in edges) for width in widths])
    apart = np.sqrt(((pixels[:, None] - line[None]) ** 2).sum(-1))
    return np.array([of_line[np.isclose(row, row.min(), rtol=0, atol=1e-12)].max() for row in apart], dtype=int)


def _classes_by_transforms(mask: np.ndarray, spacing: Spacing) -> np.ndarray:
    step = spacing or (1.0, 1.0)
    line = skeletonize(mask)
    walls = distance_transform_edt(mask, sampling=step) if not mask.all() else np.full(mask.shape, np.inf)
    thin, wide = (6.0, 10.0) if spacing is None else (1.5, 3.0)
    widths = np.where(line, 2 * walls - np.mean(step), np.nan)
    classes = [line & (widths < thin), line & (widths >= thin) & (widths < wide), line & (widths >= wide)]
    near = [
        distance_transform_edt(~one, sampling=step) if one.any() else np.full(mask.shape, np.inf) for one in classes
    ]
    nearest = np.min(near, axis=0)
    return np.max([np.where(one <= nearest + 1e-12, number, 0) for number, one in enumerate(near)], axis=0)[mask]


def _expected(mask: np.ndarray, other: np.ndarray, classes: np.ndarray) -> list[float]:
    inside = other[mask]
    return [inside[classes == number].mean() if (classes == number).any() else math.nan for number in range(3)]


@pytest.mark.parametrize("spacing", [None, (0.25, 0.25), (0.5, 0.25)])
def test_agrees_with_all_pairs_and_with_distance_transforms(spacing: Spacing) -> None:
    for prediction, truth in all_pairs(25, 8):
        found = image_metrics(prediction, truth, spacing=spacing)
        for name, mask, other in (("recall", truth, prediction), ("precision", prediction, truth)):
            values = [found[f"{name}_{word}"] for word in CLASSES]
            if not mask.any():
                assert all(math.isnan(value) for value in values)
                continue
            for classes in (_classes_by_pairs(mask, spacing), _classes_by_transforms(mask, spacing)):
                assert values == pytest.approx(_expected(mask, other, classes), nan_ok=True)


def _bars() -> np.ndarray:
    """Bars of 3, 7 and 15 rows, 100 columns each."""
    mask = np.zeros((60, 110), bool)
    for top, rows in ((5, 3), (15, 7), (35, 15)):
        mask[top : top + rows, 5:105] = True
    return mask


def test_three_bars_by_hand() -> None:
    truth, prediction = _bars(), _bars()
    prediction[5:8, 5:55] = False  # half of the thin bar is missed
    prediction[15:22, 80:105] = False  # a quarter of the medium one
    prediction[52, 5:25] = True
    found = image_metrics(prediction, truth)
    assert found["recall_thin"] == pytest.approx(0.5, abs=0.05)  # the wide bar's tips have nearer walls
    assert found["recall_medium"] == pytest.approx(0.75, abs=0.04)
    assert found["recall_wide"] == 1
    assert found["precision_thin"] < found["precision_medium"] == 1
    in_mm = image_metrics(prediction, truth, spacing=(0.12, 0.12))  # 0.36, 0.84 and 1.8 mm: thin, thin and medium
    assert in_mm["recall_thin"] == pytest.approx((150 + 525) / 1000, abs=0.06)
    assert in_mm["recall_medium"] == 1 and math.isnan(in_mm["recall_wide"])


@pytest.mark.parametrize("rows", [1, 3, 5, 7, 9, 11])
def test_odd_widths_are_exact(rows: int) -> None:
    mask = np.zeros((30, 80), bool)
    mask[10 : 10 + rows] = True
    widths = local_widths(mask, skeletonize(mask), np.ones(2))
    assert np.median(widths) == rows and widths.max() == rows


def test_the_image_s_edge_is_no_wall() -> None:
    """A vessel cut in half lengthwise by the edge is as wide as what is seen of it on both sides."""
    mask = np.zeros((30, 80), bool)
    mask[:5] = True
    assert local_widths(mask, skeletonize(mask), np.ones(2)).min() >= 5
    full = image_metrics(np.ones((5, 5), bool), np.ones((5, 5), bool))
    assert full["recall_wide"] == 1 and math.isnan(full["recall_thin"])


def test_the_parts_make_up_recall_and_precision() -> None:
    """Weighted by their pixels, the classes' values give the value of the whole."""
    for prediction, truth in all_pairs(20, 8):
        found = image_metrics(prediction, truth)
        for name, mask in (("recall", truth), ("precision", prediction)):
            if mask.any():
                classes = _classes_by_transforms(mask, None)
                shares = [(found[f"{name}_{word}"], (classes == number).mean()) for number, word in enumerate(CLASSES)]
                assert sum(value * share for value, share in shares if share) == pytest.approx(found[name])
