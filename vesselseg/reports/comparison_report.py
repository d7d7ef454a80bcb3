"""Write a comparison: comparison.html, comparison.json, and a table for the console."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from vesselseg.evaluation.comparison import TIE, Comparison, Key, Pair, PairedMetric, Results, lower_is_better
from vesselseg.evaluation.results_file import versions
from vesselseg.evaluation.statistics import RESAMPLES
from vesselseg.output_folder import whole_folder
from vesselseg.reports.evaluation_report import LABELS
from vesselseg.reports.html import jpeg_data_uri, png_data_uri, render

PAGE, JSON = "comparison.html", "comparison.json"
FORMAT = 1
_ALPHA = 0.05
SHOWN = 3  # images for each pair and direction
_PANEL = re.compile(r"^(?:worst|median|best)_\d+_(.+)\.png$")
_FIRST, _SECOND, _SOFT = "#2563a8", "#d55e00", "#5b6675"
_WIDTH = 1100  # pixels of a panel inside the page


@dataclass(frozen=True)
class DifferentItem:
    """An item on which two results differ most."""

    key: Key
    values: tuple[float, float]  # of the chosen metric
    panels: list[tuple[str, str]]  # (name of the result, data URI), where its folder has one


def write_comparison(comparison: Comparison, out: Path, force: bool = False) -> Path:
    """Write page and JSON into out, completely or not at all; return the page's path. force: replace an earlier one."""
    with whole_folder(out, force, JSON) as folder:
        text = json.dumps(as_dict(comparison), ensure_ascii=False, indent=1, allow_nan=False)
        (folder / JSON).write_text(text + "\n", encoding="utf-8")
        (folder / PAGE).write_text(_page(comparison), encoding="utf-8")
    return out / PAGE


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The content of comparison.json."""
    results = comparison.results
    return {
        "format": FORMAT,
        "versions": versions(),
        "metric": comparison.metric,
        "lower_is_better": lower_is_better(comparison.metric),
        "items": len(comparison.keys),
        "groups": comparison.groups,
        "left_out": comparison.left_out,
        "notes": comparison.notes,
        "bootstrap": {"resamples": RESAMPLES, "seed": comparison.seed, "unit": _unit(comparison)},
        "results": [
            {"name": one.name, "source": one.source, "split": one.split, "fingerprint": one.fingerprint}
            for one in results
        ],
        "pairs": [
            {
                "first": results[pair.first].name,
                "second": results[pair.second].name,
                "p_adjusted": pair.p_adjusted,
                "metrics": [asdict(metric) for metric in pair.metrics],
                "items": [
                    {"image": image, "phrase": phrase, "difference": float(difference)}
                    for (image, phrase), difference in zip(pair.keys, pair.differences)
                ],
            }
            for pair in comparison.pairs
        ],
    }


def table_lines(comparison: Comparison) -> list[str]:
    """A table with one line per pair, for the console."""
    metric = comparison.metric
    better = "lower" if lower_is_better(metric) else "higher"
    grouped = f" in {comparison.groups} groups" if comparison.grouped else ""
    lines = [
        f"{label(metric)} ({better} is better) on {len(comparison.keys)} items{grouped}; difference: first - second"
    ]
    lines += [f"note: {note}" for note in comparison.notes]
    names = [f"{comparison.results[p.first].name} - {comparison.results[p.second].name}" for p in comparison.pairs]
    width = max(map(len, names))
    adjusted = f"{'p (Holm)':>10}" if len(names) > 1 else ""
    lines.append(
        f"{'':{width}}{'first':>9}{'second':>9}{'difference':>12}  {'95 % interval':>20}{'p':>10}{adjusted}"
        f"{'wins/ties/losses':>18}"
    )
    for name, pair in zip(names, comparison.pairs):
        one = pair.chosen
        holm = f"{p_text(pair.p_adjusted):>10}" if adjusted else ""
        lines.append(
            f"{name:{width}}{one.means[0]:9.4f}{one.means[1]:9.4f}{one.difference:+12.4f}  {interval(one):>20}"
            f"{p_text(one.p_reported):>10}{holm}{f'{one.wins}/{one.ties}/{one.losses}':>18}"
        )
    return lines


def interval(metric: PairedMetric) -> str:
    """The interval of the difference as text."""
    return "one group" if metric.low is None else f"{metric.low:+.4f} to {metric.high:+.4f}"


def p_text(p: float | None) -> str:
    """A p value as text; None: all are ties."""
    return "all ties" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def label(metric: str) -> str:
    """A metric's name in reports."""
    return LABELS.get(metric, metric)


def verdict(metric: PairedMetric, first: str, second: str) -> str:
    """The conclusion that interval and test allow, as a clause."""
    if metric.low is None or metric.high is None:
        return f"{first} and {second}: all images are of one group, so no conclusion beyond them is possible"
    if metric.low <= 0 <= metric.high:
        return f"no difference between {first} and {second} is shown: the interval contains 0"
    # Interval and test can disagree; only both together count as significant.
    first_wins = (metric.difference > 0) != lower_is_better(metric.name)
    winner, loser = (first, second) if first_wins else (second, first)
    p = metric.p_reported
    if p is None or p >= _ALPHA:
        return (
            f"{winner} is better than {loser} in the mean, but not significantly: the interval excludes 0, but "
            f"Wilcoxon's p is {p_text(p)}"
        )
    return f"{winner} is better than {loser}: the interval excludes 0, and Wilcoxon's p is {p_text(p)}"


def most_different(comparison: Comparison, pair: Pair, first_better: bool) -> list[DifferentItem]:
    """The items on which the first (or second) result is better by most, the largest difference first."""
    sign = 1 if first_better != lower_is_better(comparison.metric) else -1
    gains = sign * pair.differences
    order = [index for index in np.argsort(-gains, kind="stable")[:SHOWN] if gains[index] > TIE]
    both = [comparison.results[pair.first], comparison.results[pair.second]]
    found = []
    for index in order:
        key = pair.keys[index]
        values = [one.items[key]["metrics"][comparison.metric] for one in both]
        panels = [(one.name, panel) for one in both if (panel := _panel(one, key))]
        found.append(DifferentItem(key, (values[0], values[1]), panels))
    return found


def _panel(one: Results, key: Key) -> str | None:
    """The panel of an item as a data URI, if vesselseg eval drew one and its file name is unambiguous."""
    # File names of panels hold the image's stem only, which may occur in several folders.
    stem = PurePosixPath(key[0]).stem
    if sum(PurePosixPath(image).stem == stem for image, _ in one.items) > 1:
        return None
    for path in sorted((one.folder / "panels").glob("*.png")):
        named = _PANEL.match(path.name)
        if named and named.group(1) == stem:
            with Image.open(path) as image:
                image.thumbnail((_WIDTH, _WIDTH))
                return jpeg_data_uri(np.asarray(image.convert("RGB")))
    return None


def draw_pair(comparison: Comparison, pair: Pair) -> NDArray[np.uint8]:
    """First result over second, and the sorted differences, (height, width, 3) uint8."""
    first, second = comparison.results[pair.first], comparison.results[pair.second]
    values = np.array([[one.items[k]["metrics"][comparison.metric] for k in pair.keys] for one in (first, second)])
    figure = Figure(figsize=(10.6, 4.2), dpi=160, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05
    ends = (low - margin, high + margin)
    left.plot(ends, ends, color="#aab3be", linewidth=1)
    left.scatter(values[1], values[0], color=_FIRST, s=22, alpha=0.75, linewidths=0)
    left.locator_params(nbins=6)
    left.set(xlim=ends, ylim=ends, xlabel=second.name, ylabel=first.name, aspect="equal")
    ordered = np.sort(pair.differences)[::-1]
    better = -ordered if lower_is_better(comparison.metric) else ordered
    tints = [_FIRST if value > TIE else _SECOND if value < -TIE else "#aab3be" for value in better]
    right.bar(np.arange(1, len(ordered) + 1), ordered, color=tints, width=0.85)
    right.axhline(0, color="#aab3be", linewidth=1)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="images in order", ylabel=f"{first.name} - {second.name}")
    for axis in (left, right):
        _style(axis)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _style(axis: Axes) -> None:
    axis.grid(color="#e3e7ec", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_SOFT, length=0, labelsize=9)
    axis.xaxis.label.set_color(_SOFT)
    axis.yaxis.label.set_color(_SOFT)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#cfd5dc")


def _unit(comparison: Comparison) -> str:
    return "group" if comparison.grouped else "image"


def _sections(comparison: Comparison) -> Sequence[dict[str, Any]]:
    sections = []
    for pair in comparison.pairs:
        first, second = comparison.results[pair.first].name, comparison.results[pair.second].name
        sections.append(
            {
                "pair": pair,
                "first": first,
                "second": second,
                "verdict": verdict(pair.chosen, first, second),
                "chart": png_data_uri(draw_pair(comparison, pair)),
                "sides": [
                    (first, most_different(comparison, pair, True)),
                    (second, most_different(comparison, pair, False)),
                ],
            }
        )
    return sections


def _page(comparison: Comparison) -> str:
    return render(
        "comparison.html.j2",
        comparison=comparison,
        sections=_sections(comparison),
        label=label,
        interval=interval,
        p_text=p_text,
        lower_is_better=lower_is_better,
        bootstrap=f"{RESAMPLES:,} resamples of whole {_unit(comparison)}s, seed {comparison.seed}",
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
    )
