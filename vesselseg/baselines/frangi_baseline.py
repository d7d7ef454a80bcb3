"""The Frangi baseline on a dataset folder: tuned on the training split, written as a folder of predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vesselseg.baselines.folder import LabelledImages, check_splits, write_predictions, write_settings
from vesselseg.baselines.frangi import THRESHOLD, FrangiParams, apply_frangi
from vesselseg.baselines.frangi_search import tune_frangi
from vesselseg.baselines.options import TUNING_IMAGES
from vesselseg.dataset.manifest import Record, read_split
from vesselseg.evaluation.prediction_folder import SETTINGS_FILE
from vesselseg.output_folder import whole_folder

_log = logging.getLogger(__name__)

TUNING_SPLIT = "train"


def write_frangi_baseline(
    data: Path, splits: Sequence[str], out: Path, images: int = TUNING_IMAGES, seed: int = 0, force: bool = False
) -> FrangiParams:
    """Tune on at most ``images`` of the training split, predict the splits into out, and return the parameters.

    out is written completely or not at all: 16-bit PNG probabilities named like the images, and predictions.json with
    threshold and parameters. Raises EvaluationError for empty splits, for the training split, and where out exists.
    """
    check_splits(data, (TUNING_SPLIT,), splits)
    with whole_folder(out, force, SETTINGS_FILE) as folder:
        records = read_split(data, TUNING_SPLIT)
        order = np.random.default_rng(seed).permutation(len(records))[:images]
        tuning = [records[index] for index in sorted(order)]
        _log.info("searching the Frangi filter's parameters on %d images of %s", len(tuning), TUNING_SPLIT)
        params = tune_on(data, tuning)
        write_predictions(data, splits, lambda pixels: apply_frangi(pixels, params), folder)
        settings = {
            "method": "Frangi filter, scikit-image",
            "threshold": THRESHOLD,
            "params": params.to_dict(),
            "tuned_on": {"split": TUNING_SPLIT, "images": [record.image for record in tuning], "seed": seed},
        }
        write_settings(data, splits, settings, folder)
    return params


def tune_on(data: Path, records: Sequence[Record]) -> FrangiParams:
    """``tune_frangi`` on records of a dataset folder; the truth of an image is the union of its objects."""
    labelled = LabelledImages(data, records)
    images, truths = zip(*[labelled[number] for number in range(len(labelled))])
    return tune_frangi(images, truths)
