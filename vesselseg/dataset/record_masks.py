"""Rasterise the objects of a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vesselseg.dataset.manifest import Record
from vesselseg.imaging.rasterise import coverage, rasterise
from vesselseg.imaging.regions import Region


def record_masks(record: Record, height: int, width: int) -> np.ndarray:
    """Masks of a record's objects: (objects, height, width) uint8, 0 or 1; (0, height, width) without objects.

    Raises ValueError that names the image and object of an invalid region.
    """
    return _each(record, height, width, lambda regions: rasterise(regions, height, width, record.fill))


def record_coverage(record: Record, height: int, width: int) -> np.ndarray:
    """As `record_masks`, but with the covered part of every pixel, 0 to 255."""
    return _each(record, height, width, lambda regions: coverage(regions, height, width))


def ignored_pixels(record: Record, height: int, width: int) -> np.ndarray | None:
    """(height, width) bool of the pixels about which the labels say nothing; None if there are none."""
    if not record.ignore:
        return None
    try:
        return rasterise(record.ignore, height, width, record.fill).astype(bool)
    except ValueError as error:
        raise ValueError(f"{record.image}, ignored pixels: {error}") from None


def _each(record: Record, height: int, width: int, draw: Callable[[Sequence[Region]], np.ndarray]) -> np.ndarray:
    masks = np.zeros((len(record.regions), height, width), dtype=np.uint8)
    for number, regions in enumerate(record.regions):
        try:
            masks[number] = draw(regions)
        except ValueError as error:
            raise ValueError(f"{record.image}, object {number}: {error}") from None
    return masks
