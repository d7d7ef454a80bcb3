"""The bootstrap interval: coverage, groups, undefined values, seeds, and agreement with plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vesselseg.evaluation.metrics import METRICS
from vesselseg.evaluation.result_types import ItemResult
from vesselseg.evaluation.statistics import bootstrap_interval, summarise
from vesselseg.evaluation.summaries import group_means, summarise_groups, summarise_items


def _own_groups(count: int) -> list[str]:
    return [f"image {number}" for number in range(count)]


def test_mean_median_and_range() -> None:
    summary = summarise(np.array([[0.2], [0.4], [0.9]]), _own_groups(3))[0]
    assert summary.mean == pytest.approx(0.5)
    assert summary.median == pytest.approx(0.4)
    assert (summary.minimum, summary.maximum) == (0.2, 0.9)
    assert summary.low is not None and summary.high is not None
    assert 0.2 <= summary.low < 0.5 < summary.high <= 0.9


def test_interval_agrees_with_a_loop_that_draws_items() -> None:
    values = np.random.default_rng(1).beta(5, 2, size=40)
    generator = np.random.default_rng(99)
    means = [values[generator.integers(0, 40, 40)].mean() for _ in range(20000)]
    low, high = bootstrap_interval(values[:, None], _own_groups(40))
    assert low is not None and high is not None
    assert low[0] == pytest.approx(np.percentile(means, 2.5), abs=0.004)
    assert high[0] == pytest.approx(np.percentile(means, 97.5), abs=0.004)


def test_interval_covers_the_true_mean_about_95_percent_of_the_time() -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_interval(generator.normal(0.7, 0.1, (50, 1)), _own_groups(50), trial, resamples=400)
        assert low is not None and high is not None
        hits += bool(low[0] <= 0.7 <= high[0])
    assert 0.90 <= hits / 300 <= 0.98


def _patients(generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """40 patients of 1 to 9 images: 0.7, plus 0.1 that a patient's images share, plus 0.05 of their own."""
    groups = np.repeat(np.arange(40), generator.integers(1, 10, size=40))
    values = 0.7 + generator.normal(0, 0.1, 40)[groups] + generator.normal(0, 0.05, len(groups))
    return values[:, None], [f"patient {number}" for number in groups]


def test_resampling_groups_covers_where_resampling_images_does_not() -> None:
    generator = np.random.default_rng(8)
    hits = np.zeros(2)
    for trial in range(200):
        values, groups = _patients(generator)
        for way, resampled in enumerate((groups, _own_groups(len(groups)))):
            low, high = bootstrap_interval(values, resampled, trial, resamples=400)
            assert low is not None and high is not None
            hits[way] += low[0] <= 0.7 <= high[0]
    by_group, by_image = hits / 200
    assert 0.89 <= by_group <= 0.98
    assert by_image < 0.75


def test_groups_that_resemble_each_other_widen_the_interval() -> None:
    generator = np.random.default_rng(2)
    values = np.repeat(generator.random(10), 20)[:, None]
    groups = np.repeat([f"patient {number}" for number in range(10)], 20).tolist()
    by_group, by_image = bootstrap_interval(values, groups), bootstrap_interval(values, _own_groups(200))
    assert by_group[1][0] - by_group[0][0] > 3 * (by_image[1][0] - by_image[0][0])


def test_interval_of_groups_of_unequal_size_weighs_items() -> None:
    values = np.array([[0.0]] * 9 + [[1.0]])
    low, high = bootstrap_interval(values, ["a"] * 9 + ["b"])
    assert (low[0], high[0]) == (0.0, 1.0)
    assert summarise(values, ["a"] * 9 + ["b"])[0].mean == pytest.approx(0.1)


def test_one_group_has_no_interval() -> None:
    summary = summarise(np.array([[0.3], [0.5]]), ["a", "a"])[0]
    assert summary.low is None
    assert summary.high is None


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).random((30, 2))
    first, again, other = (summarise(values, _own_groups(30), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_no_item_is_refused() -> None:
    with pytest.raises(ValueError, match="one group per item"):
        summarise(np.zeros((0, 1)), [])


def test_undefined_values_are_left_out_in_every_resample() -> None:
    generator = np.random.default_rng(4)
    values = generator.random((30, 2))
    values[generator.random(30) < 0.4, 1] = np.nan
    groups = [f"patient {number % 6}" for number in range(30)]
    whole, partial = summarise(values, groups)
    assert (whole.items, partial.items) == (30, int((~np.isnan(values[:, 1])).sum()))
    assert partial.mean == pytest.approx(np.nanmean(values[:, 1]))
    assert partial.median == pytest.approx(np.nanmedian(values[:, 1]))
    assert (partial.minimum, partial.maximum) == (np.nanmin(values[:, 1]), np.nanmax(values[:, 1]))
    parts = [values[np.array(groups) == f"patient {number}", 1] for number in range(6)]
    means = [np.nanmean(np.concatenate([parts[i] for i in generator.integers(0, 6, 6)])) for _ in range(4000)]
    assert [partial.low, partial.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)
    assert whole == summarise(values[:, :1], groups)[0]  # a column without gaps is not changed by another's


def test_a_metric_that_fewer_than_two_groups_have() -> None:
    values = np.array([[0.2, np.nan, np.nan], [0.4, 0.5, np.nan], [0.9, 0.7, np.nan]])
    complete, one, none = summarise(values, ["a", "b", "b"])
    assert complete.low is not None
    assert (one.mean, one.low, one.high, one.items) == (pytest.approx(0.6), None, None, 2)
    assert math.isnan(none.mean) and none.low is None
    assert none.to_dict() == dict.fromkeys(("mean", "median", "low", "high", "minimum", "maximum")) | {"items": 0}


def _scored(group: str, dice: float, hd: float) -> ItemResult:
    metrics = {**dict.fromkeys(METRICS, 0.5), "dice": dice, "hd": hd}
    return ItemResult(f"{group}/{dice}.png", "", group, 8, 8, 9, 9, metrics)


def test_each_group_counts_once_in_the_mean_of_group_means() -> None:
    """Nine images of a at 0.9, one of b at 0.5, one of c at 0.1: 0.79 over the images, 0.5 over the groups."""
    items = [_scored("a", 0.9, math.nan) for _ in range(9)] + [_scored("b", 0.5, 4.0), _scored("c", 0.1, math.nan)]
    means = group_means(items)
    assert [(mean.group, mean.items) for mean in means] == [("a", 9), ("b", 1), ("c", 1)]
    by_image, by_group = summarise_items(items, 0)["dice"], summarise_groups(means, 0)["dice"]
    assert by_image.mean == pytest.approx((9 * 0.9 + 0.6) / 11) and by_group.mean == pytest.approx(0.5)
    assert (by_group.low, by_group.high) == (pytest.approx(0.1), pytest.approx(0.9))  # 1 of 27 draws is c, c, c
    hd = summarise_groups(means, 0)["hd"]
    assert (hd.mean, hd.low, hd.items) == (4.0, None, 1)


def test_the_mean_of_group_means_is_covered() -> None:
    generator = np.random.default_rng(9)
    hits = 0
    for trial in range(200):
        values, groups = _patients(generator)
        names = sorted(set(groups))
        means = np.array([values[np.array(groups) == name].mean() for name in names])
        low, high = bootstrap_interval(means[:, None], names, trial, resamples=400)
        assert low is not None and high is not None
        hits += bool(low[0] <= 0.7 <= high[0])
    assert 0.89 <= hits / 200 <= 0.98
