"""Mean, median and the bootstrap interval of the mean, with images of one group resampled together."""

from __future__ import annotations

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

    low, high: the 95 % percentile bootstrap interval of the mean; None where there are fewer than two groups.
    """

    mean: float
    median: float
    low: float | None
    high: float | None
    minimum: float
    maximum: float

    def to_dict(self) -> dict[str, float | None]:
        """As plain values, for JSON."""
        return asdict(self)


def summarise(
    values: NDArray[np.float64], groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> list[Summary]:
    """One Summary per column of values (items, metrics).

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
        Summary(
            mean=float(column.mean()),
            median=float(np.median(column)),
            low=None if low is None else float(low[index]),
            high=None if high is None else float(high[index]),
            minimum=float(column.min()),
            maximum=float(column.max()),
        )
        for index, column in enumerate(values.T)
    ]


def bootstrap_interval(
    values: NDArray[np.float64], groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Lower and upper end of the percentile interval of each column's mean, each (metrics,).

    values: (items, metrics); groups: (items,). None, None where there are fewer than two groups: nothing to resample.
    """
    names, membership = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None, None
    sizes = np.bincount(membership).astype(np.float64)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, membership, values)
    means = _resampled_means(sums, sizes, np.random.default_rng(seed), resamples)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low, high


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Means over the items of groups drawn with replacement: (resamples, metrics)."""
    count = len(sizes)
    means = []
    for start in range(0, resamples, _CHUNK):
        draws = generator.multinomial(count, np.full(count, 1 / count), size=min(_CHUNK, resamples - start))
        means.append((draws @ sums) / (draws @ sizes)[:, None])
    return np.concatenate(means)
