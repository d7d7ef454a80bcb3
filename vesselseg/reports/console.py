"""Lines of an evaluation for the console."""

from __future__ import annotations

from collections.abc import Iterator

from vesselseg.evaluation.metrics import METRIC_TABLE
from vesselseg.evaluation.result_types import Calibration, Evaluation, Reliability

_ABLATION_METRICS = ("dice", "cldice", "precision", "recall", "betti_0_error")
_LABEL = 22  # columns


def console_summary(evaluation: Evaluation) -> Iterator[str]:
    """Source, threshold, warnings, all metrics, and lines for each optional part.

    A leakage warning comes before and after them.
    """
    yield f"{evaluation.source} on {evaluation.data}, split {evaluation.split}: {len(evaluation.items)} items"
    if evaluation.kind == "masks":
        yield "threshold: none, the source contains masks"
    else:
        yield f"threshold: {evaluation.threshold.value:.2f} ({evaluation.threshold.origin})"
    leakage = [f"WARNING: {evaluation.leakage}"] if evaluation.leakage else []
    yield from leakage
    yield from (f"note: {warning}" for warning in evaluation.warnings)
    yield from _metrics(evaluation)
    yield from _thresholds(evaluation)
    yield from _ablations(evaluation)
    if evaluation.calibration is not None:
        yield from _calibration(evaluation.calibration)
    yield from _subgroups(evaluation)
    yield from leakage


def _metrics(evaluation: Evaluation) -> Iterator[str]:
    yield f"{'':{_LABEL}}{'mean':>8}  {'95 % interval':>16}{'median':>9}{'lowest':>9}{'highest':>9}"
    for name, row in evaluation.summary.items():
        if not row.items:
            yield f"{METRIC_TABLE[name].label:{_LABEL}} undefined for every item"
            continue
        interval = "one group" if row.low is None else f"{row.low:.4f} - {row.high:.4f}"
        few = f"  of {row.items}" if row.items < len(evaluation.items) else ""
        values = f"{row.median:9.4f}{row.minimum:9.4f}{row.maximum:9.4f}"
        yield f"{METRIC_TABLE[name].label:{_LABEL}}{row.mean:8.4f}  {interval:>16}{values}{few}"


def _thresholds(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.thresholds:
        return
    searched = evaluation.threshold.searched
    split = searched.split if searched else "validation"
    yield f"best threshold for each metric on {split}, and on {evaluation.split}:"
    for found in evaluation.thresholds:
        yield (
            f"  {METRIC_TABLE[found.metric].label:{_LABEL}}{found.threshold:5.2f}: {found.reported_value:.4f}"
            f"   own best {found.reported_best_threshold:.2f}: {found.reported_best:.4f}   lost {found.loss:.4f}"
        )


def _ablations(evaluation: Evaluation) -> Iterator[str]:
    for effect in evaluation.ablations:
        if effect.metric not in _ABLATION_METRICS:
            continue
        interval = "" if effect.low is None else f", 95 % {effect.low:+.4f} to {effect.high:+.4f}"
        yield (
            f"{effect.option}: {METRIC_TABLE[effect.metric].label} {effect.means[0]:.4f} -> {effect.means[1]:.4f} "
            f"({effect.difference:+.4f}{interval}; better {effect.wins}, same {effect.ties}, worse {effect.losses})"
        )


def _calibration(calibration: Calibration) -> Iterator[str]:
    yield from _reliabilities("calibration", calibration.everywhere, calibration.visible)
    after = calibration.calibrated_everywhere, calibration.calibrated_visible
    if calibration.temperature is not None and after[0] is not None and after[1] is not None:
        yield f"temperature {calibration.temperature:.3f}, fitted on {calibration.fitted_on}"
        yield from _reliabilities("calibrated", after[0], after[1])


def _reliabilities(name: str, everywhere: Reliability, visible: Reliability) -> Iterator[str]:
    for which, found in (("all pixels", everywhere), ("probability from 0.01", visible)):
        yield f"{name}, {which}: ECE {found.ece:.4f}, Brier {found.brier:.4f}, NLL {found.nll:.4f}"


def _subgroups(evaluation: Evaluation) -> Iterator[str]:
    for subgroup in evaluation.subgroups:
        dice = subgroup.summary["dice"]
        interval = "" if dice.low is None else f" ({dice.low:.4f} - {dice.high:.4f})"
        count = f"{subgroup.items} items, {subgroup.groups} groups"
        yield f"{subgroup.column} = {subgroup.value}: Dice {dice.mean:.4f}{interval}, {count}"
