"""Mean, median and the bootstrap interval of the mean, with images of one group resampled together.

Undefined values are NaN and left out: a mean is over the items that have a value, in every resample as in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5000
CONFIDENCE = 0.95
_CHUNK = 200  # resamples drawn at once: bounds the memory at _CHUNK x groups


@dataclass(frozen=True)
class Summary:
    """One metric over all scored items.

    items: how many have a value; the others are left out of everything here, and all is NaN where none has one.
    low, high: the 95 % percentile bootstrap interval of the mean; None where fewer than two groups have a value.
    """

    mean: float
    median: float
    low: float | None
    high: float | None
    minimum: float
    maximum: float
    items: int

    def to_dict(self) -> dict[str, float | None]:
        """As plain values for JSON, None for what is undefined."""
        return {name: None if value is None or math.isnan(value) else value for name, value in asdict(self).items()}


def summarise(
    values: NDArray[np.float64], groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> list[Summary]:
    """One Summary per column of values (items, metrics), NaN where an item has no value.

    groups: (items,) the group of each item. Images of one patient or clip resemble each other, so whole groups are
    drawn with replacement (cluster bootstrap); where every image is its own group this is the ordinary bootstrap.
    Raises ValueError for no item and for another number of groups than items.
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

    values: (items, metrics), NaN where undefined; groups: (items,). None, None where there are fewer than two groups:
    nothing to resample; NaN for a metric that fewer than two groups have.
    """
    names, membership = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None, None
    defined = ~np.isnan(values)
    sums, sizes = np.zeros((2, len(names), values.shape[1]))
    np.add.at(sums, membership, np.where(defined, values, 0.0))
    np.add.at(sizes, membership, defined)
    means = _resampled_means(sums, sizes, np.random.default_rng(seed), resamples)
    low, high = np.full((2, values.shape[1]), np.nan)
    several = (sizes > 0).sum(axis=0) > 1
    tail = 100 * (1 - CONFIDENCE) / 2
    low[several], high[several] = np.nanpercentile(means[:, several], [tail, 100 - tail], axis=0)
    return low, high


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Means over the items of groups drawn with replacement: (resamples, metrics), NaN where none drawn has a value.

    sums, sizes: (groups, metrics), the sum of a group's values and how many it has.
    """
    count = len(sizes)
    means = []
    for start in range(0, resamples, _CHUNK):
        draws = generator.multinomial(count, np.full(count, 1 / count), size=min(_CHUNK, resamples - start))
        drawn = draws @ sizes
        means.append(np.divide(draws @ sums, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0))
    return np.concatenate(means)
