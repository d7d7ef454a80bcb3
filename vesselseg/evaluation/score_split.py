"""One pass over the images of a split: metrics per item and variant, counts at 99 thresholds, histograms of logits.

An item is one phrase of one image (for a model), or all objects of one image (for a folder of masks). Probabilities are
held for one batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vesselseg.dataset.manifest import Record, image_path
from vesselseg.dataset.record_masks import ignored_pixels, record_masks
from vesselseg.evaluation.calibration import LogitHistogram
from vesselseg.evaluation.metrics import METRICS, image_metrics
from vesselseg.evaluation.prediction_sources import PredictionSource
from vesselseg.evaluation.result_types import ItemResult
from vesselseg.evaluation.threshold import apply_threshold, threshold_counts
from vesselseg.inference.flips import flipped_copies, mean_over_flips
from vesselseg.inference.post_processing import NO_POST_PROCESSING, PostProcessing


@dataclass(frozen=True)
class Variant:
    """One way from an image to a mask: with or without flips, threshold, post-processing."""

    flips: bool
    threshold: float
    post_processing: PostProcessing = NO_POST_PROCESSING


@dataclass(frozen=True)
class Item:
    """Input of the metrics: one phrase of one image."""

    record: Record
    phrase: str  # empty: all objects
    truth: NDArray[np.bool_]  # (height, width)
    probabilities: dict[bool, NDArray[np.float32]]  # with flips or not -> (height, width)
    ignored: NDArray[np.bool_] | None = None  # (height, width), pixels that count nowhere

    def known(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values (height, width) of all pixels that count; without ignored ones they keep their shape."""
        return values if self.ignored is None else values[~self.ignored]


@dataclass(frozen=True)
class ScoringSettings:
    """What to compute for every item."""

    variants: tuple[Variant, ...]  # masks to score
    masks: bool  # the source contains masks: no counts at thresholds, no logits
    millimetres: bool = False  # distances in mm by the records' spacing instead of pixels
    grid: tuple[float, ...] = ()  # thresholds at which every metric of the mask is computed


@dataclass(frozen=True)
class ItemScores:
    """All values of one item. Dicts: with flips or not; empty for masks."""

    results: tuple[ItemResult, ...]  # one per variant
    pixels: int
    counts: dict[bool, NDArray[np.int64]]  # (99, 3), see ``threshold_counts``
    logits: dict[bool, LogitHistogram]
    grid: dict[bool, NDArray[np.float64]]  # (thresholds of the grid, metrics), in the order of METRICS


class SplitScores:
    """All items of a split in the order of its records.

    items: one list per variant. pixels: per item. logits: of all items together, with flips or not.
    """

    def __init__(self, split: str, settings: ScoringSettings) -> None:
        self.split = split
        self.items: tuple[list[ItemResult], ...] = tuple([] for _ in settings.variants)
        self.pixels: list[int] = []
        self.logits: dict[bool, LogitHistogram] = {}
        self._counts: dict[bool, list[NDArray[np.int64]]] = {}
        self._grid: dict[bool, list[NDArray[np.float64]]] = {}

    def add(self, scores: ItemScores) -> None:
        """Append the next item."""
        for items, result in zip(self.items, scores.results):
            items.append(result)
        self.pixels.append(scores.pixels)
        for flips, counts in scores.counts.items():
            self._counts.setdefault(flips, []).append(counts)
            self._grid.setdefault(flips, []).append(scores.grid[flips])
            self.logits.setdefault(flips, LogitHistogram()).merge(scores.logits[flips])

    def counts(self, flips: bool) -> NDArray[np.int64]:
        """Counts at every threshold, (items, 99, 3)."""
        return np.stack(self._counts[flips])

    def grid(self, flips: bool) -> NDArray[np.float64]:
        """Metrics at the thresholds of ``ScoringSettings.grid``, (items, thresholds, metrics)."""
        return np.stack(self._grid[flips])


class Progress(Protocol):
    """Shows progress: wraps the batches, as tqdm does; see ``vesselseg.progress.batch_progress``."""

    def __call__(self, batches: Sequence[Sequence[Record]], title: str) -> Iterable[Sequence[Record]]:
        """The same batches, in order."""


def no_progress(batches: Sequence[Sequence[Record]], title: str) -> Iterable[Sequence[Record]]:
    """Shows nothing."""
    return batches


def predict_items(
    data: Path, source: PredictionSource, batches: Iterable[Sequence[Record]], flips: Sequence[bool]
) -> Iterator[Item]:
    """Predict the items of the records batch by batch; flips: (False,) or (False, True), with flipped copies too."""
    for group in batches:
        with ExitStack() as opened:
            images = [opened.enter_context(Image.open(image_path(data, record))) for record in group]
            # Per image (phrases, height, width). Flipped copies are predicted lazily: without flips none is.
            plain = source.probabilities(group, images)
            flipped = (source.probabilities(group, copies) for copies in flipped_copies(images))
            averaged = mean_over_flips(plain, flipped) if True in flips else plain
            sizes = [(image.height, image.width) for image in images]
        for number, (record, (height, width)) in enumerate(zip(group, sizes)):
            phrases = source.phrases(record)
            truths = phrase_truths(record, phrases, height, width)
            ignored = ignored_pixels(record, height, width)
            if plain[number].shape != truths.shape:
                raise RuntimeError(f"{record.image}: predicted {plain[number].shape}, expected {truths.shape}")
            for row, phrase in enumerate(phrases):
                maps = {flip: (averaged if flip else plain)[number][row] for flip in flips}
                yield Item(record, phrase, truths[row], maps, ignored)


def score_split(
    data: Path,
    split: str,
    source: PredictionSource,
    records: Sequence[Record],
    settings: ScoringSettings,
    flips: Sequence[bool],
    batch: int,
    progress: Progress,
) -> SplitScores:
    """Predict and score every item of the records, `batch` images at a time."""
    batches = [records[start : start + batch] for start in range(0, len(records), batch)]
    title = "evaluating" if settings.variants else "searching the threshold"
    scores = SplitScores(split, settings)
    for item in predict_items(data, source, progress(batches, title), flips):
        scores.add(score_item(item, settings))
    return scores


def score_item(item: Item, settings: ScoringSettings) -> ItemScores:
    """All values of one item; a pure function, which other processes can run."""
    counts, logits, grid = {}, {}, {}
    for flips, values in item.probabilities.items():
        if not settings.masks:
            known, truth = item.known(values), item.known(item.truth)
            counts[flips] = threshold_counts(known, truth)
            logits[flips] = LogitHistogram()
            logits[flips].add(known, truth)
            grid[flips] = _grid_metrics(values, item, settings)
    return ItemScores(tuple(_score_variants(item, settings)), item.known(item.truth).size, counts, logits, grid)


def _grid_metrics(probabilities: NDArray[np.float32], item: Item, settings: ScoringSettings) -> NDArray[np.float64]:
    """(thresholds of the grid, metrics)."""
    spacing = item.record.spacing if settings.millimetres else None
    masks = (apply_threshold(probabilities, threshold) for threshold in settings.grid)
    rows = [image_metrics(mask, item.truth, spacing=spacing, ignored=item.ignored) for mask in masks]
    return np.array([[row[name] for name in METRICS] for row in rows]).reshape(len(rows), len(METRICS))


def _score_variants(item: Item, settings: ScoringSettings) -> Iterator[ItemResult]:
    spacing = item.record.spacing if settings.millimetres else None
    known: dict[tuple[bool, bytes], dict[str, float]] = {}  # equal masks of several variants are scored once
    for variant in settings.variants:
        probabilities = item.probabilities[variant.flips]
        mask = variant_mask(probabilities, variant)
        key = (variant.flips, np.packbits(mask).tobytes())
        if key not in known:
            known[key] = image_metrics(
                mask, item.truth, None if settings.masks else probabilities, spacing, item.ignored
            )
        yield ItemResult(
            image=item.record.image,
            phrase=item.phrase,
            group=item.record.group_key,
            height=item.truth.shape[0],
            width=item.truth.shape[1],
            truth_pixels=int(item.known(item.truth).sum()),
            predicted_pixels=int(item.known(mask).sum()),
            metrics=known[key],
        )


def variant_mask(probabilities: NDArray[np.float32], variant: Variant) -> NDArray[np.bool_]:
    """The mask of a variant, (height, width) bool; probabilities: (height, width) float32 of the same flips."""
    return variant.post_processing.apply(apply_threshold(probabilities, variant.threshold))


def phrase_truths(record: Record, phrases: Sequence[str], height: int, width: int) -> NDArray[np.bool_]:
    """Union of the objects of each phrase, (phrases, height, width) bool; an empty phrase stands for all objects."""
    masks = record_masks(record, height, width).astype(bool)
    chosen = [[not phrase or phrase == name for name in record.phrases] for phrase in phrases]
    return np.stack([masks[np.array(rows, dtype=bool)].any(axis=0) for rows in chosen])
