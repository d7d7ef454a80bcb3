"""LabelMe content for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vesselseg.prepare.options import PrepareOptions
from vesselseg.prepare.prepare_dataset import prepare_dataset

WriteLabel = Callable[..., Path]
Shape = dict[str, Any]


def polygon(points: list[Any], label: str = "vessel", **fields: Any) -> dict[str, Any]:
    """A LabelMe polygon."""
    return {"label": label, "points": points, "shape_type": "polygon", "group_id": None, "flags": {}, **fields}


def run(source: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    return prepare_dataset(source, out, PrepareOptions(**{"quiet": True, "workers": 1, **options}))


def found(report: dict[str, Any]) -> set[tuple[str, int | None, str]]:
    return {(finding["file"], finding["index"], finding["code"]) for finding in report["findings"]}


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        + str(path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
