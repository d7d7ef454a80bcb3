"""Checks of splits, groups and files: leaks between splits, duplicates, dangling names."""

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
from vesselseg.inspect.checks.near_duplicates import SimilarPair, clusters, identical_images, similar_pairs


@dataclass(frozen=True)
class Duplicates:
    """identical: lists of indices of images with equal pixels. near: pairs of different images that look alike."""

    identical: list[list[int]]
    near: list[SimilarPair]


def find_duplicates(measured: MeasuredDataset) -> Duplicates:
    """Compare all pairs of images; of identical images, only the first is compared with others."""
    usable = measured.usable
    identical = identical_images([facts.pixels for facts in measured.facts])
    later = {index for indices in identical for index in indices[1:]}
    compared = [index for index in usable if index not in later]
    if not compared:
        return Duplicates(identical, [])
    hashes = np.stack([measured.facts[index].hashes for index in compared])
    textures = np.stack([measured.facts[index].texture for index in compared])
    pairs = similar_pairs(hashes, textures)
    placed = [SimilarPair(compared[p.first], compared[p.second], p.correlation, p.distance, p.transform) for p in pairs]
    return Duplicates(identical, placed)


def check_files_and_splits(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Unusable images, and names without image or record."""
    for facts in measured.facts:
        if facts.problem is not None:
            yield CheckFinding(facts.problem[0], (facts.image,), facts.problem[1])
    known = {record.image for record in measured.records}
    for image, splits in measured.splits_of.items():
        if image not in known:
            yield CheckFinding("unknown_in_split", (image,), f"{image} is in {', '.join(splits)} but has no record")
        elif not splits:
            yield CheckFinding("not_in_a_split", (image,), f"{image} is in none of train, val and test")
        if len(splits) > 1:
            yield CheckFinding("image_in_two_splits", (image,), f"{image} is in {' and '.join(splits)}")
    for name in _unused(measured, known):
        yield CheckFinding("unused_file", (), f"images/{name}")


def check_groups(measured: MeasuredDataset) -> Iterator[CheckFinding]:
    """Groups in several splits."""
    members = defaultdict(list)
    for index, record in enumerate(measured.records):
        if record.group:
            members[record.group].append(index)
    for group, indices in members.items():
        splits = measured.splits_at(indices)
        if len(splits) > 1:
            images = _different_splits_first(measured, indices)
            counts = {split: sum(split in measured.splits_of[image] for image in images) for split in sorted(splits)}
            listed = ", ".join(f"{count} in {split}" for split, count in counts.items())
            yield CheckFinding("group_in_two_splits", images, f"group {group}: {listed}", len(indices))


def check_duplicates(measured: MeasuredDataset, duplicates: Duplicates) -> Iterator[CheckFinding]:
    """Identical images, then near-duplicates with one finding per cluster."""
    for indices in duplicates.identical:
        images = _different_splits_first(measured, indices)
        described = " = ".join(measured.describe(index) for index in indices[:6])
        across = len(measured.splits_at(indices)) > 1
        agree = len({measured.facts[index].masks for index in indices}) == 1
        if across or agree:
            yield CheckFinding("duplicate_across_splits" if across else "duplicate", images, described, len(indices))
        if not agree:
            yield CheckFinding("duplicate_masks_differ", images, described, len(indices))
    pairs_of = defaultdict(list)
    for pair in duplicates.near:
        pairs_of[pair.first].append(pair)
    for cluster in clusters(len(measured.records), ((pair.first, pair.second) for pair in duplicates.near)):
        pairs = [pair for index in cluster for pair in pairs_of[index]]
        yield _near(measured, cluster, sorted(pairs, key=lambda pair: -pair.correlation))


def _near(measured: MeasuredDataset, cluster: Sequence[int], pairs: Sequence[SimilarPair]) -> CheckFinding:
    """A cluster of near-duplicates, described by its closest pair in two splits, else in two groups, else at all."""
    records = measured.records
    code, shown = "near_duplicate_in_group", list(pairs)
    between = [pair for pair in pairs if records[pair.first].group_key != records[pair.second].group_key]
    across = [pair for pair in pairs if len(measured.splits_at((pair.first, pair.second))) > 1]
    if across:
        code, shown = "near_duplicate_across_splits", across
    elif between:
        code, shown = "near_duplicate_across_groups", between
    best = shown[0]
    transform = f", {best.transform}" if best.transform else ""
    many = f"{len(cluster)} images of {len({records[index].group_key for index in cluster})} group(s); closest: "
    reason = (
        f"{many if len(cluster) > 2 else ''}{measured.describe(best.first)} and {measured.describe(best.second)}: "
        f"correlation {best.correlation:.2f}, {best.distance} of 64 bits differ{transform}"
    )
    order = dict.fromkeys((best.first, best.second, *cluster))
    return CheckFinding(code, measured.images(order), reason, best.correlation)


def _different_splits_first(measured: MeasuredDataset, indices: Sequence[int]) -> tuple[str, ...]:
    """Names of the images, beginning with two of different splits if there are any, since the page shows the first."""
    images = measured.images(indices)
    differing = (pair for pair in combinations(images, 2) if measured.splits_of[pair[0]] != measured.splits_of[pair[1]])
    return tuple(dict.fromkeys((*next(differing, ()), *images)))


def _unused(measured: MeasuredDataset, known: set[str]) -> list[str]:
    folder = dataset_home(measured.folder) / "images"
    files: Iterator[Path] = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in files if (name := path.relative_to(folder).as_posix()) not in known)
