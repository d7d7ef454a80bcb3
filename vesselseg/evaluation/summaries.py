"""Scored items -> their summary, and their means per group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vesselseg.evaluation.metrics import METRICS
from vesselseg.evaluation.scores import GroupMean, Scored
from vesselseg.evaluation.statistics import Summary, summarise
from vesselseg.evaluation.threshold import mean_of_defined


def summarise_items(items: Sequence[Scored], seed: int) -> dict[str, Summary]:
    """Per metric the summary over the items, with an interval that resamples their groups."""
    return _summaries(_table(items), [item.group for item in items], seed)


def group_means(items: Sequence[Scored]) -> tuple[GroupMean, ...]:
    """Per group, in the order in which they come, the mean of each metric over its items."""
    groups: dict[str, list[Scored]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return tuple(
        GroupMean(name, len(members), dict(zip(METRICS, mean_of_defined(_table(members)).tolist())))
        for name, members in groups.items()
    )


def summarise_groups(means: Sequence[GroupMean], seed: int) -> dict[str, Summary]:
    """Per metric the summary of the groups' means: each group counts once, however many images it has."""
    table = np.array([[mean.metrics[name] for name in METRICS] for mean in means])
    return _summaries(table, [mean.group for mean in means], seed)


def _summaries(table: NDArray[np.float64], groups: Sequence[str], seed: int) -> dict[str, Summary]:
    return dict(zip(METRICS, summarise(table, groups, seed)))


def _table(items: Sequence[Scored]) -> NDArray[np.float64]:
    return np.array([[item.metrics[name] for name in METRICS] for item in items], dtype=np.float64)
