"""The threshold curve and the reliability diagram as images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vesselseg.evaluation.metrics import METRIC_TABLE
from vesselseg.evaluation.result_types import Calibration, Evaluation, Reliability
from vesselseg.evaluation.threshold import THRESHOLDS

_DICE, _IOU, _SOFT, _ACCENT, _GRID = "#2563a8", "#1f7a4d", "#5b6675", "#b3261e", "#e3e7ec"
_Line = tuple[str, str, bool, NDArray[np.float64], NDArray[np.float64]]  # label, colour, dashed, thresholds, values


def threshold_chart(evaluation: Evaluation) -> NDArray[np.uint8]:
    """Metrics over the threshold, (height, width, 3) uint8: the searched metric, otherwise Dice and IoU.

    Solid: the split on which the threshold was searched; dashed: the reported split, for information; without a search
    only the reported split. Raises ValueError for masks, which have no curve.
    """
    if evaluation.threshold.searched is None and evaluation.curve is None:
        raise ValueError(f"{evaluation.source} contains masks, which have no threshold curve")
    figure = Figure(figsize=(6.4, 4.0), dpi=160, facecolor="white", layout="constrained")
    axis = figure.subplots()
    lines = list(_metric_lines(evaluation) or _overlap_lines(evaluation))
    for label, colour, dashed, grid, values in lines:
        axis.plot(grid, values, color=colour, linestyle=(0, (5, 3)) if dashed else "-", linewidth=2, label=label)
    value = evaluation.threshold.value
    axis.axvline(value, color=_ACCENT, linewidth=1.2, label=f"applied: {value:.2f}")
    # Fractions end at 1 at most; lengths and counts have no natural limit.
    highest = float(np.nanmax([np.nanmax(values) for *_, values in lines]))
    part = evaluation.threshold.metric is None or not METRIC_TABLE[evaluation.threshold.metric].unit
    top = min(1.0, 1.3 * highest + 0.02) if part else 1.1 * highest + 0.02
    word = METRIC_TABLE[evaluation.threshold.metric].label if len(lines) == 2 and evaluation.threshold.metric else ""
    axis.set(xlim=(0, 1), ylim=(0, top), xlabel="threshold", ylabel=f"mean {word}".strip())
    _style_axis(axis)
    axis.legend(frameon=False, fontsize=9, labelcolor=_SOFT, loc="best")
    return _to_pixels(figure)


def _metric_lines(evaluation: Evaluation) -> list[_Line]:
    """The curves of the searched metric; none for Dice and IoU, which are drawn together."""
    metric, searched = evaluation.threshold.metric, evaluation.threshold.searched
    if metric in (None, "dice", "iou") or searched is None:
        return []
    return [
        line
        for one in evaluation.thresholds
        if one.metric == metric
        for line in (
            (evaluation.split, _DICE, True, one.grid, one.reported),
            (f"{searched.split}, searched", _DICE, False, one.grid, one.searched),
        )
    ]


def _overlap_lines(evaluation: Evaluation) -> Iterator[_Line]:
    searched = evaluation.threshold.searched
    for curve, dashed in ((evaluation.curve, searched is not None), (searched, False)):
        if curve is not None:
            yield f"Dice, {curve.split}", _DICE, dashed, THRESHOLDS, curve.dice
            yield f"IoU, {curve.split}", _IOU, dashed, THRESHOLDS, curve.iou


def reliability_chart(calibration: Calibration) -> NDArray[np.uint8]:
    """Frequency of vessel over probability, and pixels per bin below, (height, width, 3) uint8.

    Left: all pixels; right: those of probability 0.01 or more; dashed grey: perfect calibration.
    """
    figure = Figure(figsize=(9.6, 4.9), dpi=160, facecolor="white", layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3.2, 1))
    sides = (
        ("All pixels", calibration.everywhere, calibration.calibrated_everywhere),
        ("Pixels of probability 0.01 or more", calibration.visible, calibration.calibrated_visible),
    )
    for column, (title, before, after) in enumerate(sides):
        upper, lower = axes[0, column], axes[1, column]
        upper.plot((0, 1), (0, 1), color=_SOFT, linestyle=(0, (4, 3)), linewidth=1, label="perfect")
        _reliability(upper, lower, before, _DICE, "as predicted", -1)
        if after is not None:
            _reliability(upper, lower, after, _ACCENT, f"temperature {calibration.temperature:.2f}", 1)
        upper.set(xlim=(0, 1), ylim=(0, 1))
        upper.set_title(title, fontsize=11, loc="left", color="#1c2430")
        lower.set(yscale="log", xlabel="predicted probability of vessel")
        for axis in (upper, lower):
            _style_axis(axis)
    axes[0, 0].set_ylabel("fraction that is vessel")
    axes[1, 0].set_ylabel("pixels")
    axes[0, 0].legend(frameon=False, fontsize=9, labelcolor=_SOFT, loc="upper left")
    return _to_pixels(figure)


def _reliability(upper: Axes, lower: Axes, found: Reliability, colour: str, label: str, side: int) -> None:
    """side: -1 or 1, the half of a bin that the bar occupies."""
    filled = found.counts > 0
    upper.plot(found.confidence[filled], found.frequency[filled], color=colour, marker="o", markersize=4, label=label)
    middles, width = (found.edges[:-1] + found.edges[1:]) / 2, 0.4 * (found.edges[1] - found.edges[0])
    lower.bar(middles[filled] + side * width / 2, found.counts[filled], width=width, color=colour)


def _style_axis(axis: Axes) -> None:
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", colors=_SOFT, length=0)
    axis.xaxis.label.set_color(_SOFT)
    axis.yaxis.label.set_color(_SOFT)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#cfd5dc")


def _to_pixels(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
