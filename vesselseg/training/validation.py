"""Validation during training: every process predicts its share of the split, all of them learn the result."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vesselseg.config.settings import Validation
from vesselseg.dataset.manifest import Record, image_path, read_split
from vesselseg.errors import ManifestError
from vesselseg.evaluation.score_split import phrase_truths
from vesselseg.evaluation.sources import ModelSource
from vesselseg.evaluation.threshold import best_threshold, dice_iou_curves, threshold_counts
from vesselseg.inference.predictor import Predictor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationResult:
    """dice, iou: means over the items at `threshold`, the one with the highest Dice. items: phrases of images."""

    dice: float
    iou: float
    threshold: float
    items: int


def validation_records(data_root: Path, settings: Validation) -> list[Record]:
    """The images that are validated on; raises ManifestError if there are none."""
    records = read_split(Path(data_root), settings.split)[: settings.max_images]
    if not records:
        raise ManifestError(
            f"{data_root}: split {settings.split!r} holds no image to validate on; prepare the data with a --split "
            "that leaves some, or set validation.interval=None"
        )
    return records


def validate(predictor: Predictor, data_root: Path, records: list[Record]) -> ValidationResult:
    """Predict the records with all processes; a collective call, the same result everywhere.

    Every process runs equally many forward passes, because partitioned weights (ZeRO-3) are gathered together: the
    last round is filled up with images that are not counted.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    source = ModelSource(data_root, predictor, records)
    own: dict[int, NDArray[np.int64]] = {}
    for first in range(0, len(records), world):
        number = first + rank
        counts = _counts(source, data_root, records[number % len(records)])
        if number < len(records):
            own[number] = counts
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, own)
    everything = {number: counts for share in gathered for number, counts in share.items()}
    counts = np.concatenate([everything[number] for number in sorted(everything)])
    threshold, dice = best_threshold(counts)
    _, iou = dice_iou_curves(counts)
    return ValidationResult(dice, float(iou[round(threshold * 100) - 1]), threshold, len(counts))


def _counts(source: ModelSource, data_root: Path, record: Record) -> NDArray[np.int64]:
    """(phrases, 99, 3) of one image."""
    with Image.open(image_path(data_root, record)) as image:
        probabilities = source.probabilities([record], [image])[0]
        truths = phrase_truths(record, source.phrases(record), image.height, image.width)
    return np.stack([threshold_counts(values, truth) for values, truth in zip(probabilities, truths)])
