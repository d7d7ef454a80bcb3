"""Centrelines, pieces and holes: by hand, by walking from pixel to pixel, and by scikit-image and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.measure import euler_number, label
from skimage.morphology import skeletonize

from tests.evaluation.metrics.masks import all_pairs, both_hold_something, drawn_pairs
from vesselseg.evaluation.metrics import image_metrics

EIGHT = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def _walk(mask: np.ndarray, neighbours: list[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """Connected pieces as sets of pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    pieces = []
    while left:
        piece, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            piece.add((y, x))
            near = {(y + dy, x + dx) for dy, dx in neighbours} & left
            left -= near
            edge += near
        pieces.append(piece)
    return pieces


def _betti_by_walking(mask: np.ndarray) -> tuple[int, int]:
    return len(_walk(mask, EIGHT)), len(_walk(~np.pad(mask, 1), FOUR)) - 1


def _betti_by_libraries(mask: np.ndarray) -> tuple[int, int]:
    """Pieces by OpenCV; holes are pieces less scikit-image's Euler number."""
    pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    return pieces, pieces - int(euler_number(mask, connectivity=2))


def test_betti_errors_and_lone_pieces_agree_with_walking_and_with_libraries() -> None:
    for prediction, truth in all_pairs(60, 12):
        found = image_metrics(prediction, truth)
        walked = [_betti_by_walking(mask) for mask in (prediction, truth)]
        assert walked == [_betti_by_libraries(mask) for mask in (prediction, truth)]
        assert found["betti_0_error"] == abs(walked[0][0] - walked[1][0])
        assert found["betti_1_error"] == abs(walked[0][1] - walked[1][1])
        p, t = ({(int(y), int(x)) for y, x in np.argwhere(mask)} for mask in (prediction, truth))
        lone = sum(not piece & t for piece in _walk(prediction, EIGHT)) + sum(not x & p for x in _walk(truth, EIGHT))
        assert found["components_error"] == lone
        by_label = 0
        for mask, other in ((prediction, truth), (truth, prediction)):
            pieces = label(mask, connectivity=2)
            by_label += sum(not other[pieces == number].any() for number in range(1, pieces.max() + 1))
        assert found["components_error"] == by_label


def test_pieces_and_holes_by_hand() -> None:
    truth = np.zeros((20, 30), bool)
    truth[2:12, 2:12] = True
    truth[5:8, 5:8] = False  # a ring
    truth[3, 20] = truth[4, 21] = True  # two pixels that touch by a corner: one piece
    prediction = truth.copy()
    prediction[10:12, 6] = prediction[6, 2:6] = False  # a notch from outside, and the ring is cut open
    prediction[15, 3:7] = True  # an island
    found = image_metrics(prediction, truth)
    assert (found["betti_0_error"], found["betti_1_error"], found["components_error"]) == (1, 1, 1)
    moved = np.roll(truth, 15, axis=0)
    moved[:4] = False
    cancelled = image_metrics(moved, truth)
    assert cancelled["betti_0_error"] == 1 and cancelled["components_error"] == 3
    border = np.zeros((6, 6), bool)
    border[0:4, 3] = border[3, 3:6] = True  # with the image's edge it encloses a corner, which is no hole
    assert image_metrics(border, np.zeros((6, 6), bool))["betti_1_error"] == 0
    diamond = np.zeros((5, 5), bool)
    diamond[[1, 2, 2, 3], [2, 1, 3, 2]] = True  # touches by corners alone, and still encloses its middle
    values = image_metrics(diamond, np.zeros((5, 5), bool))
    assert (values["betti_0_error"], values["betti_1_error"]) == (1, 1)


def test_cldice_of_lines_one_pixel_wide_counts_their_pixels() -> None:
    truth, prediction = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    truth[10, 4:36] = True  # a line of one pixel is its own skeleton: 32 pixels
    prediction[10, 4:20] = True  # the first 16 of them
    prediction[2, 4:12] = True  # and a line of 8 elsewhere
    found = image_metrics(prediction, truth)
    assert found["topology_precision"] == pytest.approx(16 / 24)
    assert found["topology_sensitivity"] == pytest.approx(16 / 32)
    assert found["cldice"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))


def _thinned(mask: np.ndarray) -> np.ndarray:
    """The plain algorithm of Zhang and Suen, "A fast parallel algorithm for thinning digital patterns", 1984."""
    kept = np.pad(mask, 1).astype(int)
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            removed = []
            for y, x in np.argwhere(kept):
                ring = [kept[y + dy, x + dx] for dy, dx in ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))]
                ring.append(kept[y - 1, x - 1])
                north, east, south, west = ring[0], ring[2], ring[4], ring[6]
                rises = sum(not ring[i] and ring[(i + 1) % 8] for i in range(8))
                sides = (
                    (north * east * south, east * south * west)
                    if first
                    else (north * east * west, north * south * west)
                )
                if 2 <= sum(ring) <= 6 and rises == 1 and sides == (0, 0):
                    removed.append((y, x))
            for pixel in removed:
                kept[pixel] = 0
            changed |= bool(removed)
    return kept[1:-1, 1:-1].astype(bool)


def test_cldice_agrees_with_its_definition() -> None:
    """Exactly with scikit-image's skeleton, closely with that of another algorithm."""
    for prediction, truth in both_hold_something(drawn_pairs(8)):
        found = image_metrics(prediction, truth)
        for skeleton_of, tolerance in ((skeletonize, 1e-12), (_thinned, 0.1)):
            of_prediction, of_truth = skeleton_of(prediction), skeleton_of(truth)
            precision = sum(truth[y, x] for y, x in np.argwhere(of_prediction)) / of_prediction.sum()
            sensitivity = sum(prediction[y, x] for y, x in np.argwhere(of_truth)) / of_truth.sum()
            assert found["topology_precision"] == pytest.approx(precision, abs=tolerance)
            assert found["topology_sensitivity"] == pytest.approx(sensitivity, abs=tolerance)
            mean = 2 / (1 / precision + 1 / sensitivity) if precision and sensitivity else 0
            assert found["cldice"] == pytest.approx(mean, abs=tolerance)


def test_every_mask_has_a_centreline_inside_it_with_the_same_pieces_and_holes() -> None:
    """What clDice rests on: a mask without centreline would divide by 0."""
    masks = [mask for pair in all_pairs(120, 20) for mask in pair if mask.any()]
    squares = [np.ones((side, side), bool) for side in (1, 2, 3, 4, 5)]
    for mask in [*masks, *squares, *(np.pad(square, 2) for square in squares)]:
        skeleton = skeletonize(mask)
        assert skeleton.any() and not (skeleton & ~mask).any()
        assert _betti_by_libraries(skeleton) == _betti_by_libraries(mask)


def test_cldice_ignores_width_but_not_gaps() -> None:
    truth = np.zeros((40, 80), bool)
    truth[15:24, 5:75] = True
    thin, broken = np.zeros_like(truth), truth.copy()
    thin[18:21, 5:75] = True
    broken[:, 30:50] = False
    values = image_metrics(thin, truth)
    assert values["cldice"] > 0.95 > 0.6 > values["dice"]
    assert image_metrics(truth, thin)["cldice"] > 0.95
    assert image_metrics(broken, truth)["cldice"] == pytest.approx(2 * (50 / 70) / (1 + 50 / 70), abs=0.03)


def test_cldice_does_not_depend_on_the_margin_around_the_vessel() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        prediction, truth = (generator.random((2, 15, 15)) < 0.6).astype(bool)
        wide, tight = ([np.pad(mask, margin) for mask in (prediction, truth)] for margin in (9, 1))
        assert image_metrics(*wide)["cldice"] == pytest.approx(image_metrics(*tight)["cldice"])
