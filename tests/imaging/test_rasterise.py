"""The rasteriser: its convention, its agreement with masks of annotators, and rejected input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesselseg.dataset.manifest import Record
from vesselseg.dataset.record_masks import record_masks
from vesselseg.imaging.rasterise import encode, rasterise

SQUARE = [2.5, 3.5, 7.5, 3.5, 7.5, 9.5, 2.5, 9.5]


def test_inside_and_outline_belong_to_the_mask() -> None:
    mask = rasterise([SQUARE], 12, 10)
    expected = np.zeros((12, 10), np.uint8)
    expected[3:10, 2:8] = 1
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected)


def test_a_vertex_is_rounded_down_to_its_pixel() -> None:
    """Rounding to the nearest integer instead would move the square by half a pixel, truncation the left edge."""
    low, high = [2.0, 3.0, 7.0, 3.0, 7.0, 9.0, 2.0, 9.0], [2.9, 3.9, 7.9, 3.9, 7.9, 9.9, 2.9, 9.9]
    assert np.array_equal(rasterise([low], 12, 10), rasterise([high], 12, 10))
    assert not rasterise([[-0.9, 0.0, -0.1, 0.0, -0.1, 9.0, -0.9, 9.0]], 12, 10).any()


def test_thin_polygon_has_no_gaps() -> None:
    mask = rasterise([[1.2, 1.2, 18.7, 7.3, 18.8, 7.4]], 10, 20)
    assert mask[:, 1:19].any(axis=0).all()


def test_overlap_is_a_union_of_zeros_and_ones() -> None:
    mask = rasterise([SQUARE, SQUARE], 12, 10)
    assert np.array_equal(mask, rasterise([SQUARE], 12, 10))


def test_no_region_is_an_empty_mask() -> None:
    mask = rasterise([], 5, 7)
    assert mask.shape == (5, 7)
    assert mask.sum() == 0


def test_four_numbers_are_never_a_box() -> None:
    with pytest.raises(ValueError, match=r"region 1.*at least 3 points.*4 numbers"):
        rasterise([SQUARE, [2.0, 2.0, 5.0, 5.0]], 12, 10)


@pytest.mark.parametrize("polygon", [[1.0] * 7, [0.0, 0.0, 5.0, float("nan"), 5.0, 5.0], []])
def test_rejects_other_invalid_polygons(polygon: list[float]) -> None:
    with pytest.raises(ValueError, match="region 0"):
        rasterise([polygon], 12, 10)


def test_polygon_far_outside_fills_the_image() -> None:
    assert rasterise([[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9]], 30, 20).all()
    assert not rasterise([[1e5, 1e5, 2e5, 1e5, 2e5, 2e5]], 30, 20).any()


def test_run_length_round_trip_and_union() -> None:
    mask = np.zeros((12, 10), np.uint8)
    mask[0, 0] = mask[11, 9] = mask[5, 1:4] = 1
    code = json.loads(json.dumps(encode(mask)))
    assert np.array_equal(rasterise([code], 12, 10), mask)
    assert np.array_equal(rasterise([code, SQUARE], 12, 10), mask | rasterise([SQUARE], 12, 10))
    with pytest.raises(ValueError, match="size"):
        rasterise([code], 10, 12)


def test_record_masks_are_one_per_object() -> None:
    record = Record("a.png", ((SQUARE,), ()), ("blood vessel", "catheter"))
    masks = record_masks(record, 12, 10)
    assert masks.shape == (2, 12, 10)
    assert masks[0].sum() == 42
    assert masks[1].sum() == 0
    with pytest.raises(ValueError, match=r"b\.png, object 0"):
        record_masks(Record("b.png", (([1.0, 1.0, 4.0, 4.0],),), ("x",)), 12, 10)


@pytest.mark.shared
def test_agrees_with_masks_of_the_annotators(shared: Path) -> None:
    root = shared / "data" / "lymphatic_labelme"
    files = sorted(root.glob("annotated/**/*.json"))
    assert len(files) == 8
    for file in files:
        labels = json.loads(file.read_text(encoding="utf-8"))
        made = root / "masks" / file.relative_to(root / "annotated").parent / f"{file.stem}_mask.png"
        truth = np.array(Image.open(made)) > 127
        polygons = [[value for point in shape["points"] for value in point] for shape in labels["shapes"]]
        mask = rasterise(polygons, *truth.shape) > 0
        assert (mask & truth).sum() / (mask | truth).sum() >= 0.98, file.name
