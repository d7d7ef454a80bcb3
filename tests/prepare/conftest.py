"""Small LabelMe sources for the tests of preparing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.labelme_files import WriteLabel, polygon


@pytest.fixture
def square() -> dict[str, Any]:
    """A polygon from (4, 6) to (14, 16): 11 x 11 pixels."""
    return polygon([[4, 6], [14, 6], [14, 16], [4, 16]])


@pytest.fixture
def write_label() -> WriteLabel:
    """write(folder, stem, shapes, size=(40, 30), picture=True, **fields): a PNG and its LabelMe JSON."""

    def write(
        folder: Path,
        stem: str,
        shapes: list[Any],
        size: tuple[int, int] = (40, 30),
        picture: bool = True,
        **fields: Any,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        if picture:
            # every stem another picture: equal ones are a finding
            values = np.random.default_rng(list(stem.encode())).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
            Image.fromarray(values).save(folder / f"{stem}.png")
        content = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{stem}.png",
            "imageData": None,
            "imageHeight": size[1],
            "imageWidth": size[0],
            **fields,
        }
        path = folder / f"{stem}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def source(tmp_path: Path, write_label: WriteLabel, square: dict[str, Any]) -> Path:
    """Ten good files."""
    for number in range(10):
        write_label(tmp_path / "source", f"p{number // 2}_f{number}", [square])
    return tmp_path / "source"
