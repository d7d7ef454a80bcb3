"""LabelMe content for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WriteLabel = Callable[..., Path]


def polygon(points: list[Any], label: str = "vessel", **fields: Any) -> dict[str, Any]:
    """A LabelMe polygon."""
    return {"label": label, "points": points, "shape_type": "polygon", "group_id": None, "flags": {}, **fields}
