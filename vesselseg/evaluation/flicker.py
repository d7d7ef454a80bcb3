"""Flicker of a cine run's masks: how much they change from frame to frame, against how much there is to change.

flicker = mean over neighbouring frames of 1 - Dice(mask t, mask t + 1), where two empty masks have Dice 1.

The same number of the true masks says how much of it is motion and filling; where there is no truth, the images' own
change stands in: the mean over neighbouring frames of 1 - r, with r Pearson's correlation of the grey values, averaged
over blocks of 4 x 4 pixels so that quantum noise hardly counts. Its scale is another one, so a ratio to it compares
methods on one run and means nothing across runs. Masks that never change have no flicker, right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

_BLOCK = 4
_ROUNDING = 1e-12  # of an image's length: what subtracting the mean leaves of one that is the same everywhere


@dataclass(frozen=True)
class Flicker:
    """masks, truth: mean 1 - Dice of neighbours, 0 to 1. images: mean 1 - correlation of neighbours, 0 to 2.

    None: not given. A ratio is None also where what it is of does not change.
    """

    masks: float
    truth: float | None = None
    images: float | None = None

    @property
    def to_truth(self) -> float | None:
        """masks / truth: 1 where masks change as much as the truth does."""
        return self.masks / self.truth if self.truth else None

    @property
    def to_images(self) -> float | None:
        """masks / images."""
        return self.masks / self.images if self.images else None

    def as_json(self) -> dict[str, float | None]:
        """All five numbers."""
        return {**asdict(self), "to_truth": self.to_truth, "to_images": self.to_images}


def flicker(
    masks: Iterable[np.ndarray],
    truth: Iterable[np.ndarray] | None = None,
    images: Iterable[np.ndarray] | None = None,
) -> Flicker:
    """Of one object in one run; frames may come one by one, two are held.

    masks, truth: per frame (height, width) bool. images: per frame (height, width) or (height, width, 3).
    Raises ValueError for fewer than two frames and for frames of different sizes.
    """
    return Flicker(
        mask_change(masks),
        None if truth is None else mask_change(truth),
        None if images is None else image_change(images),
    )


def mask_change(masks: Iterable[np.ndarray]) -> float:
    """Mean of 1 - Dice between neighbouring masks (height, width) bool."""
    return _mean_of_neighbours(masks, _mask_step)


def image_change(images: Iterable[np.ndarray]) -> float:
    """Mean of 1 - correlation between neighbouring images (height, width) or (height, width, 3), as above."""
    return _mean_of_neighbours(map(_blocks, images), _image_step)


def _mean_of_neighbours(frames: Iterable[np.ndarray], step: Callable[[np.ndarray, np.ndarray], float]) -> float:
    steps = []
    for first, second in pairwise(frames):
        if first.shape != second.shape:
            raise ValueError(f"frames of {first.shape} and {second.shape} follow each other; flicker needs one size")
        steps.append(step(first, second))
    if not steps:
        raise ValueError("flicker needs at least two frames")
    return float(np.mean(steps))


def _mask_step(first: np.ndarray, second: np.ndarray) -> float:
    both = np.count_nonzero(first) + np.count_nonzero(second)
    return 1 - 2 * np.count_nonzero(first & second) / both if both else 0.0


def _image_step(first: np.ndarray, second: np.ndarray) -> float:
    """An image without any structure correlates with nothing but itself."""
    centred = [image - image.mean() for image in (first, second)]
    lengths = [float(np.linalg.norm(image)) for image in centred]
    if any(own <= _ROUNDING * np.linalg.norm(image) for own, image in zip(lengths, (first, second))):
        return 0.0 if np.array_equal(first, second) else 1.0
    return 1 - float((centred[0] * centred[1]).sum()) / (lengths[0] * lengths[1])


def _blocks(image: np.ndarray) -> np.ndarray:
    """Means over blocks of grey values, (height / 4, width / 4) float64; what is left at the edges is cut off."""
    grey = np.asarray(image, dtype=np.float64)
    grey = grey.mean(axis=2) if grey.ndim == 3 else grey
    rows, columns = (max(side // _BLOCK, 1) for side in grey.shape)
    grey = grey[: rows * _BLOCK, : columns * _BLOCK]
    high, wide = grey.shape[0] // rows, grey.shape[1] // columns
    return np.asarray(grey.reshape(rows, high, columns, wide).mean(axis=(1, 3)))
