"""Paired comparison of results on the same images: differences with intervals, Wilcoxon's test, wins and ties.

Intervals resample groups, see ``statistics``. Test: Wilcoxon, "Individual comparisons by ranking methods", Biometrics
Bulletin 1945. p values of several pairs are adjusted by Holm, "A simple sequentially rejective multiple test
procedure", Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.evaluation.metrics import METRIC_TABLE
from vesselseg.evaluation.prediction_folder import SETTINGS_FILE
from vesselseg.evaluation.results_file import RESULTS_FILE
from vesselseg.evaluation.statistics import bootstrap_interval

TIE = 1e-9  # smaller differences are rounding errors
_ITEM = ("group", "height", "width", "truth_pixels", "metrics")
Key = tuple[str, str]  # image, phrase


@dataclass(frozen=True)
class Results:
    """The content of one results.json."""

    name: str
    folder: Path  # with results.json and panels/
    source: str  # path of the model or predictions
    split: str
    fingerprint: str  # of the dataset
    items: dict[Key, dict[str, Any]]
    length_unit: str = "px"  # "px" or "mm"


@dataclass(frozen=True)
class PairedMetric:
    """One metric of two results over the items that have it in both."""

    name: str
    items: int
    means: tuple[float, float]  # first, second
    difference: float  # mean of first - second
    low: float | None  # 95 % bootstrap interval that resamples groups; None for one group
    high: float | None
    p: float | None  # Wilcoxon's signed-rank test over the items; None where all are ties
    p_groups: float | None  # the same over group means; None also where every item is its own group
    wins: int  # items on which the first result is better
    ties: int
    losses: int

    @property
    def p_reported(self) -> float | None:
        """p over groups where there are any, because images of one group are not independent."""
        return self.p if self.p_groups is None else self.p_groups


@dataclass(frozen=True)
class Pair:
    """The comparison of two results."""

    first: int  # index into Comparison.results
    second: int
    chosen: PairedMetric  # the metric of the comparison
    metrics: list[PairedMetric]  # all
    keys: list[Key]  # items with the chosen metric in both
    differences: NDArray[np.float64]  # (items,) of the chosen metric, in the order of keys
    p_adjusted: float | None = None  # by Holm for the number of pairs; None for one pair


@dataclass(frozen=True)
class Comparison:
    """Results on the same items, and every pair of them."""

    results: list[Results]
    metric: str  # the chosen one
    keys: list[Key]  # items that all results have with the same truth
    pairs: list[Pair]
    groups: int
    grouped: bool  # whether a group has several items
    left_out: int  # items that some results lack or have with another truth
    notes: list[str]  # differences of the data that --common tolerated
    seed: int  # of the bootstrap


def lower_is_better(metric: str) -> bool:
    """Whether smaller values of a metric are better."""
    return METRIC_TABLE[metric].lower_is_better


def read_results(path: Path) -> Results:
    """path: a results.json, or the folder that vesselseg eval wrote. Raises EvaluationError."""
    file = path / RESULTS_FILE if path.is_dir() else path
    if not file.is_file():
        if path.is_dir() and (path / SETTINGS_FILE).is_file():
            raise EvaluationError(
                f"{path} holds predictions, which have no scores yet: vesselseg eval {path} --data data/NAME "
                "--out DIR, then compare DIR"
            )
        raise EvaluationError(f"{path}: no {RESULTS_FILE}; expected that file, or a folder that vesselseg eval wrote")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        items = {(item["image"], item["phrase"]): {name: item[name] for name in _ITEM} for item in content["items"]}
        data = content["data"]
        source, unit = content["source"]["path"], content.get("length_unit", "px")
        read = Results(path.name or str(path), file.parent, source, data["split"], data["fingerprint"], items, unit)
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{file}: not a results file of vesselseg eval ({type(error).__name__}: {error}); "
            "score the predictions again"
        ) from None
    if not items:
        raise EvaluationError(f"{file}: contains no scored image")
    return read


def compare(results: Sequence[Results], metric: str, common: bool = False, seed: int = 0) -> Comparison:
    """Compare each result with each later one.

    metric: a name of METRIC_TABLE. common: compare the items that all results have, instead of refusing others. seed:
    of the bootstrap. Raises EvaluationError where data, images or truths differ, and for a metric that a result lacks.
    """
    results = [_by_image(one, results) for one in _with_unique_names(results)]
    keys, left_out, problems = _shared(results)
    if problems and not common:
        advice = "A paired comparison needs the same images: evaluate on the same data and split, or add --common."
        raise EvaluationError(problem_list("the results are not of the same images", problems, advice))
    if not keys:
        raise EvaluationError("the results share no image with the same truth: there is nothing to compare")
    one_unit = len({one.length_unit for one in results}) == 1
    if not one_unit:
        problems.append(
            "lengths are in pixels in one result and in mm in another: metrics that depend on them are left out"
        )
    names = [
        name
        for name, known in METRIC_TABLE.items()
        if (one_unit or not known.scaled)
        and all(any(_is_number(one.items[key]["metrics"].get(name)) for key in keys) for one in results)
    ]
    if metric not in names:
        raise EvaluationError(f"--metric {metric}: not in all results; expected one of {', '.join(names)}")
    groups = [str(results[0].items[key]["group"]) for key in keys]
    pairs = [_pair(results, a, b, names, metric, keys, groups, seed) for a, b in combinations(range(len(results)), 2)]
    grouped = len(set(groups)) < len(keys)
    return Comparison(results, metric, keys, _holm(pairs), len(set(groups)), grouped, left_out, problems, seed)


def _with_unique_names(results: Sequence[Results]) -> list[Results]:
    """Rename equal results by their parent folders, and number those that are still equal."""
    names = [one.name.removesuffix(".json") for one in results]
    parents = [
        f"{one.folder.parent.name}/{name}" if names.count(name) > 1 else name for one, name in zip(results, names)
    ]
    unique = [f"{name} ({i})" if parents.count(name) > 1 else name for i, name in enumerate(parents, start=1)]
    return [replace(one, name=name) for one, name in zip(results, unique)]


def _by_image(one: Results, results: Sequence[Results]) -> Results:
    """Keys without phrases where every result has one item per image: folders of masks have no phrases."""
    if any(len({image for image, _ in result.items}) < len(result.items) for result in results):
        return one
    return replace(one, items={(image, ""): item for (image, _), item in one.items.items()})


def _shared(results: Sequence[Results]) -> tuple[list[Key], int, list[str]]:
    """(keys with the same truth in all results, in the first one's order; number of other items; differences)."""
    first, problems = results[0], []
    everywhere = [key for key in first.items if all(key in one.items for one in results)]
    # Size and number of vessel pixels stand in for the truth itself, which results.json does not contain.
    truths = {
        key: {tuple(one.items[key][name] for name in ("height", "width", "truth_pixels")) for one in results}
        for key in everywhere
    }
    same = [key for key in everywhere if len(truths[key]) == 1]
    for one in results[1:]:
        if (one.fingerprint, one.split) != (first.fingerprint, first.split):
            problems.append(
                f"data: {first.name} is of split {first.split}, fingerprint {first.fingerprint}; "
                f"{one.name} of split {one.split}, fingerprint {one.fingerprint}"
            )
        for has, lacks in ((first, one), (one, first)):
            missing = [key for key in has.items if key not in lacks.items]
            if missing:
                problems.append(f"{len(missing)} item(s) of {has.name} are not in {lacks.name}: {_names(missing)}")
    if len(same) < len(everywhere):
        other = [key for key in everywhere if key not in set(same)]
        problems.append(f"{len(other)} image(s) have another size or truth in another result: {_names(other)}")
    return same, len({key for one in results for key in one.items}) - len(same), problems


def _names(keys: Sequence[Key]) -> str:
    shown = ", ".join(f"{image} ({phrase})" if phrase else image for image, phrase in keys[:5])
    return shown + (", ..." if len(keys) > 5 else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _pair(
    results: Sequence[Results],
    first: int,
    second: int,
    names: Sequence[str],
    chosen: str,
    keys: list[Key],
    groups: Sequence[str],
    seed: int,
) -> Pair:
    def values(name: str) -> NDArray[np.float64]:
        rows = [[results[i].items[key]["metrics"].get(name) for i in (first, second)] for key in keys]
        return np.array([[v if _is_number(v) else np.nan for v in row] for row in rows], dtype=np.float64)

    tables = {name: values(name) for name in names}
    metrics = [paired_metric(name, table, groups, seed) for name, table in tables.items() if _complete(table).any()]
    main = next((one for one in metrics if one.name == chosen), None)
    if main is None:
        named = f"{results[first].name} and {results[second].name}"
        raise EvaluationError(f"--metric {chosen}: no image has it in both {named}")
    complete = _complete(tables[chosen])
    differences = np.subtract(*tables[chosen][complete].T)
    return Pair(first, second, main, metrics, [key for key, has in zip(keys, complete) if has], differences)


def _complete(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(table).all(axis=1))


def paired_metric(name: str, table: NDArray[np.float64], groups: Sequence[str], seed: int = 0) -> PairedMetric:
    """Compare two results by one metric.

    table: (items, 2) values of the first and second result; items that are NaN in either are ignored. groups: (items,).
    """
    complete = _complete(table)
    table, groups = table[complete], [group for group, has in zip(groups, complete) if has]
    differences = table[:, 0] - table[:, 1]
    low, high = bootstrap_interval(differences[:, None], groups, seed)
    better = -differences if lower_is_better(name) else differences  # above 0: the first result is better
    distinct = sorted(set(groups))
    # The signed-rank test assumes independent pairs, which the images of one group are not.
    means = np.array([differences[[group == name for group in groups]].mean() for name in distinct])
    return PairedMetric(
        name=name,
        items=len(table),
        means=(float(table[:, 0].mean()), float(table[:, 1].mean())),
        difference=float(differences.mean()),
        low=None if low is None else float(low[0]),
        high=None if high is None else float(high[0]),
        p=signed_rank(differences),
        p_groups=signed_rank(means) if 1 < len(distinct) < len(table) else None,
        wins=int((better > TIE).sum()),
        ties=int((np.abs(better) <= TIE).sum()),
        losses=int((better < -TIE).sum()),
    )


def signed_rank(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test without ties; None where all are ties. differences: (items,)."""
    differing = differences[np.abs(differences) > TIE]
    return float(wilcoxon(differing).pvalue) if len(differing) else None


def _holm(pairs: list[Pair]) -> list[Pair]:
    """Pairs with Holm-adjusted p of the chosen metric: the k-th smallest of n is multiplied by n - k + 1, never below
    the one before.
    """
    if len(pairs) < 2:
        return pairs
    order = sorted((p, index) for index, one in enumerate(pairs) if (p := one.chosen.p_reported) is not None)
    adjusted: dict[int, float] = {}
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return [replace(one, p_adjusted=adjusted.get(index)) for index, one in enumerate(pairs)]
