"""Splits: undivided groups, the requested fractions, reproducible by seed."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from vesselseg.prepare.splits import SplitError, assign_fixed, find_group, merge_groups, parse_fractions, split_groups

SHARES = (0.8, 0.1, 0.1)


def test_single_files_get_exact_fractions() -> None:
    names = split_groups([f"f{n}" for n in range(1220)], SHARES, 0)
    assert Counter(names) == {"train": 976, "val": 122, "test": 122}


def test_a_group_is_never_in_two_splits() -> None:
    groups = [f"patient{n % 23}" for n in range(300)]
    names = split_groups(groups, SHARES, 3)
    assert all(len({name for group, name in zip(groups, names) if group == wanted}) == 1 for wanted in set(groups))
    assert Counter(names)["train"] == pytest.approx(240, abs=15)
    assert set(names) == {"train", "val", "test"}


def test_the_seed_matters_and_input_order_does_not() -> None:
    groups = [f"g{n}" for n in range(50)]
    first = dict(zip(groups, split_groups(groups, SHARES, 1)))
    again = dict(zip(groups[::-1], split_groups(groups[::-1], SHARES, 1)))
    assert first == again
    assert first != dict(zip(groups, split_groups(groups, SHARES, 2)))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([5], {"train"}), ([5, 5], {"train", "val"}), ([5, 5, 5], {"train", "val", "test"})],
)
def test_few_groups_fill_train_then_val_then_test(sizes: list[int], expected: set[str]) -> None:
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    assert set(split_groups(groups, SHARES, 0)) == expected


def test_the_largest_of_few_groups_is_in_train() -> None:
    groups = ["big"] * 50 + ["b"] * 3 + ["c"] * 3
    for seed in range(6):
        assert split_groups(groups, SHARES, seed)[0] == "train"


def test_a_fraction_of_zero_gets_nothing() -> None:
    assert set(split_groups([f"g{n}" for n in range(40)], (0.9, 0.1, 0.0), 0)) == {"train", "val"}


@pytest.mark.parametrize(
    "text", ["0.8,0.1", "0.8,0.1,0.2", "a,b,c", "-0.1,0.6,0.5", "0,0.5,0.5", "nan,0,1", "", "1,2,3"]
)
def test_invalid_fractions(text: str) -> None:
    with pytest.raises(SplitError, match="add up to 1"):
        parse_fractions(text)


def test_fractions_and_percent() -> None:
    assert parse_fractions("0.8,0.1,0.1") == pytest.approx(SHARES)
    assert parse_fractions("80, 10, 10") == pytest.approx(SHARES)


def test_group_is_capture_or_match() -> None:
    assert find_group(re.compile(r"(p\d+)_"), "a/p01_x.json") == "p01"
    assert find_group(re.compile(r"p\d+"), "a/p01_x.json") == "p01"
    assert find_group(re.compile(r"q\d+"), "a/p01_x.json") is None
    assert find_group(re.compile(r"(q)?p"), "a/p01_x.json") is None


def test_files_with_one_image_become_one_group() -> None:
    merged = merge_groups(["a", "b", "c", "d", "e"], [[0, 1], [1, 2], [4, 4]])
    assert merged[0] == merged[1] == merged[2]
    assert len(set(merged)) == 3


def test_fixed_groups_keep_their_split_and_the_rest_is_split() -> None:
    paths = [f"train_{n}.json" for n in range(80)] + [f"val_{n}.json" for n in range(20)]
    fixed = assign_fixed(paths, paths, {"test": re.compile("^val_")})
    names = split_groups(paths, SHARES, 0, fixed)
    assert all((name == "test") == path.startswith("val_") for path, name in zip(paths, names))
    assert Counter(names) == {"train": 71, "val": 9, "test": 20}


def test_contradictory_fixed_splits_are_reported_together() -> None:
    paths = ["p1_train.json", "p1_val.json", "p2_train.json"]
    patterns = {"val": re.compile("val"), "test": re.compile("nothing")}
    with pytest.raises(SplitError) as caught:
        assign_fixed(["p1", "p1", "p2"], paths, patterns)
    assert "group p1 is matched only partly" in str(caught.value)
    assert "--test-regex nothing matches no file" in str(caught.value)
    with pytest.raises(SplitError, match="matches --val-regex and --test-regex"):
        assign_fixed(paths, paths, {"val": re.compile("p1"), "test": re.compile("val")})
