from __future__ import annotations

from dataclasses import fields

import cv2
import numpy as np
import pytest

from vesselseg.dataset.augment import Augment
from vesselseg.errors import UserError

NOTHING = Augment(**{field.name: 0 for field in fields(Augment)})
GEOMETRY = {"horizontal_flip": 0.5, "vertical_flip": 0.5, "rotation": 25.0, "scale": 0.3, "translation": 0.1}
QUIET = {"brightness": 0.0, "contrast": 0.0}


def scene(height: int = 120, width: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """A bright triangle and a bright bar off the middle, and their masks."""
    masks = np.zeros((2, height, width), np.uint8)
    cv2.fillPoly(masks[0], [np.array([[10, 15], [60, 25], [20, 70]])], 1)
    masks[1, 85:105, 40:80] = 1
    image = np.full((height, width, 3), 30, np.uint8)
    image[masks[0] > 0] = 150
    image[masks[1] > 0] = 240
    return image, masks


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))


@pytest.mark.parametrize("quarter_turns", [False, True])
def test_masks_move_with_their_objects(quarter_turns: bool) -> None:
    image, masks = scene()
    augment = Augment(**GEOMETRY, **QUIET, quarter_turns=quarter_turns)
    moved = 0
    for seed in range(60):
        changed, changed_masks = augment(image, masks, np.random.default_rng(seed))
        assert changed.shape[:2] == changed_masks.shape[1:]
        assert set(np.unique(changed_masks)) <= {0, 1}
        assert changed_masks.dtype == np.uint8
        assert iou(changed[..., 0] > 195, changed_masks[1] > 0) > 0.9
        # Interpolated rims of the brighter bar pass through the triangle's grey, so all that is bright is compared.
        assert iou(changed[..., 0] > 90, changed_masks.any(0)) > 0.9
        moved += changed.shape == image.shape and iou(changed_masks[0] > 0, masks[0] > 0) < 0.7
    assert moved > 10


def test_the_same_seed_gives_the_same_sample() -> None:
    image, masks = scene()
    augment = Augment(**GEOMETRY, gamma=0.3, noise=0.05)
    first = augment(image, masks, np.random.default_rng((1, 2, 3)))
    second = augment(image, masks, np.random.default_rng((1, 2, 3)))
    other = augment(image, masks, np.random.default_rng((1, 2, 4)))
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert not np.array_equal(first[0], other[0])


def test_ranges_of_zero_change_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    masks = (image[..., 0] > 100).astype(np.uint8)[None]
    for seed in range(20):
        same, same_masks = NOTHING(image, masks, np.random.default_rng(seed))
        np.testing.assert_array_equal(same, image)
        np.testing.assert_array_equal(same_masks, masks)


def test_inputs_are_not_modified() -> None:
    image, masks = scene()
    kept = image.copy(), masks.copy()
    for seed in range(5):
        Augment(noise=0.1)(image, masks, np.random.default_rng(seed))
    assert np.array_equal(image, kept[0]) and np.array_equal(masks, kept[1])


def test_read_only_pixels_and_no_objects() -> None:
    image, _ = scene()
    image.setflags(write=False)
    changed, masks = Augment(**GEOMETRY)(image, np.zeros((0, 120, 90), np.uint8), np.random.default_rng(0))
    assert changed.shape == (120, 90, 3)
    assert masks.shape == (0, 120, 90)


def test_intensity_changes_neither_masks_nor_colour() -> None:
    image, masks = scene()
    augment = Augment(horizontal_flip=0, rotation=0, scale=0, translation=0, gamma=0.5, noise=0.05)
    means = set()
    for seed in range(20):
        changed, same = augment(image, masks, np.random.default_rng(seed))
        np.testing.assert_array_equal(same, masks)
        assert np.array_equal(changed[..., 0], changed[..., 1]) and np.array_equal(changed[..., 0], changed[..., 2])
        means.add(round(float(changed.mean()), 1))
    assert len(means) > 10


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma", "noise"])
def test_each_intensity_range_acts_within_bounds(name: str) -> None:
    image, masks = scene()
    augment = Augment(**{**{field.name: 0 for field in fields(Augment)}, name: 0.2})
    differences = [
        augment(image, masks, np.random.default_rng(seed))[0].astype(int) - image.astype(int) for seed in range(20)
    ]
    assert any(difference.any() for difference in differences)
    assert max(abs(difference).mean() for difference in differences) < 0.25 * 255
    if name == "brightness":
        assert max(abs(difference).max() for difference in differences) <= 51


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"rotation": -5}, "rotation is -5, expected 0 or more"),
        ({"scale": 1.0}, "scale is 1.0, expected less than 1"),
        ({"horizontal_flip": 50, "contrast": 2}, "horizontal_flip is 50, .*; contrast is 2"),
    ],
)
def test_invalid_values_are_reported_together(wrong: dict[str, float], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Augment(**wrong)
