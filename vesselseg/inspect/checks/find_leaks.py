"""What splits, groups and files get wrong: leaks between splits, repeated pictures, names that lead nowhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from vesselseg.dataset.manifest import dataset_home
from vesselseg.inspect.checks.finding_kinds import CheckFinding
from vesselseg.inspect.checks.measured_dataset import MeasuredDataset
from vesselseg.inspect.checks.near_duplicates import Pair, clusters, identical_images, similar_pairs


@dataclass(frozen=True)
class Duplicates:
    """equal: places of pictures that are the same. near: pairs of different pictures that look alike."""

    equal: list[list[int]]
    near: list[Pair]


def find_duplicates(measured: MeasuredDataset) -> Duplicates:
    """Compare every picture with every other; of equal ones the first stands for all."""
    usable = measured.usable
    equal = identical_images([facts.pixels for facts in measured.facts])
    later = {place for places in equal for place in places[1:]}
    compared = [place for place in usable if place not in later]
    if not compared:
        return Duplicates(equal, [])
    hashes = np.stack([measured.facts[place].hashes for place in compared])
    textures = np.stack([measured.facts[place].texture for place in compared])
    pairs = similar_pairs(hashes, textures)
    placed = [Pair(compared[p.first], compared[p.second], p.correlation, p.distance, p.turned) for p in pairs]
    return Duplicates(equal, placed)


def files_and_splits(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Images that cannot be used, and names without image or record."""
    for facts in measured.facts:
        if facts.problem is not None:
            yield CheckFinding(facts.problem[0], (facts.image,), facts.problem[1])
    known = {record.image for record in measured.records}
    for image, splits in measured.splits_of.items():
        if image not in known:
            yield CheckFinding("unknown_in_split", (image,), f"{image} is in {', '.join(splits)}, but has no record")
        elif not splits:
            yield CheckFinding("not_in_a_split", (image,), f"{image} is in none of train, val and test")
        if len(splits) > 1:
            yield CheckFinding("image_in_two_splits", (image,), f"{image} is in {' and '.join(splits)}")
    for name in _unused(measured, known):
        yield CheckFinding("unused_file", (), f"images/{name}")


def groups(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Groups on several sides."""
    members = defaultdict(list)
    for place, record in enumerate(measured.records):
        if record.group:
            members[record.group].append(place)
    for group, places in members.items():
        sides = measured.sides(places)
        if len(sides) > 1:
            counted = [sum(side in measured.splits_of[i] for i in measured.images(places)) for side in sorted(sides)]
            split = ", ".join(f"{count} in {side}" for count, side in zip(counted, sorted(sides)))
            images = _one_of_each_side_first(measured, places)
            yield CheckFinding("group_in_two_splits", images, f"group {group}: {split}", len(places))


def repeated_pictures(measured: MeasuredDataset, repeated: Duplicates) -> Iterator[CheckFinding]:
    """Equal pictures, then those that look alike, one finding per cluster."""
    for places in repeated.equal:
        images, told = _one_of_each_side_first(measured, places), " = ".join(measured.told(p) for p in places[:6])
        across, agree = len(measured.sides(places)) > 1, len({measured.facts[place].masks for place in places}) == 1
        if across or agree:
            yield CheckFinding("duplicate_across_splits" if across else "duplicate", images, told, len(places))
        if not agree:
            yield CheckFinding("duplicate_masks_differ", images, told, len(places))
    pairs_of = defaultdict(list)
    for pair in repeated.near:
        pairs_of[pair.first].append(pair)
    for cluster in clusters(len(measured.records), ((pair.first, pair.second) for pair in repeated.near)):
        pairs = [pair for place in cluster for pair in pairs_of[place]]
        yield _near(measured, cluster, sorted(pairs, key=lambda pair: -pair.correlation))


def _near(measured: MeasuredDataset, cluster: Sequence[int], pairs: Sequence[Pair]) -> CheckFinding:
    """A cluster of pictures that look alike, told by its closest pair on two sides, or of two groups, or at all."""
    records = measured.records
    code, shown = "near_duplicate_in_group", list(pairs)
    between = [pair for pair in pairs if records[pair.first].group_key != records[pair.second].group_key]
    across = [pair for pair in pairs if len(measured.sides((pair.first, pair.second))) > 1]
    if across:
        code, shown = "near_duplicate_across_splits", across
    elif between:
        code, shown = "near_duplicate_across_groups", between
    best = shown[0]
    turned = f", {best.turned}" if best.turned else ""
    many = f"{len(cluster)} pictures of {len({records[place].group_key for place in cluster})} group(s); closest: "
    reason = (
        f"{many if len(cluster) > 2 else ''}{measured.told(best.first)} and {measured.told(best.second)}: "
        f"correlation {best.correlation:.2f}, {best.distance} of 64 bits differ{turned}"
    )
    order = dict.fromkeys((best.first, best.second, *cluster))
    return CheckFinding(code, measured.images(order), reason, best.correlation)


def _one_of_each_side_first(measured: MeasuredDataset, places: Sequence[int]) -> tuple[str, ...]:
    """Names of the images, two of different splits in front if there are any: they are what is shown."""
    images = measured.images(places)
    apart = (pair for pair in combinations(images, 2) if measured.splits_of[pair[0]] != measured.splits_of[pair[1]])
    return tuple(dict.fromkeys((*next(apart, ()), *images)))


def _unused(measured: MeasuredDataset, known: set[str]) -> list[str]:
    folder = dataset_home(measured.folder) / "images"
    files: Iterator[Path] = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in files if (name := path.relative_to(folder).as_posix()) not in known)
