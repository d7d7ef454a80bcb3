"""Polygons -> the content of a LabelMe 5 file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vesselseg.imaging.labelme import PHRASES_KEY

_VERSION = "5.5.0"  # LabelMe warns about files of another major version


@dataclass(frozen=True)
class LabelledPolygon:
    """points: x, y pairs in pixels. group: LabelMe's group_id; shapes with the same number are one object."""

    label: str
    points: Iterable[Sequence[float]]
    group: int | None = None


def labelme_content(
    image_path: str, height: int, width: int, polygons: Iterable[LabelledPolygon], phrases: Sequence[str] | None = None
) -> dict[str, Any]:
    """The content of a LabelMe 5 file, for `json.dump`; coordinates are rounded to hundredths of a pixel.

    phrases: stored under ``PHRASES_KEY``, which LabelMe keeps; a file with phrases is read back with labels as phrases.
    """
    shapes: list[dict[str, Any]] = [
        {
            "label": polygon.label,
            "points": [[round(float(x), 2), round(float(y), 2)] for x, y in polygon.points],
            "group_id": polygon.group,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for polygon in polygons
    ]
    content: dict[str, Any] = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return content if phrases is None else {**content, PHRASES_KEY: {"phrases": list(phrases)}}
