"""A record of a dataset folder -> the masks of its objects."""

from __future__ import annotations

import numpy as np

from vesselseg.dataset.manifest import Record
from vesselseg.imaging.rasterise import rasterise


def record_masks(record: Record, height: int, width: int) -> np.ndarray:
    """Masks of a record's objects: (objects, height, width) uint8, 0 or 1; (0, height, width) without objects."""
    masks = np.zeros((len(record.regions), height, width), dtype=np.uint8)
    for number, regions in enumerate(record.regions):
        try:
            masks[number] = rasterise(regions, height, width)
        except ValueError as error:
            raise ValueError(f"{record.image}, object {number}: {error}") from None
    return masks
