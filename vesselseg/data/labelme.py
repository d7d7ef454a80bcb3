"""One LabelMe file -> shapes. Reads every version from before 3.5 to 5.8; errors name file, shape index and field."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

AREA_TYPES = ("polygon", "rectangle", "circle", "mask")
LINE_TYPES = ("line", "linestrip", "point")
MAX_SIDE = 200_000  # pixels; a larger imageWidth or imageHeight is a mistake, not a picture
_MAX_COORDINATE = 1e7
_POINT_COUNTS = {"rectangle": (2, 4), "circle": (2,), "mask": (2,), "line": (2,), "point": (1,)}


class LabelmeError(ValueError):
    """The file is not readable as a LabelMe file; the message says what was found instead."""


class ShapeError(ValueError):
    """One shape cannot be used. code: short reason for counting; the message says which field and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Shape:
    """One drawn shape.

    index: position in the file's "shapes"; label: as written; kind: one of AREA_TYPES or LINE_TYPES.
    points: (points, 2) float64, x and y in the label's own coordinates.
    group_id: what ties several shapes to one object, or None. bitmap: (height, width) bool for "mask", else None.
    """

    index: int
    label: str
    kind: str
    points: np.ndarray
    group_id: str | None = None
    bitmap: np.ndarray | None = None


@dataclass(frozen=True)
class BrokenShape:
    """A shape that cannot be read: its index, its label if it has one, a short code, the reason."""

    index: int
    label: str
    code: str
    reason: str


@dataclass(frozen=True)
class LabelFile:
    """What one LabelMe file says.

    image_path: imagePath with forward slashes, "" if absent. image_data: the embedded image's bytes, or None.
    size: (width, height) that the coordinates refer to, or None where the file does not say.
    notes: (code, message) of things read with a guess, e.g. another text encoding.
    """

    shapes: tuple[Shape, ...]
    broken: tuple[BrokenShape, ...]
    image_path: str
    image_data: bytes | None
    size: tuple[int, int] | None
    notes: tuple[tuple[str, str], ...] = ()


def read_labelme(path: Path) -> LabelFile:
    """Read one LabelMe file; broken shapes are listed, a file that is no LabelMe file raises LabelmeError."""
    try:
        text, notes = _decode_text(Path(path).read_bytes())
    except OSError as error:
        raise LabelmeError(f"the file cannot be read: {error.strerror}") from None
    content = _parse_json(text)
    _check_is_labelme(content)
    shapes, broken = [], []
    for index, entry in enumerate(content["shapes"]):
        try:
            shapes.append(_parse_shape(index, entry))
        except ShapeError as error:
            label = str(entry.get("label") or "").strip() if isinstance(entry, dict) else ""
            broken.append(BrokenShape(index, label, error.code, str(error)))
    size, size_notes = _label_size(content)
    image_data, data_notes = _image_data(content)
    image_path = content.get("imagePath")
    image_path = image_path.replace("\\", "/") if isinstance(image_path, str) else ""
    return LabelFile(tuple(shapes), tuple(broken), image_path, image_data, size, tuple(notes + size_notes + data_notes))


def _decode_text(content: bytes) -> tuple[str, list[tuple[str, str]]]:
    """LabelMe writes UTF-8; old Windows versions wrote the system's encoding, in China GBK."""
    if not content.strip():
        raise LabelmeError("the file is empty")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace"), [("encoding", "text is UTF-16, expected UTF-8")]
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("gb18030"), [("encoding", "text is not UTF-8; read as GBK (GB 18030)")]
    except UnicodeDecodeError:
        raise LabelmeError("the text is neither UTF-8 nor GBK; save the file as UTF-8") from None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise LabelmeError(
            f"not readable as JSON: {error.msg} at line {error.lineno}, column {error.colno}; is it cut off?"
        ) from None
    except (RecursionError, ValueError) as error:
        raise LabelmeError(f"not readable as JSON: {error}") from None


def _check_is_labelme(content: Any) -> None:
    if not isinstance(content, dict):
        kind = {list: "a list"}.get(type(content), f"a {type(content).__name__}")
        raise LabelmeError(f'no LabelMe file: expected an object with "shapes", found {kind}')
    if "annotations" in content and "images" in content:
        raise LabelmeError('no LabelMe file: it has "images" and "annotations", which looks like COCO')
    if not isinstance(content.get("shapes"), list):
        found = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        raise LabelmeError(f'no LabelMe file: expected a list "shapes"; the keys are: {found}')


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
    _check_point_count(kind, points)
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
            parsed[number, axis] = _parse_coordinate(value, f"points[{number}]")
    return parsed


def _parse_coordinate(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ShapeError("bad_field", f"{where}: expected a number, found {str(value)[:60]!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ShapeError("not_finite", f"{where}: {'NaN' if math.isnan(number) else 'infinite'} coordinate")
    if abs(number) > _MAX_COORDINATE:
        raise ShapeError("not_finite", f"{where}: coordinate {number:.3g} is beyond any image")
    return number


def _check_point_count(kind: str, points: np.ndarray) -> None:
    count = len(points)
    if kind == "polygon":
        distinct = len(np.unique(points, axis=0))
        if distinct < 3:
            raise ShapeError(
                "too_few_points", f"a polygon needs 3 distinct points, found {distinct} (of {count} written)"
            )
    elif kind == "linestrip":
        if count < 2:
            raise ShapeError("too_few_points", f"a linestrip needs 2 points, found {count}")
    elif count not in _POINT_COUNTS[kind]:
        expected = " or ".join(map(str, _POINT_COUNTS[kind]))
        code = "too_few_points" if count < min(_POINT_COUNTS[kind]) else "bad_field"
        raise ShapeError(code, f"a {kind} has {expected} point(s), found {count}")


def _parse_bitmap(mask: Any, points: np.ndarray) -> np.ndarray:
    """The base64 PNG of a "mask" shape as bool; its size must be that between the two inclusive corners."""
    if not isinstance(mask, str):
        raise ShapeError("bad_mask", f"mask: expected a base64 PNG, found {type(mask).__name__}")
    try:
        with Image.open(io.BytesIO(base64.b64decode(mask))) as picture:
            bitmap = np.asarray(picture.convert("L") if picture.mode not in ("L", "1", "I", "I;16") else picture) > 0
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


def _label_size(content: dict[str, Any]) -> tuple[tuple[int, int] | None, list[tuple[str, str]]]:
    """(width, height) of the picture that was labelled; files from before 3.14 do not say."""
    values = [content.get("imageWidth"), content.get("imageHeight")]
    if values == [None, None]:
        return None, []
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) and 1 <= v <= MAX_SIDE for v in values):
        return (int(values[0]), int(values[1])), []  # type: ignore[arg-type]
    message = (
        f"imageWidth, imageHeight: found {values[0]!r:.40}, {values[1]!r:.40}; coordinates are taken as image pixels"
    )
    return None, [("bad_size", message)]


def _image_data(content: dict[str, Any]) -> tuple[bytes | None, list[tuple[str, str]]]:
    data = content.get("imageData")
    if not data:
        return None, []
    try:
        return base64.b64decode(data), []
    except (binascii.Error, ValueError, TypeError) as error:
        return None, [("bad_image_data", f"imageData: not readable as base64: {error}")]
