"""Regions of a mask as stored in dataset folders: polygons and run-length codes."""

from __future__ import annotations

from typing import Any, Literal, get_args

Polygon = list[float]  # x1, y1, x2, y2, ... in pixels of the stored image
RunLength = dict[str, Any]  # COCO's: {"size": [height, width], "counts": "..."}
Region = Polygon | RunLength

# How polygons become pixels; see `vesselseg.imaging.rasterise`.
Fill = Literal["labelme", "coco", "coverage"]
FILLS: tuple[Fill, ...] = get_args(Fill)
DEFAULT_FILL: Fill = "labelme"
