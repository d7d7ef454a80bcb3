"""What looks wrong in labels, masks and pictures: outliers, specks, misspellings, disagreement, drift."""

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

COMMON_LOOK = 0.9  # share of images from which a look is the usual one
_BLANK = 2.0  # standard deviation of grey values
_DRIFT_P, _DRIFT_GROUPS = 1e-3, 5
# what drifts: field of ImageStatistics -> its name, and the spread below which groups do not differ
_VALUES = {"brightness": ("brightness", 4.0), "contrast": ("contrast", 3.0)}


def labels(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Phrases that are most likely meant to be the same."""
    images = defaultdict(list)
    for record in measured.records:
        for phrase in dict.fromkeys(record.phrases):
            images[phrase].append(record.image)
    for same in find_variants({phrase: len(names) for phrase, names in images.items()}):
        told = ", ".join(f"{phrase!r} ({len(images[phrase])} images)" for phrase in same.phrases)
        kept = "" if same.sure else "; too frequent to be corrected without asking"
        rare = tuple(dict.fromkeys(image for phrase in same.phrases[1:] for image in images[phrase]))
        yield CheckFinding(same.code, rare, told + kept, -len(rare))


def masks(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Masks that are empty, unusually small or large, or have specks."""
    facts = [measured.facts[place] for place in measured.usable]
    drawn = [one for one in facts if one.vessel]
    scores = robust_z_scores([float(np.log(one.share)) for one in drawn], least_spread=0.15)
    usual = float(np.median([one.share for one in drawn])) if drawn else 0.0
    for one, score in zip(drawn, scores):
        if is_outlier(score):
            reason = (
                f"{one.image}: {one.share:.2%} of the pixels are labelled, usual are {usual:.2%} (score {score:.1f})"
            )
            yield CheckFinding("little_vessel" if score < 0 else "much_vessel", (one.image,), reason, abs(score))
        if one.specks:
            sizes = ", ".join(map(str, one.specks[:8])) + (", ..." if len(one.specks) > 8 else "")
            reason = f"{one.image}: {len(one.specks)} piece(s) of {sizes} pixels"
            yield CheckFinding("specks", (one.image,), reason, len(one.specks))
    for place in measured.usable:
        yield from _empty(measured, place)


def _empty(measured: MeasuredDataset, place: int) -> Iterator[CheckFinding]:
    record, facts = measured.records[place], measured.facts[place]
    if not facts.vessel and not any(record.regions):
        yield CheckFinding("empty_image", (record.image,), f"{record.image}: no vessel is labelled")
        return
    empty = [number for number, pixels in enumerate(facts.object_pixels) if not pixels]
    if empty:
        named = ", ".join(f"{number} ({record.phrases[number]})" for number in empty)
        outside = any(record.regions[number] for number in empty)
        reason = f"{record.image}: object {named} has no pixel" + (" inside the image" if outside else "")
        yield CheckFinding("empty_object", (record.image,), reason, len(empty))


def observers(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Objects that two people drew very differently."""
    rows = [(measured.facts[place].image, one) for place in measured.usable for one in measured.facts[place].agreement]
    scores = robust_z_scores([one.dice for _, one in rows], least_spread=0.02)
    for (image, one), score in zip(rows, scores):
        if one.dice < LOW_DICE or (is_outlier(score) and score < 0):
            reason = f"{image}, {one.phrase}: Dice {one.dice:.3f}, kappa {one.kappa:.3f} with observer {one.observer}"
            yield CheckFinding("low_agreement", (image,), reason, 1 - one.dice)


def pictures(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Pictures that are blank or unlike the others, group by group and split by split."""
    for place in measured.usable:
        facts = measured.facts[place]
        if facts.contrast < _BLANK:
            reason = f"{facts.image}: standard deviation of the grey values {facts.contrast:.2f}"
            yield CheckFinding("blank_image", (facts.image,), reason)
    yield from _looks(measured)
    yield from _unusual_groups(measured)
    yield from _drift_of_splits(measured)


def _looks(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    trained = {measured.facts[place].look for place in measured.usable if "train" in _sides(measured, place)}
    new = defaultdict(list)
    for place in measured.usable:
        if trained and _sides(measured, place) and measured.facts[place].look not in trained:
            new[measured.facts[place].look].append(place)
    for look, places in new.items():
        sides = ", ".join(sorted(measured.sides(places)))
        reason = f"{look}: {len(places)} image(s) of {sides}, none of train"
        yield CheckFinding("new_format", measured.images(places), reason, len(places))
    counted = Counter(measured.facts[place].look for place in measured.usable)
    usual, count = counted.most_common(1)[0] if counted else ("", 0)
    for group, places in _groups(measured).items():
        looks = Counter(measured.facts[place].look for place in places)
        if usual not in looks and count >= COMMON_LOOK * len(measured.usable):
            reason = f"group {group}: {', '.join(looks)}; usual is {usual}"
            yield CheckFinding("odd_format", measured.images(places), reason, len(places))


def _unusual_groups(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    groups = _groups(measured)
    for field, (name, least) in _VALUES.items():
        means = [_mean(measured, field, places) for places in groups.values()]
        for (group, places), mean, score in zip(groups.items(), means, robust_z_scores(means, least)):
            if is_outlier(score):
                usual = float(np.median(means))
                reason = f"group {group}: {name} {mean:.0f}, usual is {usual:.0f} (score {score:.1f})"
                yield CheckFinding("unusual_group", measured.images(places), reason, abs(score))


def _drift_of_splits(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    groups = _groups(measured)
    for field, name in (("brightness", "brightness"), ("contrast", "contrast"), ("share", "share of vessel")):
        values = {
            split: [_mean(measured, field, p) for p in groups.values() if split in measured.sides(p)]
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
    """Group -> places of its readable images."""
    members = defaultdict(list)
    for place in measured.usable:
        members[measured.records[place].group_key].append(place)
    return dict(members)


def _mean(measured: MeasuredDataset, field: str, places: list[int]) -> float:
    return float(np.mean([getattr(measured.facts[place], field) for place in places]))


def _sides(measured: MeasuredDataset, place: int) -> tuple[str, ...]:
    return measured.splits_of[measured.records[place].image]
