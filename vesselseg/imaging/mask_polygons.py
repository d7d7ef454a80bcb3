"""Mask -> polygons that the project's rasteriser turns back into the same mask, holes included.

Polygons run through the border pixels of the mask, which the rasteriser fills too. A cut, an edge traversed in both
directions, connects each hole with the outline, so that every connected component is one polygon.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from vesselseg.imaging.rasterise import rasterise
from vesselseg.imaging.shape_regions import has_area

AGREEMENT = 0.98  # minimum IoU of a component with its rasterised polygon
# (upsampling, tolerance of the simplification in pixels), tried in this order. Outlines through pixel centres are
# smooth; upsampled by 2 they have steps, but lines and dots of one pixel have an area.
ATTEMPTS = ((1, 0.5), (1, 0.25), (2, 0.25), (2, 0.0))


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """mask: (height, width) bool or 0/1. Returns per 8-connected component a (points, 2) float64 polygon in pixels."""
    count, pieces, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    polygons = []
    for number in range(1, count):
        left, top, width, height = (int(value) for value in boxes[number, :4])
        piece = (pieces[top : top + height, left : left + width] == number).astype(np.uint8)  # (height, width)
        polygons.append(_piece_polygon(piece) + np.array([left, top]))
    return polygons


def _piece_polygon(piece: np.ndarray) -> np.ndarray:
    """The coarsest polygon of one component that reaches AGREEMENT."""
    for fine, tolerance in ATTEMPTS:
        outline, kept = _outline(np.pad(piece.repeat(fine, 0).repeat(fine, 1), 1))
        polygon = (_simplify(outline, kept, tolerance * fine) - 0.5) / fine
        if len(polygon) >= 3 and has_area(polygon) and _agreement(polygon, piece) >= AGREEMENT:
            break
    return polygon


def _agreement(polygon: np.ndarray, piece: np.ndarray) -> float:
    drawn = rasterise([polygon.ravel().tolist()], *piece.shape)
    return float((drawn & piece).sum() / (drawn | piece).sum())


def _outline(fine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """fine: padded, upsampled mask of a component. Returns (points, 2) int and (points,) bool, True at ends of cuts."""
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    is_hole = hierarchy[0, :, 3] >= 0
    rings = [contour.reshape(-1, 2) for contour in contours]  # (points, 2) each
    outer = rings[int(np.flatnonzero(~is_hole)[0])]
    holes = sorted((rings[number] for number in np.flatnonzero(is_hole)), key=lambda ring: int(ring[:, 0].min()))
    if not holes:
        return outer, np.zeros(len(outer), bool)
    walk = _Walk(outer)
    for hole in holes:
        walk.add_hole(hole, fine)
    return walk.points()


class _Walk:
    """A closed path over points, as a linked list, so that inserting a hole moves no other point."""

    def __init__(self, outer: np.ndarray) -> None:
        self._points: list[tuple[int, int]] = []
        self._next: list[int] = []
        self._ends: set[int] = set()
        self._at: dict[tuple[int, int], int] = {}
        self._ring(outer)

    def add_hole(self, hole: np.ndarray, fine: np.ndarray) -> None:
        """Cut from the hole's leftmost point horizontally to the left, through the mask, to the next ring.

        Holes are added from left to right: the ring that a cut meets is further left, so it is on the path already.
        """
        hole = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        x, y = (int(value) for value in hole[0])
        background = int(np.flatnonzero(fine[y, :x] == 0)[-1])
        near = self._at[background + 1, y]
        first, last = self._ring(hole)
        back_on_hole, back_on_ring = self._copy(first), self._copy(near)
        self._next[back_on_ring], self._next[near] = self._next[near], first
        self._next[last], self._next[back_on_hole] = back_on_hole, back_on_ring
        self._ends.update((near, first, back_on_hole, back_on_ring))

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """All points (points, 2) in the order of the path, and (points,) bool, True at ends of cuts."""
        order, node = [0], self._next[0]
        while node != 0:
            order.append(node)
            node = self._next[node]
        return np.array([self._points[node] for node in order]), np.array([node in self._ends for node in order])

    def _ring(self, ring: np.ndarray) -> tuple[int, int]:
        start = len(self._points)
        for x, y in ring.tolist():
            self._at.setdefault((x, y), len(self._points))
            self._points.append((x, y))
            self._next.append(len(self._points))
        self._next[-1] = start
        return start, len(self._points) - 1

    def _copy(self, node: int) -> int:
        self._points.append(self._points[node])
        self._next.append(-1)
        return len(self._points) - 1


def _simplify(outline: np.ndarray, kept: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas-Peucker simplification between the ends of cuts, which are kept; tolerance in grid steps."""
    ends = np.flatnonzero(kept)
    if not len(ends):
        return cv2.approxPolyDP(outline.astype(np.int32), tolerance, True).reshape(-1, 2)
    turned = np.roll(outline, -int(ends[0]), axis=0).astype(np.int32)
    turned = np.concatenate([turned, turned[:1]])
    stops = [*(ends - ends[0]).tolist(), len(turned) - 1]
    return np.concatenate([_simplify_open(turned[a : b + 1], tolerance)[:-1] for a, b in pairwise(stops)])


def _simplify_open(line: np.ndarray, tolerance: float) -> np.ndarray:
    """Simplify a line and keep its ends; a closed line is split in two, since OpenCV mishandles it as open."""
    if len(line) > 2 and (line[0] == line[-1]).all():
        far = int(((line - line[0]) ** 2).sum(axis=1).argmax())
        if far:
            return np.concatenate(
                [_simplify_open(line[: far + 1], tolerance)[:-1], _simplify_open(line[far:], tolerance)]
            )
    return cv2.approxPolyDP(line, tolerance, False).reshape(-1, 2)
