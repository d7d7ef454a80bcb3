"""Test-time augmentation: the mean prediction over an image and its flipped copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_Flip = Image.Transpose
# Pillow's operation, and the axes of (phrases, height, width) that undo it.
_FLIPS = ((_Flip.FLIP_LEFT_RIGHT, (-1,)), (_Flip.FLIP_TOP_BOTTOM, (-2,)), (_Flip.ROTATE_180, (-2, -1)))


def flipped_copies(images: Sequence[Image.Image]) -> Iterator[list[Image.Image]]:
    """The images flipped left to right, then top to bottom, then both."""
    for flip, _ in _FLIPS:
        yield [image.transpose(flip) for image in images]


def mean_over_flips(
    plain: Sequence[NDArray[np.float32]], flipped: Iterable[Sequence[NDArray[np.float32]]]
) -> list[NDArray[np.float32]]:
    """Mean probabilities (phrases, height, width) per image over the image and its flipped copies.

    plain: per image; not changed. flipped: per list that `flipped_copies` yields, probabilities as predicted, not yet
    flipped back.
    """
    sums = [probabilities.astype(np.float32, copy=True) for probabilities in plain]
    for (_, axes), of_copies in zip(_FLIPS, flipped, strict=True):
        for total, probabilities in zip(sums, of_copies, strict=True):
            total += np.flip(probabilities, axes)
    return [np.clip(total / (len(_FLIPS) + 1), 0, 1) for total in sums]  # float32 sums may exceed 1 by rounding
