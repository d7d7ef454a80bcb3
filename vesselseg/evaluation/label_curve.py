"""How a score grows with the number of labelled images, and what as many labels again would bring.

Errors of learnt models fall as a power of the number of examples (Hestness et al., "Deep Learning Scaling is
Predictable, Empirically", arXiv 1712.00409): 1 - score = a x labels ** -b, a line on logarithmic axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.evaluation.comparison import PairedMetric, paired_metric
from vesselseg.evaluation.statistics import CONFIDENCE, RESAMPLES, bootstrap_interval

LEAST_ERROR = 1e-4  # a perfect score has no logarithm


@dataclass(frozen=True)
class CurveRun:
    """One training on a part of the labels, scored."""

    labels: int
    """training images"""
    seed: int
    """of the part and of the training"""
    values: dict[str, float]
    """the score of every scored image, 0 to 1, higher is better"""


@dataclass(frozen=True)
class CurvePoint:
    """All trainings with the same number of labels."""

    labels: int
    mean: float
    """over seeds and images"""
    low: float | None
    """95 % interval over groups of images; None with fewer than two groups"""
    high: float | None
    seeds: int
    gain: PairedMetric | None
    """over the point before, image by image; None for the first"""


@dataclass(frozen=True)
class LabelCurve:
    """Measured points, and the fitted power law carried on."""

    points: list[CurvePoint]
    exponent: float
    """b of the power law; near 0: further labels bring nothing"""
    fitted: float
    """the fit's score at the largest number of labels"""
    doubled: int
    """twice the largest number of labels"""
    expected_gain: float
    """of the score with that many, by the fit"""
    gain_low: float | None
    """95 % interval: groups of images, and seeds where there are several, are drawn again and the fit is repeated"""
    gain_high: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def label_curve(runs: Sequence[CurveRun], groups: dict[str, str], seed: int = 0) -> LabelCurve:
    """Points and fit of trainings on at least two numbers of labels.

    groups: of every image. Raises ValueError for fewer numbers of labels, or where runs scored different images.
    """
    sizes = sorted({run.labels for run in runs})
    images = list(runs[0].values) if runs else []
    if len(sizes) < 2 or any(run.values.keys() != set(images) for run in runs):
        raise ValueError("expected runs with two numbers of labels or more that scored the same images")
    tables = [_table([run for run in runs if run.labels == size], images) for size in sizes]  # each (seeds, images)
    of_image = [groups[image] for image in images]
    points: list[CurvePoint] = []
    for size, table in zip(sizes, tables):
        means = table.mean(0)
        low, high = bootstrap_interval(means[:, None], of_image, seed)
        gain = None
        if points:
            before = tables[len(points) - 1].mean(0)
            gain = paired_metric("dice", np.stack([means, before], 1), of_image, seed)
        least, most = (None if end is None else float(end[0]) for end in (low, high))
        points.append(CurvePoint(size, float(means.mean()), least, most, len(table), gain))
    counts = np.array(sizes, dtype=float)
    exponent, fitted, expected = (float(one[0]) for one in _fit(counts, np.array([[p.mean for p in points]])))
    resampled = _resampled(tables, of_image, np.random.default_rng(seed))
    ends: tuple[float | None, float | None] = (None, None)
    if resampled is not None:
        tail = 100 * (1 - CONFIDENCE) / 2
        first, last = np.percentile(_fit(counts, resampled)[2], [tail, 100 - tail])
        ends = float(first), float(last)
    return LabelCurve(points, exponent, fitted, 2 * sizes[-1], expected, *ends)


def _table(runs: Sequence[CurveRun], images: Sequence[str]) -> NDArray[np.float64]:
    """(seeds, images)."""
    return np.array([[run.values[image] for image in images] for run in sorted(runs, key=lambda run: run.seed)])


def _fit(counts: NDArray[np.float64], means: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Exponents, scores at the largest count and gains by doubling it, each (rows,); least squares of logarithms.

    counts: (points,). means: (rows, points).
    """
    logs = np.log(np.maximum(1 - means, LEAST_ERROR))
    x = np.log(counts) - np.log(counts).mean()
    slope = (logs * x).sum(1) / (x * x).sum()
    at_last = logs.mean(1) + slope * x[-1]
    return -slope, 1 - np.exp(at_last), np.exp(at_last) - np.exp(at_last + slope * np.log(2))


def _resampled(
    tables: Sequence[NDArray[np.float64]], groups: Sequence[str], generator: np.random.Generator
) -> NDArray[np.float64] | None:
    """(resamples, points): means of groups and, at every point for itself, seeds drawn with replacement."""
    names, membership = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    sizes = np.bincount(membership).astype(float)
    sums = [np.stack([np.bincount(membership, row) for row in table]) for table in tables]  # each (seeds, groups)
    found = np.empty((RESAMPLES, len(tables)))
    for row in found:
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)))
        for place, of_seeds in enumerate(sums):
            chosen = of_seeds[generator.integers(0, len(of_seeds), len(of_seeds))].mean(0)
            row[place] = drawn @ chosen / (drawn @ sizes)
    return found
