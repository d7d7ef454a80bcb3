"""Augmentation at prediction time: a model sees an image and its mirrored copies, and the answers are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vesselseg.data.manifest import Record
from vesselseg.evaluation.sources import PredictionSource

FLIPS = "flips"
_Flip = Image.Transpose
_MIRRORED = ((_Flip.FLIP_LEFT_RIGHT, (-1,)), (_Flip.FLIP_TOP_BOTTOM, (-2,)), (_Flip.ROTATE_180, (-2, -1)))


def mean_over_flips(
    source: PredictionSource,
    records: Sequence[Record],
    images: Sequence[Image.Image],
    plain: Sequence[NDArray[np.float32]],
) -> list[NDArray[np.float32]]:
    """Mean probabilities of the image, its two mirror images and both together, (phrases, height, width) per image.

    plain: the source's probabilities of the images as they are, which are not asked for again.
    """
    sums = [values.astype(np.float32, copy=True) for values in plain]
    for flip, axes in _MIRRORED:
        mirrored = [image.transpose(flip) for image in images]
        for total, values in zip(sums, source.probabilities(records, mirrored)):
            total += np.flip(values, axes)
    return [np.clip(total / (len(_MIRRORED) + 1), 0, 1) for total in sums]
