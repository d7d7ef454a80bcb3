"""Checks of labels, masks and images: outliers, specks, misspellings, disagreement, drift."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import cast

import numpy as np
from scipy.stats import ks_2samp

from vesselseg.dataset.manifest import SPLITS
from vesselseg.inspect.checks.finding_kinds import LOW_DICE, CheckFinding
from vesselseg.inspect.checks.measured_dataset import MeasuredDataset, is_outlier, robust_z_scores
from vesselseg.inspect.checks.phrase_variants import find_variants

COMMON_FORMAT = 0.9  # fraction of images from which a format counts as the usual one
_BLANK = 2.0  # standard deviation of grey values
_DRIFT_P, _DRIFT_GROUPS = 1e-3, 5  # significance level, and minimum number of groups per split
# Field of ImageStatistics -> (name, spread below which groups do not differ).
_VALUES = {"brightness": ("brightness", 4.0), "contrast": ("contrast", 3.0)}


def check_labels(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Phrases that are probably variants of one another."""
    images = defaultdict(list)
    for record in measured.records:
        for phrase in dict.fromkeys(record.phrases):
            images[phrase].append(record.image)
    for same in find_variants({phrase: len(names) for phrase, names in images.items()}):
        listed = ", ".join(f"{phrase!r} ({len(images[phrase])} images)" for phrase in same.phrases)
        kept = "" if same.is_certain else "; too frequent for an automatic correction"
        rare = tuple(dict.fromkeys(image for phrase in same.phrases[1:] for image in images[phrase]))
        yield CheckFinding(same.code, rare, listed + kept, -len(rare))


def check_masks(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Masks that are empty, unusually small or large, or contain specks."""
    facts = [measured.facts[index] for index in measured.usable]
    drawn = [one for one in facts if one.vessel]
    scores = robust_z_scores([float(np.log(one.share)) for one in drawn], least_spread=0.15)
    usual = float(np.median([one.share for one in drawn])) if drawn else 0.0
    for one, score in zip(drawn, scores):
        if is_outlier(score):
            reason = f"{one.image}: {one.share:.2%} of the pixels are labelled, median {usual:.2%} (score {score:.1f})"
            yield CheckFinding("little_vessel" if score < 0 else "much_vessel", (one.image,), reason, abs(score))
        if one.specks:
            sizes = ", ".join(map(str, one.specks[:8])) + (", ..." if len(one.specks) > 8 else "")
            reason = f"{one.image}: {len(one.specks)} component(s) of {sizes} pixels"
            yield CheckFinding("specks", (one.image,), reason, len(one.specks))
    for index in measured.usable:
        yield from _empty(measured, index)


def _empty(measured: MeasuredDataset, index: int) -> Iterator[CheckFinding]:
    record, facts = measured.records[index], measured.facts[index]
    if not facts.vessel and not any(record.regions):
        yield CheckFinding("empty_image", (record.image,), f"{record.image}: no vessel is labelled")
        return
    empty = [number for number, pixels in enumerate(facts.object_pixels) if not pixels]
    if empty:
        named = ", ".join(f"{number} ({record.phrases[number]})" for number in empty)
        outside = any(record.regions[number] for number in empty)
        reason = f"{record.image}: object {named} has no pixel" + (" inside the image" if outside else "")
        yield CheckFinding("empty_object", (record.image,), reason, len(empty))


def check_observers(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Objects that two observers drew very differently."""
    rows = [(measured.facts[index].image, one) for index in measured.usable for one in measured.facts[index].agreement]
    scores = robust_z_scores([one.dice for _, one in rows], least_spread=0.02)
    for (image, one), score in zip(rows, scores):
        if one.dice < LOW_DICE or (is_outlier(score) and score < 0):
            reason = f"{image}, {one.phrase}: Dice {one.dice:.3f}, kappa {one.kappa:.3f} with observer {one.observer}"
            yield CheckFinding("low_agreement", (image,), reason, 1 - one.dice)


def check_images(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Blank images, and groups or splits that differ from the others."""
    for index in measured.usable:
        facts = measured.facts[index]
        if facts.contrast < _BLANK:
            reason = f"{facts.image}: standard deviation of the grey values {facts.contrast:.2f}"
            yield CheckFinding("blank_image", (facts.image,), reason)
    yield from _formats(measured)
    yield from _unusual_groups(measured)
    yield from _drift_of_splits(measured)


def _formats(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    trained = {
        measured.facts[index].image_format for index in measured.usable if "train" in _splits_of(measured, index)
    }
    new = defaultdict(list)
    for index in measured.usable:
        if trained and _splits_of(measured, index) and measured.facts[index].image_format not in trained:
            new[measured.facts[index].image_format].append(index)
    for image_format, indices in new.items():
        splits = ", ".join(sorted(measured.splits_at(indices)))
        reason = f"{image_format}: {len(indices)} image(s) in {splits}, none in train"
        yield CheckFinding("new_format", measured.images(indices), reason, len(indices))
    counted = Counter(measured.facts[index].image_format for index in measured.usable)
    usual, count = counted.most_common(1)[0] if counted else ("", 0)
    for group, indices in _groups(measured).items():
        formats = Counter(measured.facts[index].image_format for index in indices)
        if usual not in formats and count >= COMMON_FORMAT * len(measured.usable):
            reason = f"group {group}: {', '.join(formats)}; the usual format is {usual}"
            yield CheckFinding("odd_format", measured.images(indices), reason, len(indices))


def _unusual_groups(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    groups = _groups(measured)
    for field, (name, least) in _VALUES.items():
        means = [_mean(measured, field, indices) for indices in groups.values()]
        for (group, indices), mean, score in zip(groups.items(), means, robust_z_scores(means, least)):
            if is_outlier(score):
                usual = float(np.median(means))
                reason = f"group {group}: {name} {mean:.0f}, the median is {usual:.0f} (score {score:.1f})"
                yield CheckFinding("unusual_group", measured.images(indices), reason, abs(score))


def _drift_of_splits(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    groups = _groups(measured)
    for field, name in (("brightness", "brightness"), ("contrast", "contrast"), ("share", "vessel fraction")):
        values = {
            split: [_mean(measured, field, p) for p in groups.values() if split in measured.splits_at(p)]
            for split in SPLITS
        }
        for first, second in combinations(SPLITS, 2):
            if min(len(values[first]), len(values[second])) < _DRIFT_GROUPS:
                continue
            p = float(cast(float, ks_2samp(values[first], values[second]).pvalue))
            if p < _DRIFT_P:
                means = f"{np.mean(values[first]):.3g} in {first}, {np.mean(values[second]):.3g} in {second}"
                yield CheckFinding("split_drift", (), f"{name}: on average {means} (p = {p:.1g})", -p)


def _groups(measured: MeasuredDataset) -> dict[str, list[int]]:
    """Group -> indices of its usable images."""
    members = defaultdict(list)
    for index in measured.usable:
        members[measured.records[index].group_key].append(index)
    return dict(members)


def _mean(measured: MeasuredDataset, field: str, indices: list[int]) -> float:
    return float(np.mean([getattr(measured.facts[index], field) for index in indices]))


def _splits_of(measured: MeasuredDataset, index: int) -> tuple[str, ...]:
    return measured.splits_of[measured.records[index].image]
