"""What all reports of an evaluation say in words: groups of metrics, figures as text, sentences, warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vesselseg.evaluation.metrics import METRIC_TABLE, Metric
from vesselseg.evaluation.scores import Calibration, Evaluation
from vesselseg.evaluation.statistics import RESAMPLES, Summary

UNDEFINED = "–"
"""What stands where a value is not defined."""
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
"""Every metric of METRIC_TABLE once, by what it looks at."""
QUESTIONS = {
    "Overlap": "Is it the right area?",
    "Centreline": "Is the tree whole, whatever its width?",
    "Distance": "Is the edge in the right place, as for measuring a diameter?",
    "Topology": "Are there breaks, false loops, stray pieces?",
    "By vessel width": "How does it do on thin, medium and wide vessels?",
    "Ranking of pixels": "How good are the probabilities, before any threshold?",
}
KEY_METRICS = ("dice", "cldice", "precision", "recall", "hd95", "nsd")
"""Those that stand in tables with little room."""
_SWITCHES = {
    "flips": "mirrored images averaged (--tta flips)",
    "min_component": "pieces under {} px removed (--min-component {})",
    "fill_holes": "holes up to {} px filled (--fill-holes {})",
}


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that belong together, and the conventions that they share: notes[k - 1] has the number k."""

    title: str
    question: str
    names: tuple[str, ...]
    notes: tuple[str, ...]

    def note_number(self, name: str) -> int | None:
        """The number of a metric's convention, None where there is none."""
        convention = METRIC_TABLE[name].convention
        return self.notes.index(convention) + 1 if convention else None


def metric_groups() -> tuple[MetricGroup, ...]:
    """The groups in the order of the reports, each with its different conventions once."""
    return tuple(
        MetricGroup(title, QUESTIONS[title], names, tuple(dict.fromkeys(_conventions(names))))
        for title, names in METRIC_GROUPS.items()
    )


def _conventions(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if METRIC_TABLE[name].convention:
            yield METRIC_TABLE[name].convention


def figure(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A value as text, UNDEFINED for None and NaN. sign: with a plus, as of a difference."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    # + 0.0: what rounds to nothing has no minus
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def metric_digits(name: str) -> int:
    """Decimals of a metric: lengths and counts have fewer than parts."""
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
    """``px``, ``mm``, ``count`` or nothing."""
    return evaluation.length_unit if metric.unit == "px/mm" else metric.unit


def label(name: str, evaluation: Evaluation) -> str:
    """A metric's name with its unit where it is a length: ``HD95 [px]``."""
    metric = METRIC_TABLE[name]
    return f"{metric.label} [{evaluation.length_unit}]" if metric.unit == "px/mm" else metric.label


def items_word(evaluation: Evaluation) -> str:
    """``images``, or ``items`` where phrases tell several apart."""
    return "items" if len({item.phrase for item in evaluation.items}) > 1 else "images"


def lead(evaluation: Evaluation) -> str:
    """The result in one sentence."""
    dice, cldice = evaluation.summary["dice"], evaluation.summary["cldice"]
    recall, precision = evaluation.summary["recall"], evaluation.summary["precision"]
    between = f" (95 % interval {summary_interval('dice', dice)})" if dice.low is not None else ""
    found = len(evaluation.items)
    return (
        f"On {found:,} {items_word(evaluation) if found > 1 else items_word(evaluation)[:-1]} of the split "
        f"{evaluation.split}, mean Dice is {figure(dice.mean)}{between} and clDice {figure(cldice.mean)}: "
        f"{100 * recall.mean:.0f} % of the vessel was found, and {100 * precision.mean:.0f} % of what was marked is "
        "vessel."
    )


def threshold_sentence(evaluation: Evaluation) -> str:
    """How probabilities became masks."""
    if evaluation.kind == "masks":
        return "The source holds masks, so no threshold was applied."
    return f"Threshold {evaluation.threshold.value:.2f}: {evaluation.threshold.origin}."


def setting_sentences(evaluation: Evaluation) -> str:
    """The threshold, and the switches that were on."""
    switches = ", ".join(switches_on(evaluation))
    return f"{threshold_sentence(evaluation)} With {switches}." if switches else threshold_sentence(evaluation)


def bootstrap_sentence(evaluation: Evaluation) -> str:
    """How intervals were made."""
    drawn = "group" if evaluation.grouped else "image"
    return f"95 % percentile bootstrap of the mean, {RESAMPLES:,} resamples of whole {drawn}s, seed {evaluation.seed}"


def switch_label(switch: str, evaluation: Evaluation) -> str:
    """A switch in words, or several that were on together."""
    parts = switch.split(" + ")
    if len(parts) > 1:
        return "all together"
    size = evaluation.post_processing.get(switch, "")
    return _SWITCHES[switch].format(size, size)


def own_threshold_sentence(evaluation: Evaluation) -> str:
    """Where mirrored images got a threshold of their own: that their effect is not theirs alone, else nothing."""
    before, applied = evaluation.baseline_threshold, evaluation.threshold.value
    if before is None or not evaluation.test_time or before == applied:
        return ""
    return (
        f"The threshold was searched for each: {applied:.2f} with mirrored images, {before:.2f} without. "
        "The difference is that of images and threshold together."
    )


def switches_on(evaluation: Evaluation) -> tuple[str, ...]:
    """In words, what the reported figures were made with beside the source itself."""
    names = [evaluation.test_time] if evaluation.test_time else []
    return tuple(switch_label(name, evaluation) for name in [*names, *evaluation.post_processing])


def calibration_rows(calibration: Calibration) -> Iterator[tuple[str, str, float, float | None]]:
    """(pixels, figure, before, after): after is None unless a temperature was fitted."""
    pairs = (
        ("all pixels", calibration.everywhere, calibration.calibrated_everywhere),
        ("probability from 0.01", calibration.visible, calibration.calibrated_visible),
    )
    for which, before, after in pairs:
        for name, attribute in (("ECE", "ece"), ("Brier", "brier"), ("NLL", "nll")):
            yield which, name, getattr(before, attribute), None if after is None else getattr(after, attribute)


def calibration_warning(calibration: Calibration) -> str | None:
    """Which figures the fitted temperature makes worse on the reported split; None where it makes none worse."""
    worse = [
        f"{name} ({which}) {figure(before, 4)} to {figure(after, 4)}"
        for which, name, before, after in calibration_rows(calibration)
        if after is not None and after > before
    ]
    if not worse:
        return None
    return (
        f"The temperature {figure(calibration.temperature)} that was fitted on {calibration.fitted_on} makes "
        f"{calibration.split} worse: {_joined(worse)}. The two splits differ, or one of them is too small to tell; "
        "do not store this temperature unless more data says otherwise."
    )


def _joined(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
