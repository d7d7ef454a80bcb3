"""Covered parts of pixels, against fine grids of points, by hand, and the fills of the rasteriser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pycocotools import mask as coco_mask

from vesselseg.imaging.coverage import polygon_coverage
from vesselseg.imaging.rasterise import coverage, encode, rasterise
from vesselseg.imaging.regions import FILLS

FINE = 40  # points per side of a pixel


def ring(sides: int, radius: float, x: float, y: float) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, sides, endpoint=False) + 0.3
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def by_points(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Share of a fine grid of points of each pixel that is inside any polygon."""
    y, x = np.mgrid[: height * FINE, : width * FINE]
    points = (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) / FINE
    inside = np.any([Outline(np.vstack([p, p[:1]]), closed=True).contains_points(points) for p in polygons], axis=0)
    return inside.reshape(height, FINE, width, FINE).mean(axis=(1, 3))


def test_a_rectangle_by_hand() -> None:
    rectangle = np.array([[1.25, 1.5], [3.5, 1.5], [3.5, 4.0], [1.25, 4.0]])
    found = polygon_coverage([rectangle], 6, 5)
    columns, rows = np.array([0, 0.75, 1, 0.5, 0]), np.array([0, 0.5, 1, 1, 0, 0])
    np.testing.assert_allclose(found, np.outer(rows, columns), atol=1e-6)
    assert found.dtype == np.float32
    both = polygon_coverage([rectangle, rectangle + np.array([1.0, 0.25]), rectangle[::-1]], 6, 6)
    assert both.sum() == pytest.approx(2.25 * 2.5 * 2 - 1.25 * 2.25, abs=1e-5)  # a union, in either direction


@pytest.mark.parametrize("sides", [3, 4, 7, 40])
def test_the_area_is_the_polygons(sides: int) -> None:
    polygon = ring(sides, 6.3, 10.2, 9.7)
    area = 0.5 * sides * 6.3**2 * math.sin(2 * math.pi / sides)
    assert polygon_coverage([polygon], 20, 21).sum() == pytest.approx(area, rel=2e-3)


def test_each_pixel_agrees_with_a_fine_grid_of_points() -> None:
    overlapping = [ring(5, 5.0, 8.3, 7.9), ring(3, 6.0, 12.6, 10.1), np.array([[0.5, 2.0], [18.0, 2.6], [18.0, 3.1]])]
    found = polygon_coverage(overlapping, 17, 19)
    assert np.abs(found - by_points(overlapping, 17, 19)).max() < 0.04
    assert abs(found - by_points(overlapping, 17, 19)).mean() < 0.002


def test_a_thin_vessel_is_a_part_of_its_pixels() -> None:
    """Half a pixel wide: a mask of 0 and 1 has either nothing or too much of it."""
    vessel = [2.0, 3.25, 14.0, 3.25, 14.0, 3.75, 2.0, 3.75]
    found = coverage([vessel], 8, 16)
    assert set(found[3, 2:14].tolist()) == {128} and found.sum() == 12 * 128
    assert rasterise([vessel], 8, 16).sum() >= 12 and rasterise([vessel], 8, 16, "coverage").sum() == 12


def test_what_is_outside_of_the_image_is_cut_off() -> None:
    inside = polygon_coverage([np.array([[-5.0, -5.0], [30.0, -5.0], [30.0, 30.0], [-5.0, 30.0]])], 7, 9)
    assert (inside == 1).all()
    assert polygon_coverage([], 4, 5).shape == (4, 5) and not polygon_coverage([], 4, 5).any()
    beside = polygon_coverage([np.array([[20.0, 1.0], [30.0, 1.0], [30.0, 5.0]])], 7, 9)
    assert not beside.any()


def test_an_outline_that_crosses_itself_has_the_even_odd_interior() -> None:
    """A ring as one polygon: outline, cut, hole, cut back; as masks become polygons."""
    ring_with_hole = [1, 1, 9, 1, 9, 9, 1, 9, 1, 5, 3, 5, 3, 7, 7, 7, 7, 3, 3, 3, 3, 5, 1, 5]
    found = coverage([list(map(float, ring_with_hole))], 10, 10) / 255
    assert found.sum() == pytest.approx(64 - 16) and found[5, 5] == 0 and found[2, 2] == 1


def test_coco_fill_is_that_of_pycocotools_and_adds_polygons_up() -> None:
    polygons = [ring(9, 5.4, 8.0, 8.0).ravel().tolist(), ring(6, 4.0, 13.0, 9.0).ravel().tolist()]
    expected = np.zeros((18, 20), np.uint8)
    for polygon in polygons:
        expected |= coco_mask.decode(coco_mask.frPyObjects([polygon], 18, 20))[..., 0]
    np.testing.assert_array_equal(rasterise(polygons, 18, 20, "coco"), expected)
    areas = {fill: int(rasterise(polygons, 18, 20, fill).sum()) for fill in FILLS}
    exact = coverage(polygons, 18, 20).sum() / 255
    assert areas["labelme"] > 1.08 * exact and all(abs(areas[f] - exact) < 0.03 * exact for f in ("coco", "coverage"))


@pytest.mark.parametrize("fill", FILLS)
def test_codes_are_masks_already(fill: str) -> None:
    mask = np.zeros((6, 7), np.uint8)
    mask[1:3, 2:6] = 1
    polygon = [0.0, 4.0, 3.0, 4.0, 3.0, 6.0, 0.0, 6.0]
    found = rasterise([encode(mask), polygon], 6, 7, fill)  # type: ignore[arg-type]
    assert (found[1:3, 2:6] == 1).all() and found[4:, :3].all() and found.dtype == np.uint8
    assert (rasterise([encode(mask)], 6, 7, fill) == mask).all()  # type: ignore[arg-type]
    assert (coverage([encode(mask)], 6, 7) == 255 * mask).all()
    with pytest.raises(ValueError, match="at least 3 points"):
        rasterise([[1.0, 2.0, 3.0, 4.0]], 6, 7, fill)  # type: ignore[arg-type]
