"""The Frangi baseline on a dataset folder: tuned on the training split, written as a folder that can be evaluated."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vesselseg.data.image_views import as_rgb
from vesselseg.data.manifest import Record, fingerprint, image_path, read_split
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import phrase_truths
from vesselseg.evaluation.frangi import THRESHOLD, FrangiParams, apply_frangi
from vesselseg.evaluation.frangi_search import tune_frangi
from vesselseg.evaluation.prediction_folder import SETTINGS_FILE
from vesselseg.output_folder import whole_folder

_log = logging.getLogger(__name__)

TUNING_IMAGES = 24
TUNING_SPLIT = "train"


def write_frangi_baseline(
    data: Path, splits: Sequence[str], out: Path, images: int = TUNING_IMAGES, seed: int = 0, force: bool = False
) -> FrangiParams:
    """Tune on at most ``images`` of the training split, predict the splits into out, and return the parameters.

    out appears whole or not at all: 16-bit PNG probabilities named as the images, and predictions.json with threshold
    and parameters. Raises EvaluationError for empty splits, for reporting the training split, and where out exists.
    """
    if TUNING_SPLIT in splits:
        raise EvaluationError(f"the parameters are searched on the split {TUNING_SPLIT}: it cannot be reported as well")
    empty = [name for name in (TUNING_SPLIT, *splits) if not read_split(data, name)]
    if empty:
        raise EvaluationError(f"{data}: no image in the split {', '.join(empty)}; prepare the data with a share for it")
    with whole_folder(out, force, SETTINGS_FILE) as folder:
        tuning = _drawn(read_split(data, TUNING_SPLIT), images, seed)
        _log.info("searching the Frangi filter's parameters on %d images of %s", len(tuning), TUNING_SPLIT)
        params = tune_on(data, tuning)
        for split in splits:
            for record in read_split(data, split):
                path = folder / PurePosixPath(record.image).with_suffix(".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                _save(apply_frangi(_pixels(data, record), params), path)
        settings = {
            "method": "Frangi filter, scikit-image",
            "threshold": THRESHOLD,
            "params": params.to_dict(),
            "tuned_on": {"split": TUNING_SPLIT, "images": [record.image for record in tuning], "seed": seed},
            "data_fingerprint": fingerprint(data),
        }
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return params


def tune_on(data: Path, records: Sequence[Record]) -> FrangiParams:
    """``tune_frangi`` on records of a dataset folder; the truth of an image is the union of its objects."""
    images = [_pixels(data, record) for record in records]
    truths = [phrase_truths(r, ("",), *pixels.shape[:2])[0] for r, pixels in zip(records, images)]
    return tune_frangi(images, truths)


def _drawn(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    order = np.random.default_rng(seed).permutation(len(records))[:count]
    return [records[index] for index in sorted(order)]


def _pixels(data: Path, record: Record) -> NDArray[np.uint8]:
    with Image.open(image_path(data, record)) as image:
        return np.asarray(as_rgb(image))


def _save(probabilities: NDArray[np.float32], path: Path) -> None:
    Image.fromarray((probabilities.astype(np.float64) * 65535).round().astype(np.uint16)).save(path)
