"""The only rasteriser, regions -> mask, for preparation, training, evaluation and drawing.

Pixel (column, row) covers the square from (column, row) to (column + 1, row + 1), as in LabelMe. A dataset names its
fill, which is how polygons become pixels:

labelme: vertices are rounded down to pixels; pixels of the outline and of the interior are in the mask (OpenCV). It
    agrees best with masks that a labelling team exported from its own polygons, and its masks are too large by about
    half a pixel all around: on ARCADE's vessels 10 % in area.
coco: pycocotools, with which papers score; 0.02 % too large there.
coverage: the covered fraction of every pixel, for training; where a mask of 0 and 1 is needed, at least one half.

Run-length codes are masks already: no fill changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from vesselseg.imaging.coverage import polygon_coverage
from vesselseg.imaging.regions import DEFAULT_FILL, Fill, Region, RunLength

HALF = 128  # of `coverage`: at least half of a pixel
_LIMIT = 1e6  # pixels: outside any image, but within OpenCV's 32-bit coordinates


def rasterise(regions: Sequence[Region], height: int, width: int, fill: Fill = DEFAULT_FILL) -> np.ndarray:
    """Union of regions as a mask (height, width) uint8, 0 or 1; without regions it is empty.

    regions: polygons as flat x, y lists in image pixels, or COCO run-length codes of the same size.
    Raises ValueError for fewer than 3 points, an odd count, non-finite numbers, or a code of another size.
    """
    if fill == "coverage":
        return (coverage(regions, height, width) >= HALF).astype(np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    polygons = []
    for number, region in enumerate(regions):
        if isinstance(region, dict):
            mask |= _decode(region, height, width, number)
        else:
            polygons.append(_points(region, number))
    if fill == "coco" and polygons:
        codes = coco_mask.frPyObjects([points.ravel().tolist() for points in polygons], height, width)
        return mask | cast(np.ndarray, coco_mask.decode(coco_mask.merge(codes)))
    for points in polygons:
        # One call per polygon: a joint call applies the even-odd rule, which would remove overlaps.
        cv2.fillPoly(mask, [np.floor(points).astype(np.int32)], 1)
    return mask


def coverage(regions: Sequence[Region], height: int, width: int) -> np.ndarray:
    """Covered part of every pixel, (height, width) uint8, 0 to 255 (all of it), of the union of the regions.

    Takes and raises what `rasterise` does.
    """
    polygons = [_points(region, number) for number, region in enumerate(regions) if not isinstance(region, dict)]
    covered = (255 * polygon_coverage(polygons, height, width)).round().astype(np.uint8)
    for number, region in enumerate(regions):
        if isinstance(region, dict):
            covered = np.maximum(covered, 255 * _decode(region, height, width, number))
    return covered


def encode(mask: np.ndarray) -> RunLength:
    """A mask (height, width) of 0 and 1 as a JSON-serialisable COCO run-length code."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def _points(polygon: Sequence[float], number: int) -> np.ndarray:
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(
            f"region {number}: a polygon needs at least 3 points as x, y pairs, found {len(polygon)} numbers"
        )
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)  # (points, 2), x and y
    if not np.isfinite(points).all():
        raise ValueError(f"region {number}: a polygon has numbers that are not finite")
    return np.clip(points, -_LIMIT, _LIMIT)


def _decode(code: RunLength, height: int, width: int, number: int) -> np.ndarray:
    size = tuple(code["size"])
    if size != (height, width):
        raise ValueError(f"region {number}: a run-length code of size {size} for an image of {(height, width)}")
    counts = code["counts"]
    try:
        decoded = coco_mask.decode(
            {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
        )
    except (ValueError, UnicodeEncodeError) as error:
        raise ValueError(f"region {number}: not a COCO run-length code: {error}") from None
    return cast(np.ndarray, decoded)
