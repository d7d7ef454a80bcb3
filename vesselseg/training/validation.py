"""Validation during training: every process predicts its share of the split, all of them get the result."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vesselseg.config.settings import Validation
from vesselseg.dataset.manifest import Record, image_path, read_split
from vesselseg.dataset.record_masks import ignored_pixels
from vesselseg.errors import ManifestError, UserError
from vesselseg.evaluation.prediction_sources import ModelSource
from vesselseg.evaluation.score_split import phrase_truths
from vesselseg.evaluation.threshold import best_threshold, dice_iou_curves, exceeded_thresholds, threshold_counts
from vesselseg.inference.predictor import Predictor
from vesselseg.registry import METRICS, registered_names
from vesselseg.suggest import did_you_mean

logger = logging.getLogger(__name__)
Metric = Callable[[NDArray[np.bool_], NDArray[np.bool_]], float]  # (mask, truth), both (height, width)


@dataclass(frozen=True)
class ValidationResult:
    """dice, iou: means over the items at `threshold`, the one with the highest Dice. items: (image, phrase) pairs.

    metrics: means of registered metrics at that threshold, over the items where they are defined; NaN where none is.
    """

    dice: float
    iou: float
    threshold: float
    items: int
    metrics: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, float]:
        """As columns of a log."""
        return {"dice": self.dice, "iou": self.iou, "threshold": self.threshold, "items": self.items, **self.metrics}


def validation_records(data_root: Path, settings: Validation) -> list[Record]:
    """The validation images; raises ManifestError if there are none."""
    records = read_split(Path(data_root), settings.split)[: settings.max_images]
    if not records:
        raise ManifestError(
            f"{data_root}: split {settings.split!r} holds no validation image; prepare the data with a --split whose "
            "share of it is above 0, or set validation.interval=None"
        )
    return records


def registered_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics that a config names; raises UserError for a name that is not registered."""
    found = {name: METRICS.get(name) for name in names}
    for name in (name for name, metric in found.items() if metric is None):
        raise UserError(
            f"validation.metrics: no metric is registered as {name!r}{did_you_mean(name, registered_names(METRICS))}; "
            "custom_imports must name the module that registers it"
        )
    return cast(dict[str, Metric], found)


def validate(
    predictor: Predictor, data_root: Path, records: list[Record], metrics: Mapping[str, Metric] | None = None
) -> ValidationResult:
    """Predict the records with all processes; a collective call with the same result everywhere.

    Every process runs the same number of forward passes, because partitioned weights (ZeRO-3) are gathered by all of
    them: the last round is filled up with images that are not counted. metrics: of single masks, at the best threshold.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    source = ModelSource(data_root, predictor, records)
    own: dict[int, list[_Item]] = {}
    for first in range(0, len(records), world):
        number = first + rank
        items = _predict(source, data_root, records[number % len(records)], keep_pixels=bool(metrics))
        if number < len(records):
            own[number] = items
    counts = np.stack(_gather({number: [item.counts for item in items] for number, items in own.items()}))
    threshold, dice = best_threshold(counts)
    _, iou = dice_iou_curves(counts)
    best = round(threshold * 100) - 1
    means = {name: _mean(metric, own, best) for name, metric in (metrics or {}).items()}
    return ValidationResult(dice, float(iou[best]), threshold, len(counts), means)


@dataclass(frozen=True)
class _Item:
    """One phrase of one image: pixel counts (99, 3); for further metrics also the number of thresholds that each pixel
    exceeds, (height, width) uint8, and the truth (height, width) bool."""

    counts: NDArray[np.int64]
    exceeded: NDArray[np.uint8] | None = None
    truth: NDArray[np.bool_] | None = None


def _predict(source: ModelSource, data_root: Path, record: Record, keep_pixels: bool) -> list[_Item]:
    """The items of one image."""
    with Image.open(image_path(data_root, record)) as image:
        probabilities = source.probabilities([record], [image])[0]
        truths = phrase_truths(record, source.phrases(record), image.height, image.width)
        ignored = ignored_pixels(record, image.height, image.width)
    if ignored is not None:  # neither right nor wrong: background in both
        probabilities, truths = np.where(ignored, 0, probabilities), truths & ~ignored
    items = []
    for values, truth in zip(probabilities, truths):
        counts = threshold_counts(values, truth)
        items.append(_Item(counts, exceeded_thresholds(values), truth) if keep_pixels else _Item(counts))
    return items


def _mean(metric: Metric, own: Mapping[int, list[_Item]], best: int) -> float:
    values = {
        number: [float(metric(item.exceeded > best, item.truth)) for item in items]  # type: ignore[operator, arg-type]
        for number, items in own.items()
    }
    defined = [value for value in _gather(values) if math.isfinite(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _gather(own: Mapping[int, list[Any]]) -> list[Any]:
    """The values of all processes in the order of the records."""
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, dict(own))
    everything = {number: values for share in gathered for number, values in share.items()}
    return [value for number in sorted(everything) for value in everything[number]]
