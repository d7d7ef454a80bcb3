"""Switches of an evaluation, each measured against doing without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vesselseg.evaluation.comparison import measure
from vesselseg.evaluation.metrics import METRICS
from vesselseg.evaluation.score_split import Variant
from vesselseg.evaluation.scores import Scored, SwitchEffect
from vesselseg.inference.options import FLIPS
from vesselseg.inference.post_processing import PostProcessing

WITHOUT = ""
"""The name under which no switch is on."""


def switch_variants(flips: bool, steps: PostProcessing, thresholds: Mapping[bool, float]) -> dict[str, Variant]:
    """Without any switch, then each one that is on alone, then all together (where more than one is); the last is what
    is reported. thresholds: with flips and without, where a search found one of its own for each.
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


def switch_effects(names: Sequence[str], items: Sequence[Sequence[Scored]], seed: int) -> Iterator[SwitchEffect]:
    """Every metric of every switch against without, paired per item; names, items: one per variant, without first."""
    without, groups = items[0], [item.group for item in items[0]]
    for name, scored in zip(names[1:], items[1:]):
        for metric in METRICS:
            table = np.array([(a.metrics[metric], b.metrics[metric]) for a, b in zip(scored, without)])
            if not np.isfinite(table).all(axis=1).any():
                continue
            found = measure(metric, table, groups, seed)
            yield SwitchEffect(
                switch=name,
                metric=metric,
                items=found.items,
                means=(found.means[1], found.means[0]),
                difference=found.difference,
                low=found.low,
                high=found.high,
                p=found.p if found.p_groups is None else found.p_groups,
                wins=found.wins,
                ties=found.ties,
                losses=found.losses,
            )
