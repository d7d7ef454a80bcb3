"""Use the contradiction of labels and their stated size: sizes exchanged, or of the picture before its EXIF turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vesselseg.imaging.label_shapes import ImageLabels, LabelFileError
from vesselseg.imaging.notes import Note
from vesselseg.prepare.source_images import SourceImage

_SLACK = 0.01  # of a side; shapes may extend beyond the image by this much and still fit
_SQUARE = 1.05  # sides that differ by less than this factor do not tell a size from the exchanged one
_SAME = 0.02  # of the aspect ratio


def settle_size(labels: ImageLabels, load: Callable[[ImageLabels], SourceImage]) -> tuple[ImageLabels, SourceImage]:
    """The labels with the size that their coordinates fit, and the image that `load` finds for it.

    Raises LabelFileError if the picture was turned after it was labelled, as the mask would be stretched over it.
    """
    image = load(labels)
    if labels.size is None or labels.relative or max(labels.size) < _SQUARE * min(labels.size):
        return labels, image
    points = [shape.points for shape in labels.shapes if shape.bitmap is None]
    if not points or len(points) < len(labels.shapes):
        return labels, image
    reach = np.concatenate(points).max(axis=0)
    swapped = (labels.size[1], labels.size[0])
    fits = {size: bool((reach <= np.array(size) * (1 + _SLACK) + 1).all()) for size in (labels.size, swapped)}
    stated, other = _named(labels.size), _named(swapped)
    if fits[swapped] and not fits[labels.size]:
        exchanged = replace(labels, size=swapped)
        turned = load(exchanged)
        if _alike(turned.size, swapped):
            note = Note("size_swapped", f"shapes extend beyond the stated size {stated} and fit {other}, which is used")
            return replace(exchanged, notes=(*labels.notes, note)), turned
    elif _alike(image.size, swapped):
        stored = load(replace(labels, size=(image.size[1], image.size[0])))
        if fits[labels.size] and stored.size != image.size:  # labelled as it is stored, before its EXIF turn
            return labels, stored
        if not fits[swapped]:
            raise LabelFileError(
                f"labelled at {stated}, but the image is {_named(image.size)}, and the shapes do not fit {other}: "
                "was it turned after labelling?"
            )
        note = Note("size_swapped", f"stated as {stated}, but the image is {_named(image.size)}; read as {other}")
        return replace(labels, size=swapped, notes=(*labels.notes, note)), image
    return labels, image


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same aspect ratio."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= _SAME * one[1] * other[0]


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
