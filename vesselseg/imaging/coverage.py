"""Area of every pixel that polygons cover: exact along rows, on 16 lines per row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LINES = 16  # per row of pixels


def polygon_coverage(polygons: Sequence[NDArray[np.float64]], height: int, width: int) -> NDArray[np.float32]:
    """Covered fraction of each pixel, (height, width) float32 in 0..1, of the union of the polygons.

    polygons: (points, 2) each, x and y; pixel (column, row) is the square from (column, row) to (column + 1, row + 1).
    The interior of a polygon is that of the even-odd rule. Every row is cut by 16 lines, on which the union of the
    interior intervals is exact.
    """
    if not polygons:
        return np.zeros((height, width), np.float32)
    number, line, x = _crossings(polygons, height)
    order = np.lexsort((x, number, line))
    line, x = line[order], x[order].clip(0, width)
    # A closed polygon crosses a line an even number of times: the interior is between every other pair.
    return _covered(line[::2], x[::2], x[1::2], height, width)


def _crossings(
    polygons: Sequence[NDArray[np.float64]], height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Where outlines cross lines: number of the polygon, number of the line, x; each (crossings,)."""
    x0, y0 = np.concatenate(polygons).T  # (edges,) each
    x1, y1 = np.concatenate([np.roll(points, -1, axis=0) for points in polygons]).T
    # Line k is at y = (k + 0.5) / LINES; an edge has its upper end, not its lower one.
    ends = np.minimum(y0, y1), np.maximum(y0, y1)
    first, last = (np.ceil(end * LINES - 0.5).clip(0, height * LINES).astype(np.int64) for end in ends)
    counts = last - first  # lines that an edge crosses
    edge = np.repeat(np.arange(len(x0)), counts)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    share = ((line + 0.5) / LINES - y0[edge]) / (y1 - y0)[edge]
    number = np.repeat(np.arange(len(polygons)), [len(points) for points in polygons])[edge]
    return number, line, x0[edge] + share * (x1 - x0)[edge]


def _covered(
    line: NDArray[np.int64], start: NDArray[np.float64], end: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float32]:
    """Union of intervals (start, end) on lines -> covered fraction of every pixel."""
    order = np.lexsort((start, line))
    line, start, end = line[order], start[order], end[order]
    # On one axis, with the lines one after the other, an interval begins where all earlier ones have ended.
    offset = line * float(width + 1)
    reached = np.maximum.accumulate(end + offset) - offset
    start = np.maximum(start, np.concatenate([[0.0], (reached + offset)[:-1]]) - offset)
    end = np.maximum(start, end)
    # The covered area changes from one pixel to the next by what begins there, less what ends there.
    x = np.concatenate([start, end])
    column = np.floor(x).astype(np.int64)
    sign = np.repeat([1.0, -1.0], len(line))
    at = np.concatenate([line, line]) // LINES * (width + 2) + column
    inside = x - column
    weights = np.concatenate([sign * (1 - inside), sign * inside])
    change = np.bincount(np.concatenate([at, at + 1]), weights, height * (width + 2)).reshape(height, width + 2)
    return (change.cumsum(axis=1)[:, :width] / LINES).clip(0, 1).astype(np.float32)
