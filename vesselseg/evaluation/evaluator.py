"""Evaluate one split: metrics per item, their summary, threshold and temperature.

Threshold and temperature are searched on the validation split, which therefore cannot be reported with them.
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
from vesselseg.evaluation.ablations import ablation_effects, ablation_variants
from vesselseg.evaluation.calibration import calibrated
from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.evaluation.leakage import leakage_warning, seen_in_training
from vesselseg.evaluation.metrics import METRIC_TABLE, METRICS
from vesselseg.evaluation.options import AUTO, COUNT_METRICS, MASK_METRICS, EvaluationOptions
from vesselseg.evaluation.prediction_sources import PredictionSource
from vesselseg.evaluation.result_types import (
    Calibration,
    Case,
    Curve,
    Evaluation,
    ItemResult,
    MetricThreshold,
    ThresholdChoice,
)
from vesselseg.evaluation.score_split import (
    Progress,
    ScoringSettings,
    SplitScores,
    Variant,
    no_progress,
    predict_items,
    score_split,
    variant_mask,
)
from vesselseg.evaluation.subgroups import read_subgroups
from vesselseg.evaluation.summaries import group_means, summarise_groups, summarise_items
from vesselseg.evaluation.threshold import (
    COARSE_THRESHOLDS,
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
    progress: Progress = no_progress,
    options: EvaluationOptions | None = None,
) -> Evaluation:
    """Score a split of the dataset folder data.

    threshold: a number in 0..1; "auto" searches it on the validation split; None uses the one stored with the source.
    batch: images per model call. seed: of the bootstrap. progress: wraps the batches, see ``Progress``.
    Raises EvaluationError, ManifestError.
    """
    data, options = Path(data), options or EvaluationOptions()
    records = _filled(read_split(data, split), options)
    if not records:
        raise EvaluationError(f"{data}: the split {split} is empty; prepare the data with a larger share for it")
    searches = threshold == AUTO or options.calibrate
    search = _filled(_search_records(data, split, records, source), options) if searches else []
    # Everything that can be refused is refused here, before hours of prediction.
    source.check(_image_sizes(data, [*records, *search]))
    _check_options(source, threshold, options)
    seen = seen_in_training(data, records, source.training_images)
    if seen:
        _log.warning("%s", leakage_warning(seen, len(records)))
    table = read_subgroups(options.subgroups) if options.subgroups else None
    warnings = list(_warnings(data, split, [*records, *search]))
    warnings += table.check(records, read_manifest(data)) if table else ()
    # One unit for all images: a mean over pixels and millimetres would mean nothing.
    millimetres = all(record.spacing for record in [*records, *search])
    score = partial(_score, data, source, options, millimetres, batch, progress)
    # The validation split only chooses threshold and temperature, so no mask of it is scored.
    validation = score(SEARCH_SPLIT, search, ()) if search else None
    choices = _choices(source, threshold, options, validation)
    variants = ablation_variants(options.flips, options.post_processing, {k: v.value for k, v in choices.items()})
    scores = score(split, records, tuple(variants.values()))
    items = tuple(scores.items[-1])  # of the last variant, which has all options
    grouped = any(record.group for record in records)
    per_group = group_means(items) if grouped else ()
    plain = Evaluation(
        source=source.path,
        kind=source.kind,
        data=data,
        split=split,
        data_fingerprint=fingerprint(data),
        threshold=choices[options.flips],
        curve=None,
        items=items,
        summary=summarise_items(items, seed),
        grouped=grouped,
        groups=len({item.group for item in items}),
        seed=seed,
        warnings=tuple(warnings),
        length_unit="mm" if millimetres else "px",
        test_time=FLIPS if options.flips else None,
        post_processing=options.post_processing.enabled_steps(),
        ablations=tuple(ablation_effects(list(variants), scores.items, seed)),
        subgroups=table.subgroups(items, seed) if table else (),
        per_group=per_group,
        group_summary=summarise_groups(per_group, seed) if grouped else {},
        seen_in_training=seen,
        fill=records[0].fill,
    )
    searched = validation if threshold == AUTO else None
    return _with_curves(plain, scores, validation, searched, options, choices[False].value)


def _with_curves(
    evaluation: Evaluation,
    scores: SplitScores,
    validation: SplitScores | None,
    searched: SplitScores | None,
    options: EvaluationOptions,
    plain_threshold: float,
) -> Evaluation:
    """Add the results that need probabilities.

    validation: scores of that split, if needed; searched: the same, where a threshold was searched on it.
    plain_threshold: the threshold without flips.
    """
    if evaluation.kind == "masks":
        return evaluation
    return replace(
        evaluation,
        curve=_curve(scores, options.flips),
        calibration=_calibration(scores, validation, options, evaluation.threshold.value),
        thresholds=tuple(_metric_thresholds(searched, scores, options)) if searched else (),
        baseline_threshold=plain_threshold if searched and options.flips else None,
    )


def predict_cases(evaluation: Evaluation, source: PredictionSource, chosen: Sequence[ItemResult]) -> Iterator[Case]:
    """Predict the images of a few items again, one at a time, with the pixels that a panel shows."""
    by_name = {record.image: record for record in read_split(evaluation.data, evaluation.split)}
    flips = evaluation.test_time == FLIPS
    variant = Variant(flips, evaluation.threshold.value, PostProcessing(**evaluation.post_processing))
    for result in chosen:
        record = by_name[result.image]
        items = predict_items(evaluation.data, source, [[record]], (flips,))
        item = next(item for item in items if item.phrase == result.phrase)
        with Image.open(image_path(evaluation.data, record)) as image:
            pixels = np.asarray(to_rgb(image))
        probabilities = item.probabilities[flips]
        yield Case(result, pixels, item.truth, variant_mask(probabilities, variant), probabilities)


def _score(
    data: Path,
    source: PredictionSource,
    options: EvaluationOptions,
    millimetres: bool,
    batch: int,
    progress: Progress,
    split: str,
    records: Sequence[Record],
    variants: tuple[Variant, ...],
) -> SplitScores:
    grid = () if options.metric in COUNT_METRICS else tuple(COARSE_THRESHOLDS.tolist())
    settings = ScoringSettings(variants, source.kind == "masks", millimetres, grid)
    return score_split(data, split, source, records, settings, _flips(options), batch, progress)


def _flips(options: EvaluationOptions) -> tuple[bool, ...]:
    return (False, True) if options.flips else (False,)


def _choices(
    source: PredictionSource, threshold: float | str | None, options: EvaluationOptions, validation: SplitScores | None
) -> dict[bool, ThresholdChoice]:
    """The threshold without (False) and with flips (True); they differ only after a search."""
    if threshold is None:
        return dict.fromkeys(_flips(options), ThresholdChoice(source.threshold, source.threshold_origin))
    if validation is None or threshold != AUTO:
        return dict.fromkeys(_flips(options), ThresholdChoice(_number(threshold), "given by the user"))
    origin = f"best mean {METRIC_TABLE[options.metric].label} on the {validation.split} split"
    choices = {}
    for flips in _flips(options):
        grid, values = _values(validation, flips, options.metric)
        curve = competing_means(values)
        best = best_index(-curve if METRIC_TABLE[options.metric].lower_is_better else curve)
        _log.info("threshold %.2f, mean %s %.4f on %s", grid[best], options.metric, curve[best], validation.split)
        choices[flips] = ThresholdChoice(float(grid[best]), origin, _curve(validation, flips), options.metric)
    return choices


def _values(scores: SplitScores, flips: bool, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds (n,) and the metric's values (items, n) at them."""
    if metric in COUNT_METRICS:
        return THRESHOLDS, count_metrics(scores.counts(flips), scores.pixels)[metric]
    return COARSE_THRESHOLDS, scores.grid(flips)[..., METRICS.index(metric)]


def _metric_thresholds(
    validation: SplitScores, scores: SplitScores, options: EvaluationOptions
) -> Iterator[MetricThreshold]:
    # Masks are scored at every coarse threshold only where their metric was requested.
    mask_metrics = () if options.metric in COUNT_METRICS else MASK_METRICS
    for metric in (name for name in METRICS if name in (*COUNT_METRICS, *mask_metrics)):
        grid, searched = _values(validation, options.flips, metric)
        _, reported = _values(scores, options.flips, metric)
        if np.isfinite(searched).any() and np.isfinite(reported).any():
            yield metric_threshold(metric, grid, searched, reported, METRIC_TABLE[metric].lower_is_better)


def _curve(scores: SplitScores, flips: bool) -> Curve:
    counts = scores.counts(flips)
    return Curve(scores.split, len(counts), *dice_iou_curves(counts))


def _calibration(
    scores: SplitScores, validation: SplitScores | None, options: EvaluationOptions, threshold: float
) -> Calibration:
    logits = scores.logits[options.flips]
    plain = Calibration(scores.split, logits.reliability(), logits.reliability(visible=True))
    if validation is None or not options.calibrate:
        return plain
    temperature = validation.logits[options.flips].fit_temperature()
    return replace(
        plain,
        temperature=temperature,
        fitted_on=validation.split,
        threshold=calibrated(threshold, temperature) if threshold > 0 else 0.0,
        calibrated_everywhere=logits.reliability(temperature),
        calibrated_visible=logits.reliability(temperature, visible=True),
    )


def _filled(records: list[Record], options: EvaluationOptions) -> list[Record]:
    """The records, with another fill of their polygons if the options name one."""
    return records if options.fill is None else [replace(record, fill=options.fill) for record in records]


def _search_records(data: Path, split: str, records: Sequence[Record], source: PredictionSource) -> list[Record]:
    if split == SEARCH_SPLIT:
        raise EvaluationError(
            f"--threshold auto and --calibrate search on the {SEARCH_SPLIT} split, so it cannot be reported: "
            "its results would be tuned on themselves. Report --split test, or give a number"
        )
    found = read_split(data, SEARCH_SPLIT)
    if not found:
        raise EvaluationError(
            f"{data}: --threshold auto and --calibrate need images in the {SEARCH_SPLIT} split, which is empty. "
            f"For external data use --threshold stored (here {source.threshold:g}, {source.threshold_origin}) without "
            "--calibrate, or a number; to search, prepare the data with a validation share, e.g. --split 0.8,0.1,0.1"
        )
    shared = sorted({record.image for record in records} & {record.image for record in found})
    if shared:
        advice = "The threshold would be tuned on reported images: prepare the data again, or give a number."
        raise EvaluationError(problem_list(f"{data}: images both in {SEARCH_SPLIT} and in {split}", shared, advice))
    return found


def _check_options(source: PredictionSource, threshold: float | str | None, options: EvaluationOptions) -> None:
    """Raise EvaluationError that lists all options that the source does not support."""
    problems = []
    if source.kind == "masks" and threshold == AUTO:
        problems.append("--threshold auto: the source holds masks, which are the same at every threshold")
    if source.kind == "masks" and options.calibrate:
        problems.append("--calibrate: the source holds masks, which have no probabilities to calibrate")
    if source.kind != "model" and options.flips:
        problems.append("--tta: needs a model; the source holds predictions")
    if options.metric != "dice" and threshold != AUTO:
        problems.append(f"--threshold-metric {options.metric}: needs --threshold auto")
    if options.metric not in (*COUNT_METRICS, *MASK_METRICS):
        names = ", ".join((*COUNT_METRICS, *MASK_METRICS))
        problems.append(f"--threshold-metric {options.metric}: has no best threshold; expected one of {names}")
    if problems:
        raise EvaluationError(problem_list(f"{source.path}: unsupported options", problems, "Omit these options."))


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
            named = f"{len(shared)} group(s) or image(s), e.g. {shared[0]},"
            yield f"{named} are in both {split} and {other}: the results are too optimistic."
    unknown = sum(record.spacing is None for record in used)
    if 0 < unknown < len(used):
        yield f"{unknown} of {len(used)} images have no pixel spacing: all distances are in pixels."
    detector = sum(record.spacing_at == "detector" for record in used)
    if detector and not unknown:
        yield f"{detector} of {len(used)} images have the spacing at the detector: their lengths in mm are too long."
    if not any(record.group for record in read_manifest(data)):
        yield "No groups in the data: every image counts as its own patient, so the intervals may be too narrow."
