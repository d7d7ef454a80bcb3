"""The threshold curve as a picture."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vesselseg.evaluation.scores import Evaluation
from vesselseg.evaluation.threshold import THRESHOLDS

_DICE, _IOU, _SOFT, _ACCENT = "#2563a8", "#1f7a4d", "#5b6675", "#b3261e"


def threshold_chart(evaluation: Evaluation) -> NDArray[np.uint8]:
    """Mean Dice and IoU over the threshold, as (height, width, 3) uint8.

    Solid: the split on which the threshold was searched; dashed: the reported split, for information. Without a
    search the reported split alone. Raises ValueError where there is neither (masks).
    """
    searched, reported = evaluation.threshold.searched, evaluation.curve
    if searched is None and reported is None:
        raise ValueError(f"{evaluation.source} holds masks: the same at every threshold")
    figure = Figure(figsize=(6.4, 4.0), dpi=160, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    for curve, style, width in ((reported, (0, (5, 3)) if searched else "-", 1.6), (searched, "-", 2.2)):
        if curve is None:
            continue
        axis.plot(THRESHOLDS, curve.dice, color=_DICE, linestyle=style, linewidth=width, label=f"Dice, {curve.split}")
        axis.plot(THRESHOLDS, curve.iou, color=_IOU, linestyle=style, linewidth=width, label=f"IoU, {curve.split}")
    value = evaluation.threshold.value
    axis.axvline(value, color=_ACCENT, linewidth=1.2, label=f"applied: {value:.2f}")
    highest = max(curve.dice.max() for curve in (searched, reported) if curve is not None)
    axis.set(xlim=(0, 1), ylim=(0, min(1.0, 1.3 * highest + 0.02)), xlabel="threshold", ylabel="mean over the items")
    axis.grid(color="#e3e7ec", linewidth=0.8)
    axis.tick_params(colors=_SOFT, length=0)
    axis.xaxis.label.set_color(_SOFT)
    axis.yaxis.label.set_color(_SOFT)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#cfd5dc")
    axis.legend(frameon=False, fontsize=9, labelcolor=_SOFT, loc="best")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
