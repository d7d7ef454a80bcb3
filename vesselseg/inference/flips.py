"""Test-time augmentation: a model sees an image and its mirrored copies, and the answers are averaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FLIPS = "flips"
_Flip = Image.Transpose
_MIRRORED = ((_Flip.FLIP_LEFT_RIGHT, (-1,)), (_Flip.FLIP_TOP_BOTTOM, (-2,)), (_Flip.ROTATE_180, (-2, -1)))


def mirrored(images: Sequence[Image.Image]) -> Iterator[list[Image.Image]]:
    """The images' mirror images, left to right; then top to bottom; then both together."""
    for flip, _ in _MIRRORED:
        yield [image.transpose(flip) for image in images]


def mean_over_flips(
    plain: Sequence[NDArray[np.float32]], of_mirrored: Iterable[Sequence[NDArray[np.float32]]]
) -> list[NDArray[np.float32]]:
    """Mean probabilities (phrases, height, width) of the images as they are and of all that `mirrored` yields.

    plain: per image; not changed. of_mirrored: the same of the mirror images, in their order, lying as they do.
    """
    sums = [values.astype(np.float32, copy=True) for values in plain]
    for (_, axes), found in zip(_MIRRORED, of_mirrored, strict=True):
        for total, values in zip(sums, found, strict=True):
            total += np.flip(values, axes)
    return [np.clip(total / (len(_MIRRORED) + 1), 0, 1) for total in sums]
