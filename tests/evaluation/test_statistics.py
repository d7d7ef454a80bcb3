"""The bootstrap interval: coverage, groups, seeds, and agreement with a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from vesselseg.evaluation.statistics import bootstrap_interval, summarise


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
