"""Data classes of an evaluation's result. The evaluator creates them, reports and results.json show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vesselseg.evaluation.leakage import leakage_warning
from vesselseg.evaluation.statistics import Summary
from vesselseg.imaging.regions import DEFAULT_FILL


@dataclass(frozen=True)
class ItemResult:
    """The metrics of one item: one phrase of one image."""

    image: str  # name below images/
    phrase: str  # empty: all objects of the image
    group: str  # of the record, e.g. a patient; the image where it has none
    height: int  # pixels
    width: int
    truth_pixels: int  # vessel pixels
    predicted_pixels: int
    metrics: dict[str, float]  # one value per name in METRICS, NaN where undefined


@dataclass(frozen=True)
class Curve:
    """Mean Dice and IoU of a split at every threshold of ``threshold.THRESHOLDS``, each (99,)."""

    split: str
    items: int
    dice: NDArray[np.float64]
    iou: NDArray[np.float64]


@dataclass(frozen=True)
class ThresholdChoice:
    """The applied threshold and its origin."""

    value: float
    origin: str  # a phrase for reports
    searched: Curve | None = None  # of the split on which it was searched; None: not searched
    metric: str | None = None  # that the search optimised; None: not searched


@dataclass(frozen=True)
class MetricThreshold:
    """The best threshold for one metric on the search split, and its value on the reported split."""

    metric: str
    threshold: float  # best on the search split
    search_value: float  # mean on the search split at ``threshold``
    reported_value: float  # mean on the reported split at ``threshold``
    reported_best_threshold: float  # best on the reported split: for comparison only, it was tuned on that split
    reported_best: float
    grid: NDArray[np.float64]  # (n,) thresholds tried
    searched: NDArray[np.float64]  # (n,) means over the items of the search split
    reported: NDArray[np.float64]  # (n,) means over the items of the reported split

    @property
    def loss(self) -> float:
        """Loss on the reported split from using the search split's threshold, 0 or more, in the metric's unit."""
        return abs(self.reported_best - self.reported_value)


@dataclass(frozen=True)
class Reliability:
    """Calibration of one set of pixels of all items together; the last three are NaN without pixels."""

    pixels: int
    edges: NDArray[np.float64]  # (16,) of 15 equal bins over 0..1
    counts: NDArray[np.int64]  # (15,) pixels
    confidence: NDArray[np.float64]  # (15,) mean probability, NaN in an empty bin
    frequency: NDArray[np.float64]  # (15,) fraction that is vessel, NaN in an empty bin
    ece: float  # expected calibration error: mean of |confidence - frequency| weighted by pixels, 0..1
    brier: float  # mean squared difference of probability and truth, 0..1
    nll: float  # mean negative log-likelihood in nats


@dataclass(frozen=True)
class Calibration:
    """Calibration of the reported split, before and after temperature scaling; the latter is None unless requested."""

    split: str
    everywhere: Reliability  # all pixels, mostly background
    visible: Reliability  # pixels with a probability of 0.01 or more before the temperature
    temperature: float | None = None
    fitted_on: str | None = None  # split
    threshold: float | None = None  # the applied one, transformed so that it gives the same masks
    calibrated_everywhere: Reliability | None = None
    calibrated_visible: Reliability | None = None


@dataclass(frozen=True)
class AblationEffect:
    """Effect of an inference option on one metric, paired by item."""

    option: str  # "flips", "min_component", "fill_holes", or several joined by " + "
    metric: str
    items: int
    means: tuple[float, float]  # without, with
    difference: float  # mean of with - without
    low: float | None  # 95 % bootstrap interval that resamples groups; None for one group
    high: float | None
    p: float | None  # Wilcoxon's signed-rank test; None where nothing differs
    wins: int  # items that are better with the option, in the metric's direction
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
    """The complete result of one split."""

    source: Path  # model, checkpoint or folder of predictions
    kind: str  # "model", "probabilities", "masks", or "folds" for pooled results
    data: Path  # dataset folder
    split: str
    data_fingerprint: str
    threshold: ThresholdChoice
    curve: Curve | None  # of the reported split, for information: it never chooses the threshold; None for masks
    items: tuple[ItemResult, ...]  # with all options
    summary: dict[str, Summary]  # by metric
    grouped: bool  # whether records have groups, which the bootstrap then resamples
    groups: int
    seed: int  # of the bootstrap
    warnings: tuple[str, ...] = field(default=())
    calibration: Calibration | None = None  # None for masks
    thresholds: tuple[MetricThreshold, ...] = ()  # by metric; empty unless the threshold was searched
    length_unit: str = "px"  # "mm" where every record has a spacing
    baseline_threshold: float | None = None  # searched without flips, where flips are on
    test_time: str | None = None  # test-time augmentation: "flips" or None
    post_processing: dict[str, int] = field(default_factory=dict)  # step -> size in pixels
    ablations: tuple[AblationEffect, ...] = ()  # every metric of every option, alone and all together
    subgroups: tuple[Subgroup, ...] = ()
    per_group: tuple[GroupMean, ...] = ()  # empty without groups
    group_summary: dict[str, Summary] = field(default_factory=dict)  # over group means: one vote per group
    fill: str = DEFAULT_FILL  # how the truth's polygons became pixels
    seen_in_training: tuple[str, ...] | None = None  # scored images among the training images; None: unknown

    @property
    def leakage(self) -> str:
        """The warning that invalidates the results; empty without leaked images."""
        return leakage_warning(self.seen_in_training or (), len({item.image for item in self.items}))


@dataclass(frozen=True)
class Case:
    """One item with its pixels, for a panel."""

    scored: ItemResult
    image: NDArray[np.uint8]  # (height, width, 3)
    truth: NDArray[np.bool_]  # (height, width)
    prediction: NDArray[np.bool_]  # (height, width)
    probabilities: NDArray[np.float32]  # (height, width)
