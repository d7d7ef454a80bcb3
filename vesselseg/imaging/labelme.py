"""Read LabelMe files of all versions up to 5.8; errors name the shape index and the field."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesselseg.imaging.decode import FORMATS
from vesselseg.imaging.label_shapes import (
    AREA_TYPES,
    LINE_TYPES,
    MAX_SIDE,
    ImageLabels,
    LabelFileError,
    Shape,
    ShapeError,
    check_point_count,
    collect_shapes,
    parse_coordinate,
)
from vesselseg.imaging.label_text import decode_text, parse_json
from vesselseg.imaging.notes import Note

# Key that vesselseg predict adds and LabelMe keeps: {"phrases": [...]}, the phrases of the request; labels are phrases.
PHRASES_KEY = "vesselseg"


class LabelmeError(LabelFileError):
    """Not a readable LabelMe file; the message describes what was found."""

    code = "not_labelme"


@dataclass(frozen=True)
class LabelmeLabels:
    """The labels in one LabelMe file."""

    path: Path

    def read(self) -> ImageLabels:
        """See ``read_labelme``."""
        return read_labelme(self.path)


def read_labelme(path: Path) -> ImageLabels:
    """Read one LabelMe file; invalid shapes are listed. Raises LabelmeError if it is not a LabelMe file."""
    try:
        text, notes = decode_text(Path(path).read_bytes())
        content = parse_json(text)
    except OSError as error:
        raise LabelmeError(f"the file cannot be read: {error.strerror}") from None
    except LabelFileError as error:
        raise LabelmeError(str(error)) from None
    _check_is_labelme(content)
    shapes, broken = collect_shapes(enumerate(content["shapes"]), _parse_shape, _label_of)
    size, size_notes = _label_size(content)
    image_data, data_notes = _image_data(content)
    image_path = content.get("imagePath")
    image_path = image_path.replace("\\", "/") if isinstance(image_path, str) else ""
    notes += size_notes + data_notes
    return ImageLabels(shapes, broken, image_path, image_data, size, tuple(notes), phrases=_phrases(content))


def _phrases(content: dict[str, Any]) -> tuple[str, ...]:
    added = content.get(PHRASES_KEY)
    phrases = added.get("phrases") if isinstance(added, dict) else None
    return tuple(phrase for phrase in phrases if isinstance(phrase, str)) if isinstance(phrases, list) else ()


def _label_of(entry: Any) -> str:
    return str(entry.get("label") or "").strip() if isinstance(entry, dict) else ""


def _check_is_labelme(content: Any) -> None:
    if not isinstance(content, dict):
        kind = {list: "a list"}.get(type(content), f"a {type(content).__name__}")
        raise LabelmeError(f'not a LabelMe file: expected an object with "shapes", found {kind}')
    if "annotations" in content and "images" in content:
        raise LabelmeError('not a LabelMe file: it has "images" and "annotations", which looks like COCO')
    if not isinstance(content.get("shapes"), list):
        found = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        raise LabelmeError(f'not a LabelMe file: expected a list "shapes"; the keys are: {found}')


def _parse_shape(index: int, entry: Any) -> Shape:
    if not isinstance(entry, dict):
        raise ShapeError("bad_field", f"expected an object, found {type(entry).__name__}")
    label = entry.get("label")
    if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
        raise ShapeError("bad_field", f"label: expected a name, found {label!r}")
    kind = entry.get("shape_type") or "polygon"
    if kind not in AREA_TYPES + LINE_TYPES:
        known = ", ".join(AREA_TYPES + LINE_TYPES)
        raise ShapeError("unknown_type", f"shape_type: {kind!r} is not one of {known}")
    points = _parse_points(entry.get("points"))
    check_point_count(kind, points)
    group_id = entry.get("group_id")
    bitmap = _parse_bitmap(entry.get("mask"), points) if kind == "mask" else None
    return Shape(index, str(label).strip(), kind, points, None if group_id is None else str(group_id), bitmap)


def _parse_points(points: Any) -> np.ndarray:
    if not isinstance(points, list):
        raise ShapeError("bad_field", f"points: expected a list, found {type(points).__name__}")
    parsed = np.empty((len(points), 2), dtype=np.float64)
    for number, point in enumerate(points):
        if not isinstance(point, (list, tuple)) or len(point) != 2:
            raise ShapeError("bad_field", f"points[{number}]: expected [x, y], found {str(point)[:60]}")
        for axis, value in enumerate(point):
            parsed[number, axis] = parse_coordinate(value, f"points[{number}]")
    return parsed


def _parse_bitmap(mask: Any, points: np.ndarray) -> np.ndarray:
    """The base64 PNG of a "mask" shape as (height, width) bool; its size must match the two inclusive corners."""
    if not isinstance(mask, str):
        raise ShapeError("bad_mask", f"mask: expected a base64 PNG, found {type(mask).__name__}")
    try:
        with Image.open(io.BytesIO(base64.b64decode(mask)), formats=FORMATS) as image:
            bitmap = np.asarray(image.convert("L") if image.mode not in ("L", "1", "I", "I;16") else image) > 0
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        raise ShapeError("bad_mask", f"mask: not readable as a base64 PNG: {error}") from None
    corners = np.trunc(points)
    width, height = (np.abs(corners[1] - corners[0]) + 1).astype(int)
    if abs(bitmap.shape[1] - width) > 1 or abs(bitmap.shape[0] - height) > 1:
        raise ShapeError(
            "bad_mask",
            f"mask: the bitmap is {bitmap.shape[1]}x{bitmap.shape[0]}, its corners span {width}x{height}",
        )
    return bitmap


def _label_size(content: dict[str, Any]) -> tuple[tuple[int, int] | None, list[Note]]:
    """(width, height) of the labelled image; LabelMe stores it since version 3.14."""
    values = [content.get("imageWidth"), content.get("imageHeight")]
    if values == [None, None]:
        return None, []
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) and 1 <= v <= MAX_SIDE for v in values):
        return (int(values[0]), int(values[1])), []  # type: ignore[arg-type]
    message = (
        f"imageWidth, imageHeight: found {values[0]!r:.40}, {values[1]!r:.40}; coordinates are taken as image pixels"
    )
    return None, [Note("bad_size", message)]


def _image_data(content: dict[str, Any]) -> tuple[bytes | None, list[Note]]:
    data = content.get("imageData")
    if not data:
        return None, []
    try:
        return base64.b64decode(data), []
    except (binascii.Error, ValueError, TypeError) as error:
        return None, [Note("bad_image_data", f"imageData: not readable as base64: {error}")]
