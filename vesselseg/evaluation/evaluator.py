"""Predictions and truths of one split -> metrics per item, their summary, and how threshold and temperature came about.

What is searched (threshold, temperature) is searched on the validation split, which therefore cannot be reported with
it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vesselseg.dataset.manifest import Record, fingerprint, image_path, read_manifest, read_split
from vesselseg.evaluation.ablations import switch_effects, switch_variants
from vesselseg.evaluation.calibration import calibrated
from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.evaluation.metrics import METRIC_TABLE, METRICS
from vesselseg.evaluation.options import AUTO, COUNTED, ON_GRID, EvaluationOptions
from vesselseg.evaluation.score_split import (
    Measure,
    SplitScores,
    Track,
    Variant,
    read_items,
    score_split,
    silent,
    variant_mask,
)
from vesselseg.evaluation.scores import Calibration, Case, Curve, Evaluation, MetricThreshold, Scored, ThresholdChoice
from vesselseg.evaluation.seen_images import seen_in_training, training_alarm
from vesselseg.evaluation.sources import PredictionSource
from vesselseg.evaluation.subgroups import read_subgroups
from vesselseg.evaluation.summaries import group_means, summarise_groups, summarise_items
from vesselseg.evaluation.threshold import (
    GRID,
    THRESHOLDS,
    best_index,
    competing_means,
    count_metrics,
    dice_iou_curves,
    metric_threshold,
)
from vesselseg.imaging.rgb import to_rgb
from vesselseg.inference.options import FLIPS
from vesselseg.inference.post_processing import PostProcessing

_log = logging.getLogger(__name__)

SEARCH_SPLIT = "val"


def evaluate(
    data: Path,
    split: str,
    source: PredictionSource,
    threshold: float | str | None = None,
    batch: int = 4,
    seed: int = 0,
    track: Track = silent,
    options: EvaluationOptions | None = None,
) -> Evaluation:
    """Score a split of the dataset folder data.

    threshold: a number in 0..1; "auto" searches it on the validation split; None takes the one stored with the source.
    batch: images given to the model at once. seed: of the bootstrap. Raises EvaluationError, ManifestError.
    """
    data, options = Path(data), options or EvaluationOptions()
    records = _records_of(data, split)
    search = _search_records(data, split, records) if threshold == AUTO or options.calibrate else []
    source.check(_image_sizes(data, [*records, *search]))
    _check_options(source, threshold, options)
    seen = seen_in_training(data, records, source.training_images)
    if seen:
        _log.warning("%s", training_alarm(seen, len(records)))
    table = read_subgroups(options.subgroups) if options.subgroups else None
    warnings = list(_warnings(data, split, [*records, *search]))
    warnings += table.check(records, read_manifest(data)) if table else ()
    millimetres = all(record.spacing for record in [*records, *search])
    score = partial(_score, data, source, options, millimetres, batch, track)
    found = score(SEARCH_SPLIT, search, ()) if search else None
    choices = _choices(source, threshold, options, found)
    variants = switch_variants(options.flips, options.post_processing, {k: v.value for k, v in choices.items()})
    scores = score(split, records, tuple(variants.values()))
    plain = replace(
        _of_items(data, split, source, choices[options.flips], records, tuple(scores.items[-1]), seed),
        warnings=tuple(warnings),
        length_unit="mm" if millimetres else "px",
        test_time=FLIPS if options.flips else None,
        post_processing=options.post_processing.enabled_steps(),
        switches=tuple(switch_effects(list(variants), scores.items, seed)),
        subgroups=table.subgroups(scores.items[-1], seed) if table else (),
        seen_in_training=seen,
    )
    searched = found if threshold == AUTO else None
    return _with_groups(_with_curves(plain, scores, found, searched, options, choices[False].value))


def _of_items(
    data: Path,
    split: str,
    source: PredictionSource,
    threshold: ThresholdChoice,
    records: Sequence[Record],
    items: tuple[Scored, ...],
    seed: int,
) -> Evaluation:
    return Evaluation(
        source=source.path,
        kind=source.kind,
        data=data,
        split=split,
        data_fingerprint=fingerprint(data),
        threshold=threshold,
        curve=None,
        items=items,
        summary=summarise_items(items, seed),
        grouped=any(record.group for record in records),
        groups=len({item.group for item in items}),
        seed=seed,
    )


def _with_groups(evaluation: Evaluation) -> Evaluation:
    if not evaluation.grouped:
        return evaluation
    groups = group_means(evaluation.items)
    return replace(evaluation, per_group=groups, group_summary=summarise_groups(groups, evaluation.seed))


def _with_curves(
    evaluation: Evaluation,
    scores: SplitScores,
    found: SplitScores | None,
    searched: SplitScores | None,
    options: EvaluationOptions,
    without: float,
) -> Evaluation:
    """What probabilities tell and masks do not. found: the validation split; searched: it, if for a threshold too."""
    if evaluation.kind == "masks":
        return evaluation
    return replace(
        evaluation,
        curve=_curve(scores, options.flips),
        calibration=_calibration(scores, found, options, evaluation.threshold.value),
        thresholds=tuple(_metric_thresholds(searched, scores, options)) if searched else (),
        baseline_threshold=without if searched and options.flips else None,
    )


def cases(evaluation: Evaluation, source: PredictionSource, chosen: Sequence[Scored]) -> Iterator[Case]:
    """Predict the images of a few items again, one by one, with all that a panel shows."""
    by_name = {record.image: record for record in read_split(evaluation.data, evaluation.split)}
    flips = evaluation.test_time == FLIPS
    variant = Variant(flips, evaluation.threshold.value, PostProcessing(**evaluation.post_processing))
    for scored in chosen:
        record = by_name[scored.image]
        items = read_items(evaluation.data, source, [[record]], (flips,))
        item = next(item for item in items if item.phrase == scored.phrase)
        with Image.open(image_path(evaluation.data, record)) as image:
            pixels = np.asarray(to_rgb(image))
        probabilities = item.probabilities[flips]
        yield Case(scored, pixels, item.truth, variant_mask(probabilities, variant), probabilities)


def _score(
    data: Path,
    source: PredictionSource,
    options: EvaluationOptions,
    millimetres: bool,
    batch: int,
    track: Track,
    split: str,
    records: Sequence[Record],
    variants: tuple[Variant, ...],
) -> SplitScores:
    grid = () if options.metric in COUNTED else tuple(GRID.tolist())
    measure = Measure(variants, source.kind == "masks", millimetres, grid)
    return score_split(data, split, source, records, measure, _flips(options), batch, track)


def _flips(options: EvaluationOptions) -> tuple[bool, ...]:
    return (False, True) if options.flips else (False,)


def _choices(
    source: PredictionSource, threshold: float | str | None, options: EvaluationOptions, found: SplitScores | None
) -> dict[bool, ThresholdChoice]:
    """The threshold with and without flips; only a search tells the two apart."""
    if threshold is None:
        return dict.fromkeys(_flips(options), ThresholdChoice(source.threshold, source.threshold_origin))
    if found is None or threshold != AUTO:
        return dict.fromkeys(_flips(options), ThresholdChoice(_number(threshold), "given by the user"))
    origin = f"best mean {METRIC_TABLE[options.metric].label} on the {found.split} split"
    choices = {}
    for flips in _flips(options):
        grid, values = _values(found, flips, options.metric)
        curve = competing_means(values)
        best = best_index(-curve if METRIC_TABLE[options.metric].lower_is_better else curve)
        _log.info("threshold %.2f, mean %s %.4f on %s", grid[best], options.metric, curve[best], found.split)
        choices[flips] = ThresholdChoice(float(grid[best]), origin, _curve(found, flips), options.metric)
    return choices


def _values(scores: SplitScores, flips: bool, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds (n,) and the metric's values (items, n) at them."""
    if metric in COUNTED:
        return THRESHOLDS, count_metrics(scores.counts(flips), scores.pixels)[metric]
    return GRID, scores.grid(flips)[..., METRICS.index(metric)]


def _metric_thresholds(
    found: SplitScores, scores: SplitScores, options: EvaluationOptions
) -> Iterator[MetricThreshold]:
    for metric in (name for name in METRICS if name in COUNTED or name in _searched_on_grid(options)):
        grid, searched = _values(found, options.flips, metric)
        _, reported = _values(scores, options.flips, metric)
        if np.isfinite(searched).any() and np.isfinite(reported).any():
            yield metric_threshold(metric, grid, searched, reported, METRIC_TABLE[metric].lower_is_better)


def _searched_on_grid(options: EvaluationOptions) -> tuple[str, ...]:
    return () if options.metric in COUNTED else ON_GRID


def _curve(scores: SplitScores, flips: bool) -> Curve:
    counts = scores.counts(flips)
    return Curve(scores.split, len(counts), *dice_iou_curves(counts))


def _calibration(
    scores: SplitScores, found: SplitScores | None, options: EvaluationOptions, threshold: float
) -> Calibration:
    logits = scores.logits[options.flips]
    plain = Calibration(scores.split, logits.reliability(), logits.reliability(visible=True))
    if found is None or not options.calibrate:
        return plain
    temperature = found.logits[options.flips].fit_temperature()
    return replace(
        plain,
        temperature=temperature,
        fitted_on=found.split,
        threshold=calibrated(threshold, temperature) if threshold > 0 else 0.0,
        calibrated_everywhere=logits.reliability(temperature),
        calibrated_visible=logits.reliability(temperature, visible=True),
    )


def _records_of(data: Path, split: str) -> list[Record]:
    records = read_split(data, split)
    if not records:
        raise EvaluationError(f"{data}: split {split} has no image; prepare the data with a larger share for it")
    return records


def _search_records(data: Path, split: str, records: Sequence[Record]) -> list[Record]:
    if split == SEARCH_SPLIT:
        raise EvaluationError(
            f"--threshold auto and --calibrate search on the {SEARCH_SPLIT} split, so that split cannot be reported: "
            "its figures would be tuned on themselves. Report --split test, or give a number"
        )
    found = read_split(data, SEARCH_SPLIT)
    if not found:
        raise EvaluationError(
            f"{data}: --threshold auto and --calibrate need images in the {SEARCH_SPLIT} split, which is empty. "
            "Prepare the data with a validation share, e.g. --split 0.8,0.1,0.1, or give --threshold a number"
        )
    shared = sorted({record.image for record in records} & {record.image for record in found})
    if shared:
        advice = "The threshold would be tuned on what is reported: prepare the data again, or give it as a number."
        raise EvaluationError(problem_list(f"{data}: images both in {SEARCH_SPLIT} and in {split}", shared, advice))
    return found


def _check_options(source: PredictionSource, threshold: float | str | None, options: EvaluationOptions) -> None:
    """Refuse what the source cannot do, all at once, before anything is predicted."""
    problems = []
    if source.kind == "masks" and threshold == AUTO:
        problems.append("--threshold auto: the source holds masks, which are the same at every threshold")
    if source.kind == "masks" and options.calibrate:
        problems.append("--calibrate: the source holds masks, which have no probabilities to calibrate")
    if source.kind != "model" and options.flips:
        problems.append("--tta: only a model can be shown mirrored images")
    if options.metric != "dice" and threshold != AUTO:
        problems.append(f"--threshold-metric {options.metric}: without --threshold auto nothing is searched")
    if options.metric not in (*COUNTED, *ON_GRID):
        names = ", ".join((*COUNTED, *ON_GRID))
        problems.append(f"--threshold-metric {options.metric}: no best threshold to search; expected one of {names}")
    if problems:
        raise EvaluationError(problem_list(f"{source.path}: options that do not fit", problems, "Leave these away."))


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


def _number(threshold: float | str) -> float:
    value = float(threshold)
    if not 0 <= value < 1:
        raise EvaluationError(f"--threshold {threshold}: expected a number from 0 to below 1, or auto")
    return value


def _warnings(data: Path, split: str, used: Sequence[Record]) -> Iterator[str]:
    groups = {name: {record.group_key for record in read_split(data, name)} for name in ("train", "val", "test")}
    for other in sorted(groups.keys() - {split}):
        shared = sorted(groups[other] & groups[split])
        if shared:
            named = f"{len(shared)} group(s) or image(s), {shared[0]} among them,"
            yield f"{named} lie both in {split} and in {other}: the figures flatter."
    unknown = sum(record.spacing is None for record in used)
    if 0 < unknown < len(used):
        yield f"{unknown} of {len(used)} images have no pixel spacing: distances are in pixels for all of them."
    if not any(record.group for record in read_manifest(data)):
        yield "No groups in the data: every image counts as its own patient, so the intervals may be too narrow."
