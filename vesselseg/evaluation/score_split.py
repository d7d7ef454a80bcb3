"""One pass over the images of a split: metrics per item and variant, counts at 99 thresholds, logits counted.

An item is one phrase of one image (a model), or all objects of one image together (a folder of masks). Probabilities
are held for one batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vesselseg.dataset.manifest import Record, image_path
from vesselseg.dataset.record_masks import record_masks
from vesselseg.evaluation.calibration import LogitHistogram
from vesselseg.evaluation.metrics import METRICS, image_metrics
from vesselseg.evaluation.scores import Scored
from vesselseg.evaluation.sources import PredictionSource
from vesselseg.evaluation.threshold import apply_threshold, threshold_counts
from vesselseg.inference.flips import flipped_copies, mean_over_flips
from vesselseg.inference.post_processing import NO_POST_PROCESSING, PostProcessing


@dataclass(frozen=True)
class Variant:
    """One way from an image to a mask: with or without flips, a threshold, and what comes after it."""

    flips: bool
    threshold: float
    post_processing: PostProcessing = NO_POST_PROCESSING


@dataclass(frozen=True)
class Item:
    """What there is to score of one phrase of one image: truth and, per flips or not, probabilities, all (h, w)."""

    record: Record
    phrase: str
    truth: NDArray[np.bool_]
    probabilities: dict[bool, NDArray[np.float32]]


@dataclass(frozen=True)
class Measure:
    """What is measured of every item.

    variants: each gives a mask that is scored. masks: the source holds masks, so there are no probabilities to count.
    millimetres: measure distances by the records' spacing instead of in pixels. grid: thresholds at which every metric
    of the mask is wanted.
    """

    variants: tuple[Variant, ...]
    masks: bool
    millimetres: bool = False
    grid: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One item: what each variant scored; per flips or not, and empty for masks: counts (99, 3), logits, and the
    metrics (grid, metrics) in the order of METRICS.
    """

    scored: tuple[Scored, ...]
    pixels: int
    counts: dict[bool, NDArray[np.int64]]
    logits: dict[bool, LogitHistogram]
    grid: dict[bool, NDArray[np.float64]]


class SplitScores:
    """All items of a split in the order of its records.

    items: per variant; pixels: per item; logits: of all items together, per flips or not.
    """

    def __init__(self, split: str, measure: Measure) -> None:
        self.split = split
        self.items: tuple[list[Scored], ...] = tuple([] for _ in measure.variants)
        self.pixels: list[int] = []
        self.logits: dict[bool, LogitHistogram] = {}
        self._counts: dict[bool, list[NDArray[np.int64]]] = {}
        self._grid: dict[bool, list[NDArray[np.float64]]] = {}

    def add(self, measured: Measured) -> None:
        """Take in the next item."""
        for listed, scored in zip(self.items, measured.scored):
            listed.append(scored)
        self.pixels.append(measured.pixels)
        for flips, counts in measured.counts.items():
            self._counts.setdefault(flips, []).append(counts)
            self._grid.setdefault(flips, []).append(measured.grid[flips])
            self.logits.setdefault(flips, LogitHistogram()).merge(measured.logits[flips])

    def counts(self, flips: bool) -> NDArray[np.int64]:
        """Counts at every threshold, (items, 99, 3)."""
        return np.stack(self._counts[flips])

    def grid(self, flips: bool) -> NDArray[np.float64]:
        """Metrics at the thresholds of ``Measure.grid``, (items, grid, metrics)."""
        return np.stack(self._grid[flips])


class Track(Protocol):
    """Shows progress: wraps an iterable, as tqdm does."""

    def __call__(self, batches: Sequence[Sequence[Record]], title: str) -> Iterable[Sequence[Record]]:
        """The same batches, in order."""


def silent(batches: Sequence[Sequence[Record]], title: str) -> Iterable[Sequence[Record]]:
    """No progress shown."""
    return batches


def read_items(
    data: Path, source: PredictionSource, batches: Iterable[Sequence[Record]], flips: Sequence[bool]
) -> Iterator[Item]:
    """The items of the records, predicted batch by batch; flips: whether without, with or both is wanted."""
    for group in batches:
        with ExitStack() as opened:
            images = [opened.enter_context(Image.open(image_path(data, record))) for record in group]
            plain = source.probabilities(group, images)
            flipped = (source.probabilities(group, copies) for copies in flipped_copies(images))
            averaged = mean_over_flips(plain, flipped) if True in flips else plain
            sizes = [(image.height, image.width) for image in images]
        for number, (record, (height, width)) in enumerate(zip(group, sizes)):
            phrases = source.phrases(record)
            truths = phrase_truths(record, phrases, height, width)
            if plain[number].shape != truths.shape:
                raise RuntimeError(f"{record.image}: predicted {plain[number].shape}, expected {truths.shape}")
            for row, phrase in enumerate(phrases):
                maps = {flip: (averaged if flip else plain)[number][row] for flip in flips}
                yield Item(record, phrase, truths[row], maps)


def score_split(
    data: Path,
    split: str,
    source: PredictionSource,
    records: Sequence[Record],
    measure: Measure,
    flips: Sequence[bool],
    batch: int,
    track: Track,
) -> SplitScores:
    """Predict and measure every item of the records."""
    batches = [records[start : start + batch] for start in range(0, len(records), batch)]
    title = "evaluating" if measure.variants else "searching the threshold"
    scores = SplitScores(split, measure)
    for item in read_items(data, source, track(batches, title), flips):
        scores.add(measure_item(item, measure))
    return scores


def measure_item(item: Item, measure: Measure) -> Measured:
    """One item's figures; pure, so that other processes can do it."""
    counts, logits, grid = {}, {}, {}
    for flips, values in item.probabilities.items():
        if not measure.masks:
            counts[flips] = threshold_counts(values, item.truth)
            logits[flips] = LogitHistogram()
            logits[flips].add(values, item.truth)
            grid[flips] = _metrics_at(values, item, measure)
    return Measured(tuple(_scored_variants(item, measure)), item.truth.size, counts, logits, grid)


def _metrics_at(probabilities: NDArray[np.float32], item: Item, measure: Measure) -> NDArray[np.float64]:
    spacing = item.record.spacing if measure.millimetres else None
    masks = (apply_threshold(probabilities, threshold) for threshold in measure.grid)
    rows = [image_metrics(mask, item.truth, spacing=spacing) for mask in masks]
    return np.array([[row[name] for name in METRICS] for row in rows]).reshape(len(rows), len(METRICS))


def _scored_variants(item: Item, measure: Measure) -> Iterator[Scored]:
    spacing = item.record.spacing if measure.millimetres else None
    known: dict[tuple[bool, bytes], dict[str, float]] = {}  # a switch that changes nothing is not scored again
    for variant in measure.variants:
        probabilities = item.probabilities[variant.flips]
        mask = variant_mask(probabilities, variant)
        same = (variant.flips, np.packbits(mask).tobytes())
        if same not in known:
            known[same] = image_metrics(mask, item.truth, None if measure.masks else probabilities, spacing)
        yield _scored(item, mask, known[same])


def variant_mask(probabilities: NDArray[np.float32], variant: Variant) -> NDArray[np.bool_]:
    """The mask (height, width) that a variant makes of its probabilities."""
    return variant.post_processing.apply(apply_threshold(probabilities, variant.threshold))


def _scored(item: Item, mask: NDArray[np.bool_], metrics: dict[str, float]) -> Scored:
    return Scored(
        image=item.record.image,
        phrase=item.phrase,
        group=item.record.group_key,
        height=item.truth.shape[0],
        width=item.truth.shape[1],
        truth_pixels=int(item.truth.sum()),
        predicted_pixels=int(mask.sum()),
        metrics=metrics,
    )


def phrase_truths(record: Record, phrases: Sequence[str], height: int, width: int) -> NDArray[np.bool_]:
    """Union of the objects of each phrase, (phrases, height, width); an empty phrase stands for all objects."""
    masks = record_masks(record, height, width).astype(bool)
    chosen = [[not phrase or phrase == name for name in record.phrases] for phrase in phrases]
    return np.stack([masks[np.array(rows, dtype=bool)].any(axis=0) for rows in chosen])
