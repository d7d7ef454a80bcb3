"""CVAT for images 1.1: polygon, mask, ellipse, box, polyline and points; tags, skeletons and cuboids are left out.

Format: https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from vesselseg.imaging.label_shapes import (
    MAX_PIXELS,
    MAX_SIDE,
    ImageLabels,
    LabelFileError,
    Shape,
    ShapeError,
    check_point_count,
    collect_shapes,
    parse_coordinate,
)
from vesselseg.imaging.source_files import SourceFiles
from vesselseg.prepare.readers.scan import ImageIndex, ScanResult, scan_listed_images

_DRAWN = ("polygon", "polyline", "points", "box", "ellipse", "mask", "cuboid", "skeleton")
_ARCS = 360  # corners of an ellipse


@dataclass(frozen=True)
class CvatLabels:
    """One <image> element of a CVAT file, serialised so that it can be passed to a process."""

    path: Path
    element: bytes

    def read(self) -> ImageLabels:
        """The shapes, in the order of the file."""
        image = ElementTree.fromstring(self.element)
        drawn = [(index, child) for index, child in enumerate(c for c in image if c.tag in _DRAWN)]
        shapes, broken = collect_shapes(drawn, _shape, lambda child: child.get("label", "").strip())
        return ImageLabels(shapes, broken, "", None, _size(image))


def scan_cvat(files: SourceFiles, xmls: list[str], index: ImageIndex, first_frame: int | None) -> ScanResult:
    """All images that the XML files list; an image without shapes has no vessel."""
    return scan_listed_images(files, xmls, _read, index, first_frame)


def _read(path: Path) -> list[tuple[str, CvatLabels]]:
    """(name, its shapes) of each image of a CVAT file; raises LabelFileError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabelFileError(f"the file cannot be read: {error.strerror}") from None
    if b"<!ENTITY" in content:
        raise LabelFileError("the XML defines entities, which CVAT files never do; it is not read")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise LabelFileError(f"not readable as XML: {error}") from None
    if root.tag != "annotations":
        raise LabelFileError(f"not a CVAT file: expected <annotations>, found <{root.tag}>")
    if root.find("track") is not None:
        raise LabelFileError('"CVAT for video" with tracks; export the task as "CVAT for images 1.1"')
    images = root.findall("image")
    for image in images:
        image.tail = None  # tostring would include the text after the element
    return [(image.get("name", ""), CvatLabels(path, ElementTree.tostring(image))) for image in images]


def _size(image: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = int(image.get("width", "")), int(image.get("height", ""))
    except ValueError:
        return None
    return (width, height) if 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE else None


def _shape(index: int, drawn: ElementTree.Element) -> Shape:
    label = drawn.get("label", "").strip()
    if not label:
        raise ShapeError("bad_field", "label: expected a name, found nothing")
    group = drawn.get("group_id")
    if drawn.tag == "mask":
        return _mask(index, label, group, drawn)
    if drawn.tag == "box":
        points = _box(drawn)
    elif drawn.tag == "ellipse":
        points = _ellipse(drawn)
    elif drawn.tag in ("polygon", "polyline", "points"):
        points = _points(drawn)
    else:
        raise ShapeError("unknown_type", f"a {drawn.tag} is not an outline")
    kind = {"polyline": "linestrip", "points": "point"}.get(drawn.tag, "polygon")
    check_point_count(kind, points)
    return Shape(index, label, kind, points, group)


def _number(drawn: ElementTree.Element, name: str, default: str | None = None) -> float:
    text = drawn.get(name, default)
    if text is None:
        raise ShapeError("bad_field", f"{name}: missing")
    return _parse(text, name)


def _parse(text: str, where: str) -> float:
    try:
        return parse_coordinate(float(text), where)
    except ValueError as error:
        if isinstance(error, ShapeError):
            raise
        raise ShapeError("bad_field", f"{where}: expected a number, found {text[:60]!r}") from None


def _points(drawn: ElementTree.Element) -> np.ndarray:
    pairs = [pair.split(",") for pair in drawn.get("points", "").split(";") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ShapeError("bad_field", 'points: expected "x,y;x,y"')
    values = [[_parse(value, f"points[{n}]") for value in pair] for n, pair in enumerate(pairs)]
    return np.array(values, dtype=np.float64).reshape(-1, 2)


def _turned(points: np.ndarray, centre: np.ndarray, drawn: ElementTree.Element) -> np.ndarray:
    """Points (points, 2) rotated clockwise about the centre (2,) by the shape's rotation in degrees."""
    angle = np.deg2rad(_number(drawn, "rotation", "0"))
    if angle == 0:
        return points
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # (2, 2) for row vectors
    return (points - centre) @ turn + centre


def _box(drawn: ElementTree.Element) -> np.ndarray:
    left, top, right, bottom = (_number(drawn, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return _turned(points, np.array([(left + right) / 2, (top + bottom) / 2]), drawn)


def _ellipse(drawn: ElementTree.Element) -> np.ndarray:
    centre = np.array([_number(drawn, "cx"), _number(drawn, "cy")])
    radii = np.array([_number(drawn, "rx"), _number(drawn, "ry")])
    angles = np.linspace(0, 2 * np.pi, num=_ARCS, endpoint=False)
    return _turned(centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1), centre, drawn)


def _mask(index: int, label: str, group: str | None, drawn: ElementTree.Element) -> Shape:
    """A bitmap from row-major run lengths within a box; the first run is background."""
    left, top, width, height = (int(_number(drawn, name)) for name in ("left", "top", "width", "height"))
    try:
        counts = [int(count) for count in drawn.get("rle", "").split(",")]
    except ValueError:
        raise ShapeError("bad_mask", "rle: expected comma-separated numbers") from None
    if width < 1 or height < 1 or width * height > MAX_PIXELS or min(counts) < 0 or sum(counts) != width * height:
        raise ShapeError("bad_mask", f"rle: counts add up to {sum(counts)}, expected {width} x {height}")
    bitmap = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    corners = np.array([[left, top], [left + width - 1, top + height - 1]], dtype=np.float64)
    return Shape(index, label, "mask", corners, group, bitmap)
