"""The one rasteriser: regions -> mask. Preparing, training, evaluating and drawing all call it.

Convention: a pixel (column, row) covers the square from (column, row) to (column + 1, row + 1), as in LabelMe. Each
vertex stands for the pixel it lies in; the pixels of the outline and of the inside belong to the mask. Of the fills of
Pillow, OpenCV and pycocotools this one agrees best with masks that a labelling team made from its own polygons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from vesselseg.imaging.regions import Region, RunLength

_LIMIT = 1e6  # in pixels: far beyond any image, and inside OpenCV's 32 bits


def rasterise(regions: Sequence[Region], height: int, width: int) -> np.ndarray:
    """Union of regions as (height, width) uint8, 0 or 1; no region gives an empty mask.

    regions: polygons as flat x, y lists in image pixels, or COCO run-length codes of the same size.
    Raises ValueError for fewer than 3 points, an odd count, numbers that are not finite, and other sizes.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    for number, region in enumerate(regions):
        if isinstance(region, dict):
            mask |= _decode(region, height, width, number)
        else:
            # one call per polygon: in one call OpenCV would cut overlaps out
            cv2.fillPoly(mask, [_pixels(region, number)], 1)
    return mask


def encode(mask: np.ndarray) -> RunLength:
    """A (height, width) mask of 0 and 1 as a COCO run-length code that JSON can hold."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def _pixels(polygon: Sequence[float], number: int) -> np.ndarray:
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(
            f"region {number}: a polygon needs at least 3 points as x, y pairs, found {len(polygon)} numbers"
        )
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError(f"region {number}: a polygon has numbers that are not finite")
    return np.floor(np.clip(points, -_LIMIT, _LIMIT)).astype(np.int32)


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
