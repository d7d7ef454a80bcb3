"""Flicker of a cine run's masks: how much they change from frame to frame, compared with truth or images.

flicker = mean over neighbouring frames of 1 - Dice(mask t, mask t + 1), where two empty masks have Dice 1.

The flicker of the true masks is the part that comes from motion and contrast filling. Without truth the change of the
images is the reference: the mean over neighbouring frames of 1 - r, where r is Pearson's correlation of the grey values
averaged over blocks of 4 x 4 pixels, which suppresses quantum noise. Its scale differs, so a ratio to it compares
methods on one run but not across runs. Constant masks have no flicker, correct or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

_BLOCK = 4
_ROUNDING = 1e-12  # relative norm of a constant image after subtraction of its mean


@dataclass(frozen=True)
class Flicker:
    """Mean change between neighbouring frames. masks, truth: 1 - Dice, 0..1; images: 1 - correlation, 0..2.

    None: not given. A ratio is also None where its reference does not change.
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
        """The three changes and both ratios, for JSON."""
        return {**asdict(self), "to_truth": self.to_truth, "to_images": self.to_images}


def flicker(
    masks: Iterable[np.ndarray],
    truth: Iterable[np.ndarray] | None = None,
    images: Iterable[np.ndarray] | None = None,
) -> Flicker:
    """Flicker of one object in one run; iterables are read once, two frames are held in memory.

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
    """1 - correlation; a constant image correlates only with an equal one."""
    # Pearson's r = <a, b> / (|a| |b|) of the centred images
    centred = [image - image.mean() for image in (first, second)]
    lengths = [float(np.linalg.norm(image)) for image in centred]
    if any(own <= _ROUNDING * np.linalg.norm(image) for own, image in zip(lengths, (first, second))):
        return 0.0 if np.array_equal(first, second) else 1.0
    return 1 - float((centred[0] * centred[1]).sum()) / (lengths[0] * lengths[1])


def _blocks(image: np.ndarray) -> np.ndarray:
    """Block means of the grey values, (height / 4, width / 4) float64; incomplete blocks at the edges are cut off."""
    grey = np.asarray(image, dtype=np.float64)
    grey = grey.mean(axis=2) if grey.ndim == 3 else grey
    rows, columns = (max(side // _BLOCK, 1) for side in grey.shape)
    grey = grey[: rows * _BLOCK, : columns * _BLOCK]
    high, wide = grey.shape[0] // rows, grey.shape[1] // columns
    return np.asarray(grey.reshape(rows, high, columns, wide).mean(axis=(1, 3)))
