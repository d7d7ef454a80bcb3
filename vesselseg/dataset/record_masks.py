"""Rasterise the objects of a record."""

from __future__ import annotations

import numpy as np

from vesselseg.dataset.manifest import Record
from vesselseg.imaging.rasterise import rasterise


def record_masks(record: Record, height: int, width: int) -> np.ndarray:
    """Masks of a record's objects: (objects, height, width) uint8, 0 or 1; (0, height, width) without objects.

    Raises ValueError that names the image and object of an invalid region.
    """
    masks = np.zeros((len(record.regions), height, width), dtype=np.uint8)
    for number, regions in enumerate(record.regions):
        try:
            masks[number] = rasterise(regions, height, width)
        except ValueError as error:
            raise ValueError(f"{record.image}, object {number}: {error}") from None
    return masks
