"""What stays in memory does not grow with the number of images."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesselseg.dataset.manifest import Record, read_manifest, write_manifest
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.prediction_sources import open_predictions


def _many(folder: Path, count: int) -> Path:
    """A dataset of ``count`` images of 160 x 160 with probabilities in ``predictions``."""
    (folder / "images").mkdir(parents=True)
    (folder / "predictions").mkdir()
    box = [40.0, 40, 120, 40, 120, 60, 40, 60]
    names = [f"{number}.png" for number in range(count)]
    write_manifest(folder, [Record(name, ((box,),), ("vessel",)) for name in names])
    (folder / "splits.json").write_text(json.dumps({"train": [], "val": [], "test": names}))
    values = np.random.default_rng(0).integers(0, 256, (160, 160), dtype=np.uint8)
    for name in names:
        Image.fromarray(values).save(folder / "images" / name)
        Image.fromarray(values).save(folder / "predictions" / name)
    return folder


def _peak(data: Path) -> int:
    """Most bytes held at once while the dataset is evaluated."""
    tracemalloc.start()
    try:
        evaluate(data, "test", open_predictions(data / "predictions", read_manifest(data)), 0.5)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    few, many = _many(tmp_path / "few", 8), _many(tmp_path / "many", 48)
    _peak(few)  # fills caches of the libraries
    one_map = 160 * 160 * 4
    assert _peak(many) - _peak(few) < 40 * one_map / 4
