"""Ablations: inference options (flips, post-processing), each compared with predictions without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vesselseg.evaluation.comparison import paired_metric
from vesselseg.evaluation.metrics import METRICS
from vesselseg.evaluation.result_types import AblationEffect, ItemResult
from vesselseg.evaluation.score_split import Variant
from vesselseg.inference.options import FLIPS
from vesselseg.inference.post_processing import PostProcessing

WITHOUT = ""
"""Name of the variant without any option."""


def ablation_variants(flips: bool, steps: PostProcessing, thresholds: Mapping[bool, float]) -> dict[str, Variant]:
    """No option, then each option that is on alone, then all together if there are several; the last one is reported.

    thresholds: without (False) and with flips (True).
    """
    variants = {WITHOUT: Variant(False, thresholds[False])}
    if flips:
        variants[FLIPS] = Variant(True, thresholds[True])
    for name, size in steps.enabled_steps().items():
        variants[name] = Variant(False, thresholds[False], PostProcessing(**{name: size}))
    if len(variants) > 2:
        together = " + ".join(name for name in variants if name)
        variants[together] = Variant(flips, thresholds[flips], steps)
    return variants


def ablation_effects(
    names: Sequence[str], items: Sequence[Sequence[ItemResult]], seed: int
) -> Iterator[AblationEffect]:
    """Every metric of every variant compared with the first one, which has no option; paired by item.

    names, items: one entry per variant. seed: of the bootstrap.
    """
    without, groups = items[0], [item.group for item in items[0]]
    for name, scored in zip(names[1:], items[1:]):
        for metric in METRICS:
            # (items, 2): with the option, without
            table = np.array([(a.metrics[metric], b.metrics[metric]) for a, b in zip(scored, without)])
            if not np.isfinite(table).all(axis=1).any():
                continue
            paired = paired_metric(metric, table, groups, seed)
            yield AblationEffect(
                option=name,
                metric=metric,
                items=paired.items,
                means=(paired.means[1], paired.means[0]),
                difference=paired.difference,
                low=paired.low,
                high=paired.high,
                p=paired.p_reported,
                wins=paired.wins,
                ties=paired.ties,
                losses=paired.losses,
            )
