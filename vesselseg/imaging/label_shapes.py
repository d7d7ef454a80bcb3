"""What every reader of label files makes of one image: shapes in the label's own coordinates. No file is read here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

Entry = TypeVar("Entry")

AREA_TYPES = ("polygon", "rectangle", "circle", "mask")
LINE_TYPES = ("line", "linestrip", "point")
MAX_SIDE = 200_000  # pixels; a larger width or height in a label file is a mistake, not a picture
MAX_PIXELS = 400_000_000  # of the labelled picture that a bitmap is placed on
_MAX_COORDINATE = 1e7
_POINT_COUNTS = {"rectangle": (2, 4), "circle": (2,), "mask": (2,), "line": (2,), "point": (1,)}


class LabelFileError(ValueError):
    """The labels of an image cannot be read; the message says what was found instead. code: for counting."""

    code = "bad_labels"


class ShapeError(ValueError):
    """One shape cannot be used. code: short reason for counting; the message says which field and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Shape:
    """One drawn shape.

    index: position among the file's shapes; label: as written; kind: one of AREA_TYPES or LINE_TYPES.
    points: (points, 2) float64, x and y in the label's own coordinates.
    group_id: what ties several shapes to one object, or None. bitmap: (height, width) bool for "mask", else None.
    observer: who drew it, "" for the first or only one.
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
    """A shape that cannot be read: its index, its label if it has one, a short code, the reason."""

    index: int
    label: str
    code: str
    reason: str


@dataclass(frozen=True)
class ImageLabels:
    """What is labelled in one image.

    image_path: LabelMe's imagePath with forward slashes, "" if absent. image_data: LabelMe's embedded image, or None.
    size: (width, height) that the coordinates refer to, or None where the file does not say.
    notes: (code, message) of things read with a guess, e.g. another text encoding.
    relative: coordinates are shares of the image's width and height. observers: further ones, also those who drew
    nothing. phrases: what was asked for, where a model drew the shapes: labels are phrases themselves then.
    """

    shapes: tuple[Shape, ...]
    invalid: tuple[InvalidShape, ...]
    image_path: str
    image_data: bytes | None
    size: tuple[int, int] | None
    notes: tuple[tuple[str, str], ...] = ()
    relative: bool = False
    observers: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()


class LabelSource(Protocol):
    """Where the labels of one image stand; passed to the process that reads them."""

    @property
    def path(self) -> Path:
        """The label file."""

    def read(self) -> ImageLabels:
        """The shapes; those that cannot be read are listed. Raises LabelFileError where nothing can be read."""


def full_image_mask(index: int, label: str, bitmap: np.ndarray, group: str | None = None, observer: str = "") -> Shape:
    """A bitmap (height, width) bool that is as large as the labelled picture, as a shape."""
    corners = np.array([[0, 0], [bitmap.shape[1] - 1, bitmap.shape[0] - 1]], dtype=np.float64)
    return Shape(index, label, "mask", corners, group, bitmap, observer)


def collect_shapes(
    entries: Iterable[tuple[int, Entry]], parse: Callable[[int, Entry], Shape], label_of: Callable[[Entry], str]
) -> tuple[tuple[Shape, ...], tuple[InvalidShape, ...]]:
    """Parse (index, entry) one by one; those that raise ShapeError are listed with index, label and reason."""
    shapes, broken = [], []
    for index, entry in entries:
        try:
            shapes.append(parse(index, entry))
        except ShapeError as error:
            broken.append(InvalidShape(index, label_of(entry), error.code, str(error)))
    return tuple(shapes), tuple(broken)


def parse_coordinate(value: Any, where: str) -> float:
    """A finite number of a size that an image can have; raises ShapeError with ``where`` for anything else."""
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


def check_point_count(kind: str, points: np.ndarray) -> None:
    """Raise ShapeError where a kind of shape has too few points (points, 2), or more than it can have."""
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
