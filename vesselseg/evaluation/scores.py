"""What an evaluation holds: items, curves, thresholds, effects, groups. The evaluator fills it, reports read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vesselseg.evaluation.seen_images import training_alarm
from vesselseg.evaluation.statistics import Summary


@dataclass(frozen=True)
class Scored:
    """One item's result: pixels are counts, metrics has one value per name in METRICS, NaN where it is undefined."""

    image: str
    phrase: str
    group: str
    height: int
    width: int
    truth_pixels: int
    predicted_pixels: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """Mean Dice and IoU of a split at every threshold of ``threshold.THRESHOLDS``, each (99,)."""

    split: str
    items: int
    dice: NDArray[np.float64]
    iou: NDArray[np.float64]


@dataclass(frozen=True)
class ThresholdChoice:
    """The threshold that was applied, where it comes from, and the curve it was searched on (None: not searched).

    metric: what the search made best; None: not searched.
    """

    value: float
    origin: str
    searched: Curve | None = None
    metric: str | None = None


@dataclass(frozen=True)
class MetricThreshold:
    """One metric's own best threshold on the search split, and what it is worth on the reported one.

    grid: (n,) the thresholds tried; searched, reported: (n,) the metric's mean over each split's items.
    search_value: on the search split at ``threshold``. reported_value: on the reported split at ``threshold``.
    reported_best: on the reported split at its own best threshold, which no honest figure may use.
    """

    metric: str
    threshold: float
    search_value: float
    reported_value: float
    reported_best_threshold: float
    reported_best: float
    grid: NDArray[np.float64]
    searched: NDArray[np.float64]
    reported: NDArray[np.float64]

    @property
    def loss(self) -> float:
        """What the reported split loses by the other split's threshold, 0 or more, in the metric's own unit."""
        return abs(self.reported_best - self.reported_value)


@dataclass(frozen=True)
class Reliability:
    """How far probabilities are frequencies, over one set of pixels of all items together.

    edges: (16,) of 15 equal bins over 0..1; counts: (15,) pixels per bin; confidence: (15,) mean probability and
    frequency: (15,) part that is vessel, NaN in an empty bin. ece: expected calibration error, the mean of
    |confidence - frequency| weighted by pixels. brier: mean squared difference to the truth. nll: mean negative
    log-likelihood in nats. All three NaN where there is no pixel.
    """

    pixels: int
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    frequency: NDArray[np.float64]
    ece: float
    brier: float
    nll: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of the reported split: before, and after a temperature was fitted on another split.

    everywhere: all pixels, which background dominates. visible: those whose probability, before any temperature, is
    0.01 or more. temperature, fitted_on, threshold, calibrated_*: None unless a temperature was fitted; threshold is
    the applied one in calibrated probabilities, where it gives the same masks.
    """

    split: str
    everywhere: Reliability
    visible: Reliability
    temperature: float | None = None
    fitted_on: str | None = None
    threshold: float | None = None
    calibrated_everywhere: Reliability | None = None
    calibrated_visible: Reliability | None = None


@dataclass(frozen=True)
class SwitchEffect:
    """One metric with a switch against without, paired per item: difference = mean of (with - without).

    switch: "flips", "min_component", "fill_holes", or several joined by " + ". means: (without, with).
    low, high: 95 % bootstrap interval that resamples groups, None for one group. p: Wilcoxon's signed-rank test, None
    where nothing differs. wins: items that are better with it, in the metric's own direction.
    """

    switch: str
    metric: str
    items: int
    means: tuple[float, float]
    difference: float
    low: float | None
    high: float | None
    p: float | None
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Subgroup:
    """The items whose image or group has ``value`` in ``column`` of the user's table."""

    column: str
    value: str
    items: int
    groups: int
    summary: dict[str, Summary]


@dataclass(frozen=True)
class GroupMean:
    """Mean of each metric over one group's items, NaN where it is defined for none of them."""

    group: str
    items: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Everything measured on one split.

    curve: the reported split's own, for information; it never chose the threshold. None for masks, which are the same
    at every threshold. grouped: whether records name groups, which the bootstrap then resamples.
    thresholds: per metric, empty unless the threshold was searched. calibration: None for masks.
    switches: every metric of every switch that was given, one after another and all together; the items and their
    summary are with all of them. post_processing: those of the masks, with their sizes in pixels.
    length_unit: "mm" where every record has a spacing, else "px".
    per_group, group_summary: means per group, and their summary with one vote per group; empty without groups.
    seen_in_training: the scored images that the model has trained on; None where it does not tell.
    """

    source: Path
    kind: str
    data: Path
    split: str
    data_fingerprint: str
    threshold: ThresholdChoice
    curve: Curve | None
    items: tuple[Scored, ...]
    summary: dict[str, Summary]
    grouped: bool
    groups: int
    seed: int
    warnings: tuple[str, ...] = field(default=())
    calibration: Calibration | None = None
    thresholds: tuple[MetricThreshold, ...] = ()
    length_unit: str = "px"
    baseline_threshold: float | None = None
    test_time: str | None = None
    post_processing: dict[str, int] = field(default_factory=dict)
    switches: tuple[SwitchEffect, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    per_group: tuple[GroupMean, ...] = ()
    group_summary: dict[str, Summary] = field(default_factory=dict)
    seen_in_training: tuple[str, ...] | None = None

    @property
    def alarm(self) -> str:
        """What makes the figures void, in words; empty if nothing does."""
        return training_alarm(self.seen_in_training or (), len({item.image for item in self.items}))


@dataclass(frozen=True)
class Case:
    """One item with its pixels, for a panel: image (height, width, 3) uint8, masks bool, probabilities float32."""

    scored: Scored
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
