"""Mean, median and the bootstrap interval of the mean, with images of one group resampled together.

Percentile bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; of whole groups
(cluster bootstrap): Field and Welsh, "Bootstrapping clustered data", JRSS B 2007. Undefined values are NaN and
excluded: a mean is over the items that have a value, in every resample too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5000
CONFIDENCE = 0.95
_CHUNK = 200  # resamples drawn at once: limits the memory to _CHUNK x groups


@dataclass(frozen=True)
class Summary:
    """One metric over the scored items that have a value; NaN where none has one."""

    mean: float
    median: float
    low: float | None  # 95 % percentile bootstrap interval of the mean; None with fewer than two groups
    high: float | None
    minimum: float
    maximum: float
    items: int  # that have a value

    def to_dict(self) -> dict[str, float | None]:
        """Values for JSON, None where undefined."""
        return {name: None if value is None or math.isnan(value) else value for name, value in asdict(self).items()}


def summarise(
    values: NDArray[np.float64], groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> list[Summary]:
    """One Summary per column of values (items, metrics), NaN where an item has no value.

    groups: (items,) the group of each item. Images of one patient or clip are correlated, so whole groups are drawn
    with replacement; where every image is its own group this is the ordinary bootstrap. Raises ValueError without
    items and for a different number of groups.
    """
    if values.ndim != 2 or not len(values) or len(groups) != len(values):
        raise ValueError(
            f"expected (items, metrics) values and one group per item, found {values.shape}, {len(groups)}"
        )
    low, high = bootstrap_interval(values, groups, seed, resamples)
    return [
        _summary(
            column[~np.isnan(column)],
            None if low is None else float(low[index]),
            None if high is None else float(high[index]),
        )
        for index, column in enumerate(values.T)
    ]


def _summary(defined: NDArray[np.float64], low: float | None, high: float | None) -> Summary:
    if not len(defined):
        return Summary(math.nan, math.nan, None, None, math.nan, math.nan, 0)
    return Summary(
        mean=float(defined.mean()),
        median=float(np.median(defined)),
        low=None if low is None or math.isnan(low) else low,
        high=None if high is None or math.isnan(high) else high,
        minimum=float(defined.min()),
        maximum=float(defined.max()),
        items=len(defined),
    )


def bootstrap_interval(
    values: NDArray[np.float64], groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Lower and upper end of the percentile interval of each column's mean, each (metrics,).

    values: (items, metrics), NaN where undefined; groups: (items,). (None, None) for fewer than two groups; NaN for a
    metric that is defined in fewer than two groups.
    """
    names, membership = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None, None
    defined = ~np.isnan(values)
    # Sums and sizes per group are enough to resample groups: the items are not needed again.
    sums, sizes = np.zeros((2, len(names), values.shape[1]))  # each (groups, metrics)
    np.add.at(sums, membership, np.where(defined, values, 0.0))
    np.add.at(sizes, membership, defined)
    means = _resampled_means(sums, sizes, np.random.default_rng(seed), resamples)
    low, high = np.full((2, values.shape[1]), np.nan)
    several = (sizes > 0).sum(axis=0) > 1  # (metrics,)
    tail = 100 * (1 - CONFIDENCE) / 2
    low[several], high[several] = np.nanpercentile(means[:, several], [tail, 100 - tail], axis=0)
    return low, high


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Means over the items of groups drawn with replacement, (resamples, metrics); NaN where no drawn group has a
    value.

    sums, sizes: (groups, metrics), the sum and number of a group's values.
    """
    count = len(sizes)
    means = []
    for start in range(0, resamples, _CHUNK):
        # (resamples, groups): how often each group is drawn
        draws = generator.multinomial(count, np.full(count, 1 / count), size=min(_CHUNK, resamples - start))
        drawn = draws @ sizes
        means.append(np.divide(draws @ sums, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0))
    return np.concatenate(means)
