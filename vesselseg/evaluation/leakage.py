"""Leakage: scored images that the model was trained on, detected by the digests in its folder or checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vesselseg.dataset.manifest import Record, image_digests

_NAMED = 3


def seen_in_training(data: Path, records: Sequence[Record], trained_on: frozenset[str]) -> tuple[str, ...] | None:
    """Images with the same bytes as a training image, whatever their names; None where the model has no digests.

    trained_on: digests as of ``manifest.image_digests``.
    """
    if not trained_on:
        return None
    return tuple(image for image, digest in image_digests(data, records).items() if digest in trained_on)


def leakage_warning(seen: Sequence[str], images: int) -> str:
    """The warning for these images, with the first names; empty without any. images: number of scored images."""
    if not seen:
        return ""
    more = f" and {len(seen) - _NAMED} more" if len(seen) > _NAMED else ""
    return (
        f"the model was trained on {len(seen)} of the {images} scored images ({', '.join(seen[:_NAMED])}{more}): these "
        "results do not measure its performance on new images. Score images that are not in its training data; for a "
        "fold of a cross-validation, use the model that was trained on the same fold"
    )
