"""Shapes of every type become regions of the stored image: rescaled, clipped, rejected without area."""

from __future__ import annotations

import numpy as np
import pytest

from vesselseg.imaging.label_shapes import Shape, ShapeError
from vesselseg.imaging.rasterise import rasterise
from vesselseg.imaging.shape_regions import Canvas, has_area, shape_regions

PLAIN = Canvas(40, 30, (40, 30))


def shape(kind: str, points: list[list[float]], bitmap: np.ndarray | None = None) -> Shape:
    return Shape(0, "vessel", kind, np.array(points, dtype=np.float64), None, bitmap)


def mask_of(drawn: Shape, canvas: Canvas = PLAIN) -> np.ndarray:
    return rasterise(shape_regions(drawn, canvas)[0], canvas.height, canvas.width)


def test_rectangle_corners_in_any_order() -> None:
    expected = np.zeros((30, 40), np.uint8)
    expected[6:17, 4:15] = 1
    for corners in ([[4, 6], [14, 16]], [[14, 16], [4, 6]], [[4, 16], [14, 6]], [[4, 6], [14, 6], [14, 16], [4, 16]]):
        assert np.array_equal(mask_of(shape("rectangle", corners)), expected)


def test_circle_is_centre_and_rim() -> None:
    mask = mask_of(shape("circle", [[20.5, 15.5], [28.5, 15.5]]))
    rows, columns = np.nonzero(mask)
    assert mask.sum() == pytest.approx(np.pi * 8.5**2, rel=0.05)
    assert (rows.mean(), columns.mean()) == pytest.approx((15, 20), abs=0.3)


def test_coordinates_are_rescaled_per_axis() -> None:
    canvas = Canvas(40, 30, (80, 30))
    assert np.array_equal(
        mask_of(shape("rectangle", [[8, 6], [28, 16]]), canvas), mask_of(shape("rectangle", [[4, 6], [14, 16]]))
    )
    assert canvas.rescaled
    assert not PLAIN.rescaled


def test_bitmap_is_placed_at_its_inclusive_corner_and_rescaled() -> None:
    bitmap = np.ones((11, 11), dtype=bool)
    bitmap[0, 0] = False
    mask = mask_of(shape("mask", [[4.4, 6.4], [14.4, 16.4]], bitmap))
    assert mask.sum() == 120
    assert mask[6, 4] == 0
    assert mask[16, 14] == 1
    halved = mask_of(shape("mask", [[4, 6], [13, 15]], np.ones((10, 10), dtype=bool)), Canvas(20, 15, (40, 30)))
    assert halved.sum() == 25
    assert halved[3:8, 2:7].all()


def test_bitmap_beyond_the_border_is_clipped() -> None:
    regions, cut, _ = shape_regions(shape("mask", [[35, 25], [44, 34]], np.ones((10, 10), dtype=bool)), PLAIN)
    assert cut
    assert rasterise(regions, 30, 40).sum() == 25


def test_polygon_beyond_the_border_is_clipped() -> None:
    """A U around the border: the edge that clipping adds between its arms must not be drawn."""
    points = [[-9, 2], [20, 2], [20, 8], [-5, 8], [-5, 20], [20, 20], [20, 26], [-9, 26]]
    regions, cut, _ = shape_regions(shape("polygon", points), PLAIN)
    mask = rasterise(regions, 30, 40)
    assert cut
    assert min(regions[0]) >= -1
    assert np.array_equal(mask, rasterise([[float(v) for point in points for v in point]], 30, 40))
    assert mask[10:19, 0].sum() == 0
    assert not shape_regions(shape("polygon", [[0, 0], [40, 0], [40, 30]]), PLAIN)[1]


@pytest.mark.parametrize(
    ("drawn", "code"),
    [
        (shape("polygon", [[1, 1], [5, 5], [9, 9]]), "zero_area"),
        (shape("polygon", [[1, 1], [9, 1], [9, 9], [9, 1]]), "zero_area"),
        (shape("rectangle", [[3, 3], [3, 9]]), "zero_area"),
        (shape("circle", [[9, 9], [9, 9]]), "zero_area"),
        (shape("mask", [[1, 1], [2, 2]], np.zeros((2, 2), dtype=bool)), "zero_area"),
        (shape("mask", [[90, 1], [91, 2]], np.ones((2, 2), dtype=bool)), "outside"),
        (shape("polygon", [[50, 2], [60, 2], [60, 9]]), "outside"),
        (shape("polygon", [[-20, -20], [-3, -20], [-3, -9]]), "outside"),
        (shape("line", [[1, 1], [9, 9]]), "no_width"),
        (shape("linestrip", [[1, 1], [9, 9], [9, 20]]), "no_width"),
        (shape("point", [[1, 1]]), "no_width"),
    ],
)
def test_shapes_that_cannot_be_drawn(drawn: Shape, code: str) -> None:
    with pytest.raises(ShapeError) as caught:
        shape_regions(drawn, PLAIN)
    assert caught.value.code == code


def test_line_width_draws_lines_and_points() -> None:
    wide = Canvas(40, 30, (40, 30), line_width=4)
    line = mask_of(shape("linestrip", [[5.5, 10.5], [30.5, 10.5], [30.5, 25.5]]), wide)
    assert 4 <= line[:, 15].sum() <= 5
    assert 4 <= line[20, :].sum() <= 5
    dot = mask_of(shape("point", [[20.5, 15.5]]), wide)
    assert np.pi * 4 <= dot.sum() <= 25


def test_figure_of_eight_has_an_area() -> None:
    assert has_area(np.array([[0.0, 0], [10, 10], [10, 0], [0, 10]]))
    assert mask_of(shape("polygon", [[5, 5], [25, 25], [25, 5], [5, 25]])).sum() > 150
