"""Summaries of item results: over all items, and over the means of groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vesselseg.evaluation.metrics import METRICS
from vesselseg.evaluation.result_types import GroupMean, ItemResult
from vesselseg.evaluation.statistics import Summary, summarise
from vesselseg.evaluation.threshold import mean_of_defined


def summarise_items(items: Sequence[ItemResult], seed: int) -> dict[str, Summary]:
    """Metric -> summary over the items, with an interval that resamples their groups."""
    return _summaries(_table(items), [item.group for item in items], seed)


def group_means(items: Sequence[ItemResult]) -> tuple[GroupMean, ...]:
    """The mean of each metric over the items of each group, in order of appearance."""
    groups: dict[str, list[ItemResult]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return tuple(
        GroupMean(name, len(members), dict(zip(METRICS, mean_of_defined(_table(members)).tolist())))
        for name, members in groups.items()
    )


def summarise_groups(means: Sequence[GroupMean], seed: int) -> dict[str, Summary]:
    """Metric -> summary of the group means: each group counts once, whatever its number of images."""
    table = np.array([[mean.metrics[name] for name in METRICS] for mean in means])
    return _summaries(table, [mean.group for mean in means], seed)


def _summaries(table: NDArray[np.float64], groups: Sequence[str], seed: int) -> dict[str, Summary]:
    return dict(zip(METRICS, summarise(table, groups, seed)))


def _table(items: Sequence[ItemResult]) -> NDArray[np.float64]:
    """(items, metrics)."""
    return np.array([[item.metrics[name] for name in METRICS] for item in items], dtype=np.float64)
