"""Common result of all label readers: the shapes of one image, in the coordinates of the label file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from vesselseg.imaging.notes import Note

Entry = TypeVar("Entry")

AREA_TYPES = ("polygon", "rectangle", "circle", "mask")
LINE_TYPES = ("line", "linestrip", "point")
MAX_SIDE = 200_000  # pixels; a larger width or height in a label file is treated as a mistake
MAX_PIXELS = 400_000_000  # of the image that a bitmap label is placed on
_MAX_COORDINATE = 1e7  # pixels
# Allowed numbers of points; polygons and linestrips have a minimum only.
_POINT_COUNTS = {"rectangle": (2, 4), "circle": (2,), "mask": (2,), "line": (2,), "point": (1,)}


class LabelFileError(ValueError):
    """The labels of an image cannot be read. code: a key of ``prepare.findings.FINDING_KINDS``, for counting."""

    code = "bad_labels"


class ShapeError(ValueError):
    """One shape cannot be used; the message names the field. code: a key of ``FINDING_KINDS``, for counting."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Shape:
    """One annotated shape.

    index: position among the shapes of the file.
    label: as written in the file.
    kind: one of AREA_TYPES or LINE_TYPES.
    points: (points, 2) float64, x and y in the coordinates of the label file.
    group_id: shapes with the same id are one object; None: the shape stands alone.
    bitmap: (height, width) bool if kind is "mask", else None.
    observer: who drew it, "" for the first or only observer.
    """

    index: int
    label: str
    kind: str
    points: np.ndarray
    group_id: str | None = None
    bitmap: np.ndarray | None = None
    observer: str = ""


@dataclass(frozen=True)
class InvalidShape:
    """A shape that cannot be read. index, label: as in Shape, "" without a label. code, reason: from its ShapeError."""

    index: int
    label: str
    code: str
    reason: str


@dataclass(frozen=True)
class ImageLabels:
    """The labels of one image.

    shapes: in the order of the file.
    invalid: shapes that cannot be read.
    image_path: LabelMe's imagePath with forward slashes, "" if absent.
    image_data: the encoded image that a LabelMe file may embed, or None.
    size: (width, height) that the coordinates refer to; None if the file does not state it.
    notes: what was guessed while reading, e.g. the text encoding.
    relative: whether coordinates are fractions of the image's width and height.
    observers: names of all observers after the first, including those who drew nothing.
    phrases: phrases that a model was prompted with, if it drew the shapes; labels are phrases then.
    ignored: (height, width) bool, pixels about which the labels say nothing; None: there are none.
    readings: of a mask whose values are doubtful: how it is read, and how it could be, (height, width) bool each.
    """

    shapes: tuple[Shape, ...]
    invalid: tuple[InvalidShape, ...]
    image_path: str
    image_data: bytes | None
    size: tuple[int, int] | None
    notes: tuple[Note, ...] = ()
    relative: bool = False
    observers: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    ignored: np.ndarray | None = None
    readings: tuple[tuple[str, np.ndarray], ...] = ()


class LabelSource(Protocol):
    """A reference to the labels of one image; picklable, so that a worker process can read them."""

    @property
    def path(self) -> Path:
        """The label file."""

    def read(self) -> ImageLabels:
        """Read the shapes; invalid ones are listed. Raises LabelFileError if nothing can be read."""


def full_image_mask(index: int, label: str, bitmap: np.ndarray, group: str | None = None, observer: str = "") -> Shape:
    """The shape of a bitmap (height, width) bool that covers the whole image."""
    corners = np.array([[0, 0], [bitmap.shape[1] - 1, bitmap.shape[0] - 1]], dtype=np.float64)
    return Shape(index, label, "mask", corners, group, bitmap, observer)


def collect_shapes(
    entries: Iterable[tuple[int, Entry]], parse: Callable[[int, Entry], Shape], label_of: Callable[[Entry], str]
) -> tuple[tuple[Shape, ...], tuple[InvalidShape, ...]]:
    """Parse (index, entry) pairs; entries that raise ShapeError become InvalidShapes."""
    shapes, broken = [], []
    for index, entry in entries:
        try:
            shapes.append(parse(index, entry))
        except ShapeError as error:
            broken.append(InvalidShape(index, label_of(entry), error.code, str(error)))
    return tuple(shapes), tuple(broken)


def parse_coordinate(value: Any, where: str) -> float:
    """A finite number within the range of image coordinates; raises ShapeError that names ``where``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ShapeError("bad_field", f"{where}: expected a number, found {str(value)[:60]!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ShapeError("not_finite", f"{where}: {'NaN' if math.isnan(number) else 'infinite'} coordinate")
    if abs(number) > _MAX_COORDINATE:
        raise ShapeError("not_finite", f"{where}: coordinate {number:.3g} is outside any image")
    return number


def check_point_count(kind: str, points: np.ndarray) -> None:
    """Raise ShapeError if ``points`` (points, 2) are too few or too many for the kind of shape."""
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
