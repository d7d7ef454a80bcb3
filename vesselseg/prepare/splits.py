"""Group-wise split into train, val and test: a patient, clip or study is never in two splits."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from vesselseg.dataset.manifest import SPLITS
from vesselseg.errors import UserError


class SplitError(UserError):
    """The requested split is impossible; the message says why and what to change."""


def parse_fractions(text: str) -> tuple[float, float, float]:
    """ "0.8,0.1,0.1" (or percent, "80,10,10") -> fractions for train, val, test; raises SplitError."""
    parts = text.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    total = sum(values)
    good = len(values) == 3 and all(0 <= value < 1e3 for value in values)
    # nothing to train on: an external test set, which has no validation images either
    good = good and (values[0] > 0 or values[1] == 0)
    if not good or not (abs(total - 1) < 1e-6 or abs(total - 100) < 1e-4):
        raise SplitError(
            f"--split {text}: expected three shares for train,val,test that add up to 1 or to 100, as in 0.8,0.1,0.1 "
            "or 80,10,10; 0,0,1 makes an external test set"
        )
    return values[0] / total, values[1] / total, values[2] / total


def compile_pattern(option: str, pattern: str) -> re.Pattern[str]:
    """A regular expression from the command line; raises SplitError with the position of the error."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise SplitError(f"{option} {pattern}: not a regular expression: {error}") from None


def find_group(pattern: re.Pattern[str] | None, path: str) -> str | None:
    """The group of a file: the first capture group or the whole match; None if the pattern does not match."""
    match = pattern.search(path) if pattern else None
    if match is None:
        return None
    return (match.group(1) if match.re.groups else match.group(0)) or None


def merge_groups(groups: Sequence[str], same: Sequence[Sequence[int]]) -> list[str]:
    """Merge the groups of files that must stay together. groups: per file; same: lists of indices of such files."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for positions in same:
        roots = sorted(root(groups[position]) for position in positions)
        for other in roots[1:]:
            parent[other] = roots[0]
    return [root(group) for group in groups]


def assign_fixed(
    groups: Sequence[str], paths: Sequence[str], patterns: Mapping[str, re.Pattern[str]]
) -> dict[str, str]:
    """group -> split for the groups whose files match a split's pattern.

    Raises SplitError when a file matches two patterns, a pattern matches nothing, or a group matches only in part.
    """
    problems = []
    wanted: dict[str, set[str | None]] = {}
    hits: Counter[str] = Counter()
    for group, path in zip(groups, paths):
        names = [name for name, pattern in patterns.items() if pattern.search(path)]
        hits.update(names)
        if len(names) > 1:
            problems.append(f"{path} matches --{names[0]}-regex and --{names[1]}-regex")
        wanted.setdefault(group, set()).add(names[0] if names else None)
    problems += [
        f"--{name}-regex {p.pattern} matches no file; paths look like {paths[0]}"
        for name, p in patterns.items()
        if not hits[name]
    ]
    problems += [
        f"group {group} is matched only partly; a group must be in one split"
        for group in sorted(wanted)
        if len(wanted[group]) > 1
    ]
    if problems:
        raise SplitError("the split cannot be made:\n  " + "\n  ".join(problems[:20]))
    return {group: name for group, names in wanted.items() for name in names if name is not None}


def split_groups(
    groups: Sequence[str], fractions: tuple[float, float, float], seed: int, fixed: Mapping[str, str] | None = None
) -> list[str]:
    """The split of each file, "train", "val" or "test", as close to the fractions as undivided groups allow.

    groups: per file. fixed: group -> split, given in advance; the other groups are distributed over the splits that
    it does not contain. Every split with a fraction above 0 gets a group if there are enough: train first, then val.
    """
    chosen = dict(fixed or {})
    sizes = Counter(group for group in groups if group not in chosen)
    shares = {name: share for name, share in zip(SPLITS, fractions) if share > 0 and name not in chosen.values()}
    if sizes and not shares:
        raise SplitError("no split is left for the files that no pattern matches; give --split a train share above 0")
    total, files = sum(shares.values()), sum(sizes.values())
    missing = {name: files * share / total for name, share in shares.items()}
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    if len(order) <= 2 * len(shares):
        order.sort(key=lambda group: -sizes[group])  # with few groups, the largest must be in train
    empty = list(missing)
    for remaining, group in zip(range(len(order), 0, -1), order):
        candidates = empty if remaining <= len(empty) else list(missing)
        name = max(candidates, key=lambda candidate: missing[candidate])
        chosen[group] = name
        missing[name] -= sizes[group]
        empty = [other for other in empty if other != name]
    return [chosen[group] for group in groups]


def fold_groups(groups: Sequence[str], folds: int, seed: int) -> list[int]:
    """Per file, the fold 1..folds that tests on it; groups are undivided, and folds have nearly equal sizes.

    Greedy: groups in descending size, each to the smallest fold, so that the sizes of two folds differ by at most the
    size of the largest group. seed: order of groups of equal size. Raises SplitError for fewer than 2 folds or more
    folds than groups.
    """
    sizes = Counter(groups)
    if folds < 2:
        raise SplitError(f"--folds {folds}: expected 2 or more")
    if folds > len(sizes):
        raise SplitError(f"--folds {folds}: there are only {len(sizes)} groups, and every fold tests on at least one")
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -sizes[group])
    filled = dict.fromkeys(range(1, folds + 1), 0)
    chosen = {}
    for group in order:
        chosen[group] = min(filled, key=lambda number: filled[number])
        filled[chosen[group]] += sizes[group]
    return [chosen[group] for group in groups]
