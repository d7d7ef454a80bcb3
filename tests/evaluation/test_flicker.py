from __future__ import annotations

import numpy as np
import pytest

from vesselseg.evaluation.flicker import flicker, image_change, mask_change
from vesselseg.synthetic.cine import draw_cine


def square(left: int) -> np.ndarray:
    mask = np.zeros((20, 40), dtype=bool)
    mask[5:15, left : left + 10] = True
    return mask


def test_a_moving_square_by_hand() -> None:
    # 10 wide, moved by 2: Dice 0.8; by 5: 0.5; not at all: 1
    assert mask_change([square(0), square(2), square(7), square(7)]) == pytest.approx((0.2 + 0.5 + 0) / 3)


def test_empty_masks() -> None:
    empty = np.zeros((20, 40), dtype=bool)
    assert mask_change([empty, empty]) == 0
    assert mask_change([empty, square(0), square(0)]) == pytest.approx(0.5)


def test_images_by_correlation() -> None:
    image = np.add.outer(np.arange(40.0), np.arange(80.0))
    assert image_change([image, 3 * image + 7]) == pytest.approx(0)  # brightness and contrast do not count
    assert image_change([image, -image]) == pytest.approx(2)
    assert image_change([image, image, -image]) == pytest.approx(1)
    assert image_change([np.repeat(image[..., None], 3, 2)] * 2) == pytest.approx(0)


def test_an_image_without_structure() -> None:
    plain, image = np.full((8, 8), 3.0), np.add.outer(np.arange(8.0), np.arange(8.0))
    assert image_change([plain, plain]) == 0
    assert image_change([plain, image]) == 1
    thirds = [np.full((70, 70, 3), colour, np.uint8) for colour in ((1, 2, 2), (3, 4, 4))]  # their means are rounded
    assert image_change(thirds) == 1 and image_change([thirds[0], thirds[0]]) == 0


def test_noise_counts_little_and_motion_counts() -> None:
    rng = np.random.default_rng(0)
    columns = np.arange(256)
    bars = np.tile(100 + 50 * np.sin(columns / 10), (256, 1))
    noisy = [bars + rng.normal(0, 10, bars.shape) for _ in range(3)]
    moving = [np.roll(bars, 4 * number, axis=1) for number in range(3)]
    plain = 1 - np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]
    assert image_change(noisy) < plain / 5
    assert image_change(moving) > 10 * image_change(noisy)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9)])
def test_images_smaller_than_a_block(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape)
    assert image_change([image, image]) == pytest.approx(0)


def test_truth_has_a_ratio_of_one_and_noise_on_it_more() -> None:
    cine = draw_cine(16, 128, seed=1)
    exact = flicker(cine.masks, cine.masks, cine.frames)
    assert exact.to_truth == 1 and exact.masks == exact.truth
    assert exact.images is not None and 0 < exact.images < 0.5
    rng = np.random.default_rng(0)
    torn = [mask & (rng.random(mask.shape) < 0.7) for mask in cine.masks]
    worse = flicker(torn, cine.masks, cine.frames)
    assert worse.to_truth is not None and worse.to_truth > 1.5
    assert worse.to_images == pytest.approx(worse.masks / exact.images)


def test_nothing_to_compare_with() -> None:
    still = flicker([square(0)] * 3, [square(0)] * 3)
    assert still.as_json() == {"masks": 0, "truth": 0, "images": None, "to_truth": None, "to_images": None}


def test_one_frame_and_two_sizes() -> None:
    with pytest.raises(ValueError, match="at least two frames"):
        flicker([square(0)])
    with pytest.raises(ValueError, match="needs one size"):
        mask_change([square(0), np.zeros((3, 3), dtype=bool)])


def test_frames_may_come_one_by_one() -> None:
    assert mask_change(square(left) for left in (0, 2)) == pytest.approx(0.2)
