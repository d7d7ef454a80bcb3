from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vesselseg.dataset.image_views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageViews,
    logits_to_image,
    normalise,
    tile_grid,
)
from vesselseg.imaging.labelme import read_labelme
from vesselseg.imaging.rgb import to_rgb
from vesselseg.prepare.source_images import find_source_image

SIZES = [
    (512, 512),
    (800, 480),
    (480, 800),
    (1, 1),
    (1, 5000),
    (5000, 1),
    (448, 448),
    (449, 448),
    (896, 448),
    (2000, 1500),
    (1024, 1024),
    (333, 777),
]


def grid_by_hand(width: int, height: int, fewest: int, most: int, side: int) -> tuple[int, int]:
    """The published rule as a choice among all grids: closest ratio; of those, the largest that the area allows."""
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if fewest <= c * r <= most]
    closest = min(abs(width / height - c / r) for c, r in grids)
    tied = sorted((c * r, c, r) for c, r in grids if abs(width / height - c / r) == closest)
    chosen = tied[0]
    for grid in tied[1:]:
        if grid[0] == chosen[0]:
            return (0, 0)  # two grids of one size: the published result depends on the order of a set
        if width * height > 0.5 * side * side * grid[0]:
            chosen = grid
    return chosen[1], chosen[2]


@pytest.mark.parametrize(("fewest", "most"), [(1, 12), (1, 6), (1, 1), (3, 9), (12, 12)])
def test_the_grid_equals_the_published_one(fewest: int, most: int) -> None:
    generator = np.random.default_rng(0)
    drawn = [tuple(int(side) for side in generator.integers(1, 3000, 2)) for _ in range(300)]
    exact = [(c * side, r * side) for c in range(1, 7) for r in range(1, 7) for side in (40, 224, 317, 320, 448)]
    decided = 0
    for width, height in [*SIZES, *drawn, *exact]:
        expected = grid_by_hand(width, height, fewest, most, 448)
        if expected != (0, 0):
            decided += 1
            assert tile_grid(width, height, fewest, most, 448) == expected, (width, height)
    assert decided > 300


@pytest.mark.parametrize(
    ("size", "grid"),
    [((512, 512), (1, 1)), ((800, 480), (3, 2)), ((700, 700), (2, 2)), ((9000, 9000), (3, 3)), ((1, 5000), (1, 12))],
)
def test_known_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert tile_grid(*size, 1, 12, 448) == grid


@pytest.mark.parametrize("size", SIZES)
def test_views_have_their_shapes_at_any_size(size: tuple[int, int]) -> None:
    views = ImageViews(tile_size=28, sam_size=64, max_tiles=6)
    image = Image.new("RGB", size, (10, 20, 30))
    tiles = views.tiles(image)
    columns, rows = tile_grid(*size, 1, 6, 28)
    assert tiles.shape == (columns * rows + (columns * rows > 1), 3, 28, 28)
    assert views.square(image).shape == (3, 64, 64)
    assert tiles.dtype == torch.float32


def test_tiles_are_in_row_order_with_the_thumbnail_last() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    image = Image.fromarray(values.repeat(28, 0).repeat(28, 1)).convert("RGB")
    tiles = ImageViews(tile_size=28, sam_size=64, max_tiles=6).tiles(image)
    assert len(tiles) == 7
    middle = [denormalised(tile)[14, 14] for tile in tiles[:6]]
    assert middle == [0, 40, 80, 120, 160, 200]
    thumbnail = denormalised(tiles[6])
    assert [thumbnail[7, 4], thumbnail[7, 14], thumbnail[21, 23]] == [0, 40, 200]
    without = ImageViews(tile_size=28, sam_size=64, max_tiles=6, use_thumbnail=False).tiles(image)
    assert torch.equal(without, tiles[:6])


def denormalised(view: torch.Tensor) -> np.ndarray:
    return (view[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]).mul(255).round().numpy()


def test_normalise_by_hand() -> None:
    view = normalise(Image.new("RGB", (2, 3), (0, 128, 255)))
    expected = [(value / 255 - mean) / std for value, mean, std in zip((0, 128, 255), IMAGENET_MEAN, IMAGENET_STD)]
    assert view.shape == (3, 3, 2)
    np.testing.assert_allclose(view[:, 1, 1].numpy(), expected, rtol=1e-5)


GREY = np.array([[0, 100], [200, 255]], np.uint8)


def test_grey_modes_become_grey() -> None:
    for image in (Image.fromarray(GREY), Image.fromarray(GREY).convert("LA"), Image.fromarray(GREY).convert("P")):
        rgb = to_rgb(image)
        assert rgb.mode == "RGB"
        np.testing.assert_array_equal(np.array(rgb), np.stack([GREY] * 3, -1))


def test_black_and_white() -> None:
    image = Image.fromarray(GREY).point(lambda value: 255 if value > 150 else 0).convert("1")
    np.testing.assert_array_equal(np.array(to_rgb(image))[..., 0], [[0, 0], [255, 255]])


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_above_8_bits_are_scaled_from_their_own_range(mode: str) -> None:
    values = np.array([[1000, 2000], [3000, 5000]])
    image = {
        "I;16": lambda: Image.fromarray(values.astype(np.uint16)),
        "I": lambda: Image.fromarray(values.astype(np.int32)),
        "F": lambda: Image.fromarray(values.astype(np.float32) / 5000),
    }[mode]()
    assert image.mode == mode
    np.testing.assert_array_equal(np.array(to_rgb(image))[..., 1], [[0, 64], [128, 255]])


def test_constant_and_non_finite_images_do_not_fail() -> None:
    assert np.array(to_rgb(Image.fromarray(np.full((2, 2), 7, np.uint16)))).max() == 0
    broken = Image.fromarray(np.array([[np.nan, 1.0], [np.inf, 0.0]], np.float32))
    np.testing.assert_array_equal(np.array(to_rgb(broken))[..., 0], [[0, 255], [0, 0]])


def test_transparent_pixels_are_black() -> None:
    pixels = np.full((1, 2, 4), (200, 150, 100, 255), np.uint8)
    pixels[0, 1, 3] = 0
    rgba = Image.fromarray(pixels)
    expected = [[[200, 150, 100], [0, 0, 0]]]
    np.testing.assert_array_equal(np.array(to_rgb(rgba)), expected)
    half = rgba.copy()
    half.putalpha(128)
    np.testing.assert_allclose(np.array(to_rgb(half))[0, 0], [100, 75, 50], atol=1)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([200, 150, 100, 9, 9, 9])
    palette.info["transparency"] = 1
    np.testing.assert_array_equal(np.array(to_rgb(palette)), expected)


def test_print_colours() -> None:
    assert np.array(to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))))[0, 0].tolist() == [255, 0, 0]


def test_an_orientation_tag_does_not_move_pixels(tmp_path: Path) -> None:
    """Polygons refer to stored pixels; only preparation rotates images, and it removes the tag."""
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.getexif()[0x0112] == 6
        assert to_rgb(opened).size == (40, 20)
    (tmp_path / "a.json").write_text('{"shapes": [], "imagePath": "a.png", "imageHeight": 40, "imageWidth": 20}')
    stored = find_source_image(read_labelme(tmp_path / "a.json"), tmp_path / "a.json")
    with Image.open(io.BytesIO(stored.content)) as opened:
        assert opened.getexif().get(0x0112, 1) == 1
        assert to_rgb(opened).size == (20, 40)
        assert np.array(to_rgb(opened))[:20].min() == 255


def test_images_above_8_bits_are_the_same_before_and_after_preparation(tmp_path: Path) -> None:
    """The predictor reads the original, training the stored image."""
    values = np.random.default_rng(0).integers(500, 9000, (30, 40)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"shapes": [], "imagePath": "a.png", "imageHeight": 30, "imageWidth": 40}')
    stored = find_source_image(read_labelme(tmp_path / "a.json"), tmp_path / "a.json")
    with Image.open(tmp_path / "a.png") as original, Image.open(io.BytesIO(stored.content)) as prepared:
        assert prepared.mode == "L"
        np.testing.assert_array_equal(np.array(to_rgb(original)), np.array(to_rgb(prepared)))


def test_logits_are_mapped_back_to_their_position() -> None:
    """A bright rectangle, resized to the square view, is mapped back to its position."""
    height, width = 90, 200
    truth = torch.zeros(height, width)
    truth[20:70, 100:180] = 1
    square = torch.nn.functional.interpolate(truth[None, None], size=(256, 256), mode="area")
    low = torch.nn.functional.avg_pool2d(square, 4)[0] * 20 - 10
    back = logits_to_image(low, 256, height, width)
    assert back.shape == (1, height, width)
    assert back.dtype == torch.float32
    found = back[0] > 0
    union = (found | truth.bool()).sum()
    assert (found & truth.bool()).sum() / union > 0.95
    assert logits_to_image(low[:0], 256, height, width).shape == (0, height, width)
