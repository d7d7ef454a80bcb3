"""Text shared by all reports of an evaluation: groups of metrics, formatted values, sentences, warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vesselseg.evaluation.metrics import METRIC_TABLE, Metric
from vesselseg.evaluation.result_types import Calibration, Evaluation
from vesselseg.evaluation.statistics import RESAMPLES, Summary

UNDEFINED = "–"
"""Text of an undefined value."""
METRIC_GROUPS = {
    "Overlap": ("dice", "iou", "precision", "recall", "specificity", "accuracy", "balanced_accuracy", "mcc"),
    "Centreline": ("cldice", "topology_precision", "topology_sensitivity"),
    "Distance": ("hd", "hd95", "assd", "nsd"),
    "Topology": ("betti_0_error", "betti_1_error", "components_error"),
    "By vessel width": tuple(
        f"{part}_{width}" for part in ("recall", "precision") for width in ("thin", "medium", "wide")
    ),
    "Ranking of pixels": ("roc_auc", "pr_auc"),
}
"""Every metric of METRIC_TABLE once, by aspect."""
QUESTIONS = {
    "Overlap": "Is it the right area?",
    "Centreline": "Is the tree complete, whatever its width?",
    "Distance": "Is the edge accurate enough to measure a diameter?",
    "Topology": "Are there breaks, false loops, stray components?",
    "By vessel width": "How good is it on thin, medium and wide vessels?",
    "Ranking of pixels": "How good are the probabilities, before any threshold?",
}
KEY_METRICS = ("dice", "cldice", "precision", "recall", "hd95", "nsd")
"""Metrics of narrow tables."""
_OPTIONS = {
    "flips": "average over flipped images (--tta flips)",
    "min_component": "components under {} px removed (--min-component {})",
    "fill_holes": "holes up to {} px filled (--fill-holes {})",
}


@dataclass(frozen=True)
class MetricGroup:
    """Metrics of one aspect."""

    title: str
    question: str  # that the metrics answer
    names: tuple[str, ...]
    notes: tuple[str, ...]  # their conventions, numbered from 1

    def note_number(self, name: str) -> int | None:
        """The number of a metric's convention, None where there is none."""
        convention = METRIC_TABLE[name].convention
        return self.notes.index(convention) + 1 if convention else None


def metric_groups() -> tuple[MetricGroup, ...]:
    """The groups in the order of the reports, each with its distinct conventions."""
    groups = []
    for title, names in METRIC_GROUPS.items():
        conventions = dict.fromkeys(METRIC_TABLE[name].convention for name in names)
        groups.append(MetricGroup(title, QUESTIONS[title], names, tuple(filter(None, conventions))))
    return tuple(groups)


def figure(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A value as text, UNDEFINED for None and NaN. sign: write a plus too, for differences."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    # + 0.0 turns -0.0 into 0.0
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def metric_digits(name: str) -> int:
    """Decimals of a metric: 2 for lengths and counts, 3 for fractions."""
    return 2 if METRIC_TABLE[name].unit else 3


def interval(low: float | None, high: float | None, digits: int = 3, sign: bool = False) -> str:
    """``0.611 to 0.702``, UNDEFINED where there is no interval."""
    if low is None or high is None:
        return UNDEFINED
    return f"{figure(low, digits, sign)} to {figure(high, digits, sign)}"


def summary_interval(name: str, summary: Summary) -> str:
    """A metric's 95 % interval as text."""
    return interval(summary.low, summary.high, metric_digits(name))


def unit(metric: Metric, evaluation: Evaluation) -> str:
    """``px``, ``mm``, ``count`` or an empty text."""
    return evaluation.length_unit if metric.unit == "px/mm" else metric.unit


def label(name: str, evaluation: Evaluation) -> str:
    """A metric's name with its unit where it is a length: ``HD95 [px]``."""
    metric = METRIC_TABLE[name]
    return f"{metric.label} [{evaluation.length_unit}]" if metric.unit == "px/mm" else metric.label


def item_noun(evaluation: Evaluation) -> str:
    """``images``, or ``items`` where an evaluation has several phrases."""
    return "items" if len({item.phrase for item in evaluation.items}) > 1 else "images"


def summary_sentence(evaluation: Evaluation) -> str:
    """The result in one sentence."""
    dice, cldice = evaluation.summary["dice"], evaluation.summary["cldice"]
    recall, precision = evaluation.summary["recall"], evaluation.summary["precision"]
    between = f" (95 % interval {summary_interval('dice', dice)})" if dice.low is not None else ""
    found = len(evaluation.items)
    return (
        f"On {found:,} {item_noun(evaluation) if found > 1 else item_noun(evaluation)[:-1]} of the split "
        f"{evaluation.split}, mean Dice is {figure(dice.mean)}{between} and clDice {figure(cldice.mean)}: "
        f"{100 * recall.mean:.0f} % of the vessel was found, and {100 * precision.mean:.0f} % of the prediction is "
        "vessel."
    )


def threshold_sentence(evaluation: Evaluation) -> str:
    """The applied threshold and its origin."""
    if evaluation.kind == "masks":
        return "The source contains masks, so no threshold was applied."
    return f"Threshold {evaluation.threshold.value:.2f}: {evaluation.threshold.origin}."


def setting_sentences(evaluation: Evaluation) -> str:
    """The threshold and the options that were on."""
    options = ", ".join(options_used(evaluation))
    return f"{threshold_sentence(evaluation)} Options: {options}." if options else threshold_sentence(evaluation)


def bootstrap_sentence(evaluation: Evaluation) -> str:
    """The method of the intervals."""
    unit = "group" if evaluation.grouped else "image"
    return f"95 % percentile bootstrap of the mean, {RESAMPLES:,} resamples of whole {unit}s, seed {evaluation.seed}"


def option_label(option: str, evaluation: Evaluation) -> str:
    """Description of an option, see ``AblationEffect.option``."""
    if " + " in option:
        return "all together"
    size = evaluation.post_processing.get(option, "")
    return _OPTIONS[option].format(size, size)


def own_threshold_sentence(evaluation: Evaluation) -> str:
    """States that the effect of flips includes that of their own threshold; empty where the thresholds are equal."""
    # Comparing both at one threshold would favour the one that it was searched for.
    before, applied = evaluation.baseline_threshold, evaluation.threshold.value
    if before is None or not evaluation.test_time or before == applied:
        return ""
    return (
        f"The threshold was searched separately: {applied:.2f} with flipped images, {before:.2f} without. "
        "The difference includes the effect of the threshold."
    )


def options_used(evaluation: Evaluation) -> tuple[str, ...]:
    """Descriptions of the options of the reported results."""
    names = [evaluation.test_time] if evaluation.test_time else []
    return tuple(option_label(name, evaluation) for name in [*names, *evaluation.post_processing])


def calibration_rows(calibration: Calibration) -> Iterator[tuple[str, str, float, float | None]]:
    """(set of pixels, measure, before, after); after is None unless a temperature was fitted."""
    pairs = (
        ("all pixels", calibration.everywhere, calibration.calibrated_everywhere),
        ("probability from 0.01", calibration.visible, calibration.calibrated_visible),
    )
    for which, before, after in pairs:
        for name, attribute in (("ECE", "ece"), ("Brier", "brier"), ("NLL", "nll")):
            yield which, name, getattr(before, attribute), None if after is None else getattr(after, attribute)


def calibration_warning(calibration: Calibration) -> str | None:
    """The measures that the fitted temperature makes worse on the reported split; None where it makes none worse."""
    worse = [
        f"{name} ({which}) {figure(before, 4)} to {figure(after, 4)}"
        for which, name, before, after in calibration_rows(calibration)
        if after is not None and after > before
    ]
    if not worse:
        return None
    return (
        f"The temperature {figure(calibration.temperature)} fitted on {calibration.fitted_on} makes "
        f"{calibration.split} worse: {_joined(worse)}. The splits differ, or one of them is too small; "
        "do not store this temperature without evidence from more data."
    )


def _joined(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
