from __future__ import annotations

from dataclasses import fields

import cv2
import numpy as np
import pytest

from vesselseg.dataset.augment import CHANGES, NNUNET, ORIENTED, PRESETS, Augment
from vesselseg.errors import UserError

OFF = {field.name: 0 for field in fields(Augment) if field.name != "chances"}
NOTHING = Augment(**OFF)
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


@pytest.mark.parametrize("more", [{}, {"quarter_turns": True}, {"aspect": 0.2}, {"elastic": 0.03}])
def test_masks_move_with_their_objects(more: dict[str, float]) -> None:
    image, masks = scene()
    augment = Augment(**GEOMETRY, **QUIET, **more)
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


@pytest.mark.parametrize(
    "name", ["brightness", "contrast", "gamma", "noise", "inverted_gamma", "bias_field", "low_resolution"]
)
def test_each_intensity_range_acts_within_bounds(name: str) -> None:
    image, masks = scene()
    augment = Augment(**{**OFF, name: 0.2})
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
        ({"scale": (1.2, 0.8)}, r"scale is \(1.2, 0.8\), expected a number or a pair"),
        ({"low_resolution": 1}, "low_resolution is 1, expected less than 1"),
        ({"chances": {"rotate": 0.5, "blur": 2}}, "chances names rotate, .*; chances.blur is 2, expected 0 to 1"),
        ({"horizontal_flip": 50, "contrast": 2}, "horizontal_flip is 50, .*; contrast is 2"),
    ],
)
def test_invalid_values_are_reported_together(wrong: dict[str, float], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Augment(**wrong)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_draw_the_same_sample_again_and_keep_grey_grey(name: str) -> None:
    image, masks = scene()
    for seed in range(20):
        one, other = (PRESETS[name](image, masks, np.random.default_rng(seed)) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one, other))
        assert one[0].shape == image.shape and one[0].dtype == np.uint8 and one[1].dtype == np.uint8
        assert np.array_equal(one[0][..., 0], one[0][..., 2])


def test_oriented_images_stay_the_right_way_up() -> None:
    """The bar lies below and right of the triangle in every copy; nnU-Net's list turns and mirrors it."""
    image, masks = scene()

    def below(augment: Augment, seed: int) -> bool:
        _, changed = augment(image, masks, np.random.default_rng(seed))
        rows = [np.argwhere(mask)[:, 0].mean() for mask in changed if mask.any()]
        return len(rows) < 2 or rows[1] > rows[0]

    assert all(below(ORIENTED, seed) for seed in range(60))
    assert not all(below(NNUNET, seed) for seed in range(60))


def test_changes_that_are_off_draw_nothing() -> None:
    """A run that began before there were elastic deformation and chances resumes with the same pictures."""
    image, masks = scene()
    used, expected = np.random.default_rng(5), np.random.default_rng(5)
    Augment(**GEOMETRY, quarter_turns=True, gamma=0.3, noise=0.03)(image, masks, used)
    expected.random(2)  # flips
    turns = int(expected.integers(4))
    expected.uniform(size=4)  # angle, scale, shift
    expected.uniform(size=4)  # contrast, brightness, gamma, noise
    expected.standard_normal((120, 90) if turns % 2 == 0 else (90, 120), dtype=np.float32)
    assert used.random() == expected.random()


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_happens_as_often_as_its_chance(name: str, chance: float) -> None:
    image, masks = scene()
    augment = Augment(**{**OFF, name: 2.0 if name == "blur" else 0.3}, chances={name: chance})
    changed = [not np.array_equal(augment(image, masks, np.random.default_rng(s))[0], image) for s in range(60)]
    assert 60 * chance - 12 <= sum(changed) <= 60 * chance + 12 * (0 < chance < 1)


def test_a_pair_of_scales_is_drawn_between_both_ends() -> None:
    """Of a square that is scaled alone, the area says by how much."""
    image, masks = np.zeros((120, 120, 3), np.uint8), np.zeros((1, 120, 120), np.uint8)
    masks[:, 40:80, 40:80] = 1
    augment = Augment(**{**OFF, "scale": (0.5, 1.5)})
    factors = [augment(image, masks, np.random.default_rng(seed))[1].sum() ** 0.5 / 40 for seed in range(80)]
    assert 0.47 < min(factors) < 0.65 and 1.35 < max(factors) < 1.53
    assert 0.75 < np.median(factors) < 1.0  # log-uniform: the middle is the geometric mean, 0.87


def test_elastic_deformation_bends_a_line() -> None:
    image, masks = np.zeros((128, 128, 3), np.uint8), np.zeros((1, 128, 128), np.uint8)
    masks[:, 62:66, 10:118] = 1
    _, changed = Augment(**{**OFF, "elastic": 0.05})(image, masks, np.random.default_rng(3))
    rows = [np.argwhere(column).mean() for column in changed[0].T if column.any()]
    assert np.ptp(rows) > 3 and np.abs(np.diff(rows)).max() < 3  # smoothly


def test_blur_and_low_resolution_lose_detail_alone() -> None:
    fine = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8).repeat(3, axis=2)
    for name, value in (("blur", 1.0), ("low_resolution", 0.5)):
        changed, _ = Augment(**{**OFF, name: value})(fine, np.zeros((0, 64, 64), np.uint8), np.random.default_rng(0))
        assert abs(changed.mean() - fine.mean()) < 4
        assert (
            np.abs(np.diff(changed[..., 0].astype(int))).mean() < 0.8 * np.abs(np.diff(fine[..., 0].astype(int))).mean()
        )
