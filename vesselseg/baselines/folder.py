"""Shared by the baselines: labelled images of a dataset folder, and the folder of their predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vesselseg.dataset.manifest import Record, fingerprint, image_path, read_split
from vesselseg.dataset.record_masks import record_masks
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.prediction_folder import SETTINGS_FILE
from vesselseg.imaging.rgb import to_rgb

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(height, width, 3) uint8 -> probabilities (height, width) float32 in 0..1."""


class LabelledImages:
    """Images and truths of records of a dataset folder, read on access."""

    def __init__(self, data: Path, records: Sequence[Record]) -> None:
        self.data = Path(data)
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Image (height, width, 3) uint8 and union of all objects (height, width) bool."""
        record = self.records[index]
        pixels = read_pixels(self.data, record)
        masks = record_masks(record, *pixels.shape[:2])
        return pixels, np.asarray(masks.any(axis=0))


def read_pixels(data: Path, record: Record) -> NDArray[np.uint8]:
    """The image of a record, (height, width, 3) uint8. Raises EvaluationError where it cannot be read."""
    path = image_path(data, record)
    try:
        with Image.open(path) as image:
            return np.asarray(to_rgb(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read as an image ({error}); prepare the data again") from None


def check_splits(data: Path, used: Sequence[str], predicted: Sequence[str]) -> None:
    """Raise EvaluationError for empty splits, and for predictions of the training split.

    used: the splits that a baseline learns from.
    """
    if "train" in predicted:
        raise EvaluationError("the baseline learns from the split train, so it cannot be reported")
    empty = [name for name in dict.fromkeys((*used, *predicted)) if not read_split(data, name)]
    if empty:
        raise EvaluationError(f"{data}: no image in the split {', '.join(empty)}; prepare the data with a share for it")


def write_predictions(data: Path, splits: Sequence[str], predict: Predict, folder: Path) -> None:
    """Predict every image of the splits into folder, as 16-bit PNG probabilities named like the images."""
    for split in splits:
        for record in read_split(data, split):
            path = folder / PurePosixPath(record.image).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            values = predict(read_pixels(data, record)).astype(np.float64)
            Image.fromarray((values * 65535).round().astype(np.uint16)).save(path)


def write_settings(data: Path, splits: Sequence[str], settings: dict[str, Any], folder: Path) -> None:
    """Write predictions.json: settings, which include "threshold", plus the predicted splits and data fingerprint."""
    content = {**settings, "splits": list(splits), "data_fingerprint": fingerprint(data)}
    (folder / SETTINGS_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
