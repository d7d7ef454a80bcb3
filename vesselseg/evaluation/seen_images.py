"""Scored images that the model has trained on, told by the digests that its folder or checkpoint carries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vesselseg.dataset.manifest import Record, image_digests

_NAMED = 3


def seen_in_training(data: Path, records: Sequence[Record], trained_on: frozenset[str]) -> tuple[str, ...] | None:
    """Which images were trained on, byte for byte, under whatever name; None where the model does not tell."""
    if not trained_on:
        return None
    return tuple(image for image, digest in image_digests(data, records).items() if digest in trained_on)


def training_alarm(seen: Sequence[str], images: int) -> str:
    """What that means, with the first names; empty if none was seen. images: scored ones."""
    if not seen:
        return ""
    more = f" and {len(seen) - _NAMED} more" if len(seen) > _NAMED else ""
    return (
        f"the model has trained on {len(seen)} of the {images} scored images ({', '.join(seen[:_NAMED])}{more}): these "
        "figures do not tell how it does on new images. Score images that it has not seen; a fold of a "
        "cross-validation is scored with the model that was trained on that very fold"
    )
