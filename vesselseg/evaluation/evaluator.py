"""Predictions and truths of one split -> metrics per item, their summary, and how the threshold came about.

An item is one phrase of one image (a model), or all objects of one image together (a folder of masks). Probabilities
are held for one batch at a time; what stays per item is its metrics and its counts at 99 thresholds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vesselseg.data.image_views import as_rgb
from vesselseg.data.manifest import Record, fingerprint, image_path, read_manifest, read_split
from vesselseg.data.rasterise import record_masks
from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.evaluation.metrics import METRICS, image_metrics
from vesselseg.evaluation.scores import Case, Curve, Evaluation, Scored, ThresholdChoice
from vesselseg.evaluation.sources import PredictionSource
from vesselseg.evaluation.statistics import Summary, summarise
from vesselseg.evaluation.threshold import apply_threshold, best_threshold, dice_iou_curves, threshold_counts

_log = logging.getLogger(__name__)

AUTO = "auto"
SEARCH_SPLIT = "val"


class Track(Protocol):
    """Shows progress: wraps an iterable, as tqdm does."""

    def __call__(self, batches: Sequence[Sequence[Record]], title: str) -> Iterable[Sequence[Record]]:
        """The same batches, in order."""


def silent(batches: Sequence[Sequence[Record]], title: str) -> Iterable[Sequence[Record]]:
    """No progress shown."""
    return batches


def evaluate(
    data: Path,
    split: str,
    source: PredictionSource,
    threshold: float | str | None = None,
    batch: int = 4,
    seed: int = 0,
    track: Track = silent,
) -> Evaluation:
    """Score a split of the dataset folder data.

    threshold: a number in 0..1; "auto" searches it on the validation split; None takes the one stored with the source.
    batch: images given to the model at once. seed: of the bootstrap. Raises EvaluationError, ManifestError.
    """
    records = _records_of(data, split)
    search = _search_records(data, split, records) if threshold == AUTO else []
    source.check(_image_sizes(data, [*records, *search]))
    if threshold == AUTO:
        choice = _search(data, source, search, batch, track)
    elif threshold is None:
        choice = ThresholdChoice(source.threshold, source.threshold_origin)
    else:
        choice = ThresholdChoice(_number(threshold), "given by the user")
    items, counts = _score(data, source, records, choice.value, batch, track)
    return Evaluation(
        source=source.path,
        kind=source.kind,
        data=Path(data),
        split=split,
        data_fingerprint=fingerprint(data),
        threshold=choice,
        curve=None if source.kind == "masks" else Curve(split, len(items), *dice_iou_curves(counts)),
        items=tuple(items),
        summary=_summary(items, seed),
        grouped=any(record.group for record in records),
        groups=len({item.group for item in items}),
        seed=seed,
        warnings=tuple(_warnings(data, split, source)),
    )


def cases(evaluation: Evaluation, source: PredictionSource, chosen: Sequence[Scored]) -> Iterator[Case]:
    """Predict the images of a few items again, one by one, with all that a panel shows."""
    by_name = {record.image: record for record in read_split(evaluation.data, evaluation.split)}
    for scored in chosen:
        record = by_name[scored.image]
        with Image.open(image_path(evaluation.data, record)) as image:
            probabilities = source.probabilities([record], [image])[0]
            pixels = np.asarray(as_rgb(image))
        number = source.phrases(record).index(scored.phrase)
        yield Case(
            scored=scored,
            image=pixels,
            truth=phrase_truths(record, source.phrases(record), scored.height, scored.width)[number],
            prediction=apply_threshold(probabilities[number], evaluation.threshold.value),
            probabilities=probabilities[number],
        )


def _records_of(data: Path, split: str) -> list[Record]:
    records = read_split(data, split)
    if not records:
        raise EvaluationError(f"{data}: split {split} has no image; prepare the data with a larger share for it")
    return records


def _search_records(data: Path, split: str, records: Sequence[Record]) -> list[Record]:
    if split == SEARCH_SPLIT:
        raise EvaluationError(
            f"--threshold auto searches the threshold on the {SEARCH_SPLIT} split, so that split cannot be reported: "
            "its figures would be tuned on themselves. Report --split test, or give a number"
        )
    found = read_split(data, SEARCH_SPLIT)
    if not found:
        raise EvaluationError(
            f"{data}: --threshold auto needs images in the {SEARCH_SPLIT} split, which is empty. "
            "Prepare the data with a validation share, e.g. --split 0.8,0.1,0.1, or give --threshold a number"
        )
    shared = sorted({record.image for record in records} & {record.image for record in found})
    if shared:
        advice = "The threshold would be tuned on what is reported: prepare the data again, or give it as a number."
        raise EvaluationError(problem_list(f"{data}: images both in {SEARCH_SPLIT} and in {split}", shared, advice))
    return found


def _search(
    data: Path, source: PredictionSource, records: Sequence[Record], batch: int, track: Track
) -> ThresholdChoice:
    if source.kind == "masks":
        raise EvaluationError(
            f"{source.path} holds masks, which are the same at every threshold: leave --threshold auto away, "
            "or save probabilities"
        )
    _, counts = _score(data, source, records, None, batch, track)
    value, dice = best_threshold(counts)
    _log.info("threshold %.2f, mean Dice %.4f on the %d items of %s", value, dice, len(counts), SEARCH_SPLIT)
    curve = Curve(SEARCH_SPLIT, len(counts), *dice_iou_curves(counts))
    return ThresholdChoice(value, f"best mean Dice on the {SEARCH_SPLIT} split", curve)


def _score(
    data: Path,
    source: PredictionSource,
    records: Sequence[Record],
    threshold: float | None,
    batch: int,
    track: Track,
) -> tuple[list[Scored], NDArray[np.int64]]:
    """Items in the order of records (none where threshold is None) and their counts (items, 99, 3)."""
    batches = [records[start : start + batch] for start in range(0, len(records), batch)]
    title = "searching the threshold" if threshold is None else "evaluating"
    items, counts = [], []
    for group in track(batches, title):
        with ExitStack() as opened:
            images = [opened.enter_context(Image.open(image_path(data, record))) for record in group]
            predicted = source.probabilities(group, images)
            sizes = [(image.height, image.width) for image in images]
        for record, probabilities, (height, width) in zip(group, predicted, sizes):
            phrases = source.phrases(record)
            truths = phrase_truths(record, phrases, height, width)
            if probabilities.shape != truths.shape:
                raise RuntimeError(f"{record.image}: predicted {probabilities.shape}, expected {truths.shape}")
            for phrase, values, truth in zip(phrases, probabilities, truths):
                counts.append(threshold_counts(values, truth))
                if threshold is not None:
                    items.append(_scored(record, phrase, apply_threshold(values, threshold), truth))
    return items, np.stack(counts)


def _scored(record: Record, phrase: str, prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Scored:
    return Scored(
        image=record.image,
        phrase=phrase,
        group=record.group_key,
        height=truth.shape[0],
        width=truth.shape[1],
        truth_pixels=int(truth.sum()),
        predicted_pixels=int(prediction.sum()),
        metrics=image_metrics(prediction, truth),
    )


def phrase_truths(record: Record, phrases: Sequence[str], height: int, width: int) -> NDArray[np.bool_]:
    """Union of the objects of each phrase, (phrases, height, width); an empty phrase stands for all objects."""
    masks = record_masks(record, height, width).astype(bool)
    chosen = [[not phrase or phrase == name for name in record.phrases] for phrase in phrases]
    return np.stack([masks[np.array(rows, dtype=bool)].any(axis=0) for rows in chosen])


def _image_sizes(data: Path, records: Sequence[Record]) -> dict[str, tuple[int, int]]:
    sizes, problems = {}, []
    for record in records:
        try:
            with Image.open(image_path(data, record)) as image:
                sizes[record.image] = (image.height, image.width)
        except (OSError, UnidentifiedImageError) as error:
            problems.append(f"{record.image}: {error}")
    if problems:
        raise EvaluationError(problem_list(f"{data}: unreadable images", problems, "Prepare the data again."))
    return sizes


def _summary(items: Sequence[Scored], seed: int) -> dict[str, Summary]:
    values = np.array([[item.metrics[name] for name in METRICS] for item in items])
    return dict(zip(METRICS, summarise(values, [item.group for item in items], seed)))


def _number(threshold: float | str) -> float:
    value = float(threshold)
    if not 0 <= value < 1:
        raise EvaluationError(f"--threshold {threshold}: expected a number from 0 to below 1, or auto")
    return value


def _warnings(data: Path, split: str, source: PredictionSource) -> Iterator[str]:
    groups = {name: {record.group_key for record in read_split(data, name)} for name in ("train", "val", "test")}
    for other in sorted(groups.keys() - {split}):
        shared = sorted(groups[other] & groups[split])
        if shared:
            named = f"{len(shared)} group(s) or image(s), {shared[0]} among them,"
            yield f"{named} lie both in {split} and in {other}: the figures flatter."
    if not any(record.group for record in read_manifest(data)):
        yield "No groups in the data: every image counts as its own patient, so the intervals may be too narrow."
