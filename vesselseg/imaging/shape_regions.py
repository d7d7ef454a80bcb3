"""Shape -> regions of the stored image: scaled per axis, clipped, checked for area."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from vesselseg.imaging.label_shapes import LINE_TYPES, MAX_PIXELS, Shape, ShapeError
from vesselseg.imaging.rasterise import encode, rasterise
from vesselseg.imaging.regions import DEFAULT_FILL, Fill, Region

_MARGIN = 1.0  # pixels kept around the image, so that edges created by clipping stay outside it
_FLAT = 1e-3  # pixels: a polygon that is thinner everywhere has no area


@dataclass(frozen=True)
class Canvas:
    """The stored image, and how coordinates of the label file map to its pixels.

    width, height: of the stored image. label_size: (width, height) of the image that was labelled.
    line_width: width in stored pixels of lines and points, or None to omit them. fill: of polygons.
    """

    width: int
    height: int
    label_size: tuple[int, int]
    line_width: float | None = None
    fill: Fill = DEFAULT_FILL

    @property
    def scale(self) -> tuple[float, float]:
        """Factors for x and y."""
        return self.width / self.label_size[0], self.height / self.label_size[1]

    @property
    def rescaled(self) -> bool:
        """Whether the labelled image and the stored image differ in size."""
        return self.label_size != (self.width, self.height)


class DrawnShape(NamedTuple):
    """A shape on the stored image.

    regions: in stored pixels. clipped: whether a part outside the image was cut off. mask: (height, width) uint8, 0 or
    1, the union of the regions.
    """

    regions: list[Region]
    clipped: bool
    mask: np.ndarray


def shape_regions(shape: Shape, canvas: Canvas) -> DrawnShape:
    """Convert a shape to regions of the stored image, and rasterise them once.

    Raises ShapeError with the code no_width, zero_area, bad_mask or outside if no pixel remains.
    """
    if shape.kind == "mask":
        mask, cut = _place_bitmap(shape, canvas)
        regions: list[Region] = [encode(mask)]
    else:
        outlines = _outlines(shape, canvas)
        clipped = [clip_polygon(outline, canvas.width, canvas.height) for outline in outlines]
        cut = any(is_cut for _, is_cut in clipped)
        regions = [_flat_list(points) for points, _ in clipped if len(points) >= 3]
        mask = rasterise(regions, canvas.height, canvas.width, canvas.fill)
        if not mask.any() and rasterise(regions, canvas.height, canvas.width).any():
            return DrawnShape(regions, cut, mask)  # inside the image, and too thin for any pixel with this fill
    if not mask.any():
        x, y = shape.points.mean(axis=0) * canvas.scale
        raise ShapeError("outside", f"outside the image of {canvas.width}x{canvas.height}: around x {x:.0f}, y {y:.0f}")
    return DrawnShape(regions, cut, mask)


def clip_polygon(points: np.ndarray, width: int, height: int) -> tuple[np.ndarray, bool]:
    """Clip a polygon (points, 2) one pixel outside the image; returns it and whether anything was cut off."""
    low, high = -_MARGIN, np.array([width, height]) + _MARGIN
    if (points >= low).all() and (points <= high).all():
        return points, False
    for axis in (0, 1):
        points = _clip_half_plane(points, axis, low, lambda values, limit: values >= limit)
        points = _clip_half_plane(points, axis, float(high[axis]), lambda values, limit: values <= limit)
    return points, True


def _clip_half_plane(
    points: np.ndarray, axis: int, limit: float, inside: Callable[[np.ndarray, float], np.ndarray]
) -> np.ndarray:
    """One step of the Sutherland-Hodgman algorithm: clip against one border."""
    kept: list[np.ndarray] = []
    is_inside = inside(points[:, axis], limit) if len(points) else np.empty(0, dtype=bool)
    for number in range(len(points)):
        start, end = points[number - 1], points[number]
        if is_inside[number] != is_inside[number - 1]:
            part = (limit - start[axis]) / (end[axis] - start[axis])
            kept.append(start + part * (end - start))  # (2,), the intersection with the border
        if is_inside[number]:
            kept.append(end)
    return np.array(kept).reshape(-1, 2)  # (points, 2)


def _outlines(shape: Shape, canvas: Canvas) -> list[np.ndarray]:
    """The outlines of a shape, each (points, 2), in stored pixels."""
    if shape.kind in LINE_TYPES:
        if canvas.line_width is None:
            raise ShapeError("no_width", f"a {shape.kind} has no area; --line-width gives it one")
        return _stroke(shape.points * canvas.scale, canvas.line_width)
    if shape.kind == "circle":
        points = _circle(shape.points[0], float(np.linalg.norm(shape.points[1] - shape.points[0])))
    elif shape.kind == "rectangle" and len(shape.points) == 2:
        (x1, y1), (x2, y2) = shape.points
        points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])  # (4, 2)
    else:
        points = shape.points
    points = points * canvas.scale
    if not has_area(points):
        raise ShapeError("zero_area", f"a {shape.kind} without area: its outline retraces itself or is a line")
    return [points]


def has_area(points: np.ndarray) -> bool:
    """Whether a polygon (points, 2) encloses an area: it is not a line, and its edges do not cancel out."""
    offsets = points - points[0]  # (points, 2)
    # Distances from the line through the first and the farthest point, by the cross product.
    far = offsets[np.argmax((offsets**2).sum(axis=1))]
    length = float(np.hypot(*far))
    if length < _FLAT or (np.abs(offsets[:, 0] * far[1] - offsets[:, 1] * far[0]) / length).max() < _FLAT:
        return False
    corners = [tuple(point) for point in points.tolist()]
    # Edges that are traversed an even number of times cancel out.
    edges = Counter(
        frozenset((corners[n - 1], corners[n])) for n in range(len(corners)) if corners[n - 1] != corners[n]
    )
    return any(count % 2 for count in edges.values())


def _circle(centre: np.ndarray, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, num=int(np.clip(4 * radius, 24, 360)), endpoint=False)
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _stroke(points: np.ndarray, width: float) -> list[np.ndarray]:
    """A line with round ends and joints: a disc at each point and a bar along each segment."""
    discs = [_circle(point, width / 2) for point in points]
    bars = []
    for start, end in pairwise(points):
        length = float(np.hypot(*(end - start)))
        if length > 0:
            across = np.array([start[1] - end[1], end[0] - start[0]]) * (width / 2 / length)
            bars.append(np.array([start + across, end + across, end - across, start - across]))
    return discs + bars


def _place_bitmap(shape: Shape, canvas: Canvas) -> tuple[np.ndarray, bool]:
    """Place a bitmap at its upper left corner, as LabelMe does, and rescale it to the stored image.

    Returns (height, width) uint8, 0 or 1, of the stored image, and whether a part of the bitmap was cut off.
    """
    assert shape.bitmap is not None
    if not shape.bitmap.any():
        raise ShapeError("zero_area", "a mask without any pixel set")
    width, height = canvas.label_size
    if width * height > MAX_PIXELS:
        raise ShapeError("bad_mask", f"the labelled image of {width}x{height} is too large for a mask")
    left, top = np.trunc(shape.points).min(axis=0).astype(int)
    rows, columns = np.nonzero(shape.bitmap)  # (pixels,) each
    rows, columns = rows + top, columns + left
    within = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    placed = np.zeros((height, width), dtype=np.uint8)  # of the labelled image
    placed[rows[within], columns[within]] = 1
    if canvas.rescaled:
        placed = _resize(placed, canvas)
        if within.any() and not placed.any():
            raise ShapeError("zero_area", "a mask so small that rescaling leaves no pixel of it")
    return placed, not bool(within.all())


def _resize(mask: np.ndarray, canvas: Canvas) -> np.ndarray:
    """A mask at the stored size: a pixel is set if at least half of it is covered."""
    smaller = canvas.width * canvas.height < mask.size
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    covered = cv2.resize(mask.astype(np.float32), (canvas.width, canvas.height), interpolation=method)
    return (covered >= 0.5).astype(np.uint8)


def _flat_list(points: np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in points.reshape(-1)]
