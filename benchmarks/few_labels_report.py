"""Summary, table and pictures of few_labels.py."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.morphology import skeletonize

from benchmarks.variants import folder_name
from vesselseg.dataset.manifest import image_path, read_split
from vesselseg.dataset.record_masks import record_masks
from vesselseg.evaluation.comparison import paired_metric
from vesselseg.evaluation.metrics.widths import width_classes
from vesselseg.evaluation.statistics import bootstrap_interval

# What is kept of every image; the first three are shown.
METRICS = ("dice", "cldice", "recall_thin", "precision", "recall", "precision_thin", "hd95", "betti_0_error")
TITLES = {"dice": "Dice", "cldice": "clDice", "recall_thin": "recall of thin vessels"}
EXAMPLES = 4  # images of the picture of thin vessels


def summarise(runs: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """One row per number of labels and method.

    metrics: of each the values of the seeds, their mean, and the 95 % bootstrap interval over images of that mean.
    against: of each metric the paired comparison with the reference, over the seeds that both have: the values of an
    image are averaged over seeds first; None where there is nothing to compare.
    """
    rows = []
    for labels in sorted({run["labels"] for run in runs}):
        of_labels = [run for run in runs if run["labels"] == labels]
        for method in dict.fromkeys(run["method"] for run in of_labels):
            own = {run["seed"]: run for run in of_labels if run["method"] == method}
            others = {run["seed"]: run for run in of_labels if run["method"] == reference}
            shared = sorted(own.keys() & others.keys())
            rows.append(
                {
                    "labels": labels,
                    "method": method,
                    "seeds": sorted(own),
                    "metrics": {metric: _values([own[seed] for seed in sorted(own)], metric) for metric in METRICS},
                    "against": None
                    if method == reference or not shared
                    else {
                        metric: _paired([own[seed] for seed in shared], [others[seed] for seed in shared], metric)
                        for metric in METRICS
                    },
                }
            )
    return rows


def per_image(runs: Sequence[Mapping[str, Any]], metric: str) -> NDArray[np.float64]:
    """(seeds, images) in the order of the first run's images, NaN where the metric is undefined."""
    place, images = METRICS.index(metric), list(runs[0]["items"])
    return np.array([[_number(run["items"][image][place]) for image in images] for run in runs])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _values(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """values: per seed, None where no image has the metric; mean, low, high: None where no image of any seed has it."""
    table = per_image(runs, metric)  # (seeds, images)
    found: dict[str, Any] = {"values": [_finite(float(_mean(row))) for row in table], "mean": None}
    found |= {"low": None, "high": None}
    means = _mean(table)
    if not np.isnan(means).all():
        found["mean"] = float(np.nanmean(means))
        ends = bootstrap_interval(means[:, None], list(runs[0]["items"]))
        found |= {name: None if end is None else _finite(float(end[0])) for name, end in zip(("low", "high"), ends)}
    return found


def _paired(
    own: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, Any] | None:
    columns = np.stack([_mean(per_image(own, metric)), _mean(per_image(others, metric))], axis=1)
    if np.isnan(columns).any(axis=1).all():
        return None
    found = asdict(paired_metric(metric, columns, list(own[0]["items"])))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _mean(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(table)
    counts = defined.sum(axis=0)
    return np.where(counts > 0, np.where(defined, table, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: per metric mean (95 % interval over images), then the difference to the reference with its interval."""
    lines = ["| labels | method | seeds | " + " | ".join(TITLES.values()) + " |", "|---" * (3 + len(TITLES)) + "|"]
    for row in rows:
        cells = [_cell(row, metric) for metric in TITLES]
        lines.append(f"| {row['labels']} | {row['method']} | {len(row['seeds'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], metric: str) -> str:
    one = row["metrics"][metric]
    if one["mean"] is None:
        return ""
    cell = f"{one['mean']:.3f}" + ("" if one["low"] is None else f" ({one['low']:.3f} to {one['high']:.3f})")
    against = row["against"] and row["against"][metric]
    if not against:
        return cell
    change = f"{against['difference']:+.3f}"
    if against["low"] is None:
        return f"{cell}, {change}"
    certain = against["low"] > 0 or against["high"] < 0
    change = f"**{change}**" if certain else change
    return f"{cell}, {change} ({against['low']:+.3f} to {against['high']:+.3f})"


def write_pictures(
    runs: Sequence[Mapping[str, Any]], reference: str, methods: Sequence[str], data: Path, out: Path, name: str
) -> None:
    """Curves over the number of labels, and thin vessels that reference and the last method find and lose."""
    draw_curves(runs, methods, out / f"{name}.png")
    shown = [run for run in runs if run["seed"] == 0]
    pairs = [
        (own, other)
        for own in shown
        for other in shown
        if (own["method"], other["method"]) == (methods[-1], reference) and own["labels"] == other["labels"]
    ]
    if pairs:
        own, other = max(pairs, key=lambda pair: pair[0]["labels"] == 100)  # else any
        draw_vessels(own, other, data, out / "masks.zip", out / f"{name}_vessels.png")


def draw_curves(runs: Sequence[Mapping[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Mean over images by the number of labels: a line per method through the means of its seeds, a point per seed."""
    figure, panels = plt.subplots(1, len(TITLES), figsize=(14, 4.6), constrained_layout=True)
    for panel, (metric, title) in zip(panels, TITLES.items()):
        for method in methods:
            own = [run for run in runs if run["method"] == method]
            counts = sorted({run["labels"] for run in own})
            if not counts:
                continue
            by_count = [
                [float(np.nanmean(per_image([run], metric))) for run in own if run["labels"] == count]
                for count in counts
            ]
            (line,) = panel.plot(counts, [np.mean(values) for values in by_count], label=method, linewidth=1.3)
            for count, values in zip(counts, by_count):
                panel.scatter([count] * len(values), values, s=14, color=line.get_color())
        panel.set(title=title, xlabel="labelled images", xscale="log")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    if runs:
        panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_vessels(own: Mapping[str, Any], other: Mapping[str, Any], data: Path, masks: Path, path: Path) -> None:
    """From the largest gain to the largest loss: thin truth found (green), lost (red); false positives (blue)."""
    found = [_read_masks(masks, run) for run in (other, own)]
    place = METRICS.index("recall_thin")
    gains = {
        image: _number(own["items"][image][place]) - _number(other["items"][image][place]) for image in own["items"]
    }
    ranked = sorted((image for image, gain in gains.items() if not math.isnan(gain)), key=lambda image: -gains[image])
    chosen = [ranked[round(share * (len(ranked) - 1))] for share in np.linspace(0, 1, EXAMPLES)] if ranked else []
    records = {record.image: record for record in read_split(data, "test")}
    figure, panels = plt.subplots(
        max(1, len(chosen)), 3, figsize=(10, 3.4 * max(1, len(chosen))), constrained_layout=True, squeeze=False
    )
    for row, image in zip(panels, chosen):
        record = records[image]
        pixels = np.asarray(Image.open(image_path(data, record)).convert("RGB"))
        truth = record_masks(record, *pixels.shape[:2]).any(axis=0)
        row[0].imshow(pixels)
        row[0].set_title(f"{Path(image).stem}: {gains[image]:+.2f}", fontsize=8)
        for panel, run, masks_of in zip(row[1:], (other, own), found):
            panel.imshow(_coloured(pixels, truth, masks_of[image]))
            panel.set_title(f"{run['method']}, {run['labels']} labels", fontsize=8)
    for panel in panels.flat:
        panel.axis("off")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _coloured(pixels: NDArray[np.uint8], truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    shown = pixels // 2
    shown[mask & ~truth] = (70, 120, 255)
    shown[truth & mask] = (170, 170, 170)
    if truth.any():
        thin = np.zeros_like(truth)
        thin[truth] = width_classes(truth, skeletonize(truth), None) == 0
        shown[thin & mask], shown[thin & ~mask] = (60, 220, 90), (255, 60, 60)
    return shown


def _read_masks(path: Path, run: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    name = folder_name(f"{run['method']} {run['labels']}", run["seed"])
    with zipfile.ZipFile(path) as file:
        content = np.load(io.BytesIO(file.read(f"{name}.npz")))
    count, height, width = content["shape"]
    bits = np.unpackbits(content["masks"], count=count * height * width).reshape(count, height, width)
    return {str(image): mask.astype(bool) for image, mask in zip(content["images"], bits)}
