"""The curve over the number of labels as lines of text and as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vesselseg.evaluation.label_curve import LabelCurve

_LINE, _ACCENT = "#2563a8", "#b3261e"


def curve_lines(curve: LabelCurve, label: str) -> list[str]:
    """A line per number of labels, then what twice as many would bring. label: of the score, e.g. Dice."""
    lines = []
    for point in curve.points:
        seeds = f", {point.seeds} seeds" if point.seeds > 1 else ""
        line = f"{point.labels:6d} labels: {label} {point.mean:.3f}{_interval(point.low, point.high, '.3f')}{seeds}"
        if point.gain is not None:
            line += (
                f"; {point.gain.difference:+.3f}{_interval(point.gain.low, point.gain.high, '+.3f')} over the row above"
            )
        lines.append(line)
    gain = f"{curve.expected_gain:+.3f}{_interval(curve.gain_low, curve.gain_high, '+.3f')}"
    lines.append(
        f"{curve.doubled:6d} labels, by the fitted power law: {label} {gain} over {curve.points[-1].labels} labels"
    )
    if all(point.seeds == 1 for point in curve.points):
        lines.append("intervals hold for this one training of each row; --seeds 3 adds what chance does to a training")
    return lines


def draw_curve(curve: LabelCurve, label: str, path: Path) -> None:
    """Points with their intervals, the fit up to twice the labels, and the expected gain."""
    figure = Figure(figsize=(6.4, 4.0), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    counts = np.array([point.labels for point in curve.points])
    means = np.array([point.mean for point in curve.points])
    ends = [[value if value is not None else mean for value in (low, high)]
            for mean, low, high in ((p.mean, p.low, p.high) for p in curve.points)]  # fmt: skip
    axis.errorbar(counts, means, np.abs(np.array(ends).T - means), fmt="o", color=_LINE, capsize=3, label="measured")
    last, grid = curve.fitted, np.geomspace(counts[0], curve.doubled, 100)
    axis.plot(grid, 1 - (1 - last) * (grid / counts[-1]) ** -curve.exponent, color=_LINE, label="power law")
    doubled = last + curve.expected_gain
    axis.plot([curve.doubled], [doubled], "s", color=_ACCENT, label=f"expected with {curve.doubled} labels")
    if curve.gain_low is not None and curve.gain_high is not None:
        axis.plot([curve.doubled] * 2, [last + curve.gain_low, last + curve.gain_high], color=_ACCENT)
    axis.set_xscale("log")
    axis.set_xticks([*counts, curve.doubled], [str(count) for count in (*counts, curve.doubled)])
    axis.minorticks_off()
    axis.set(xlabel="labelled training images", ylabel=label)
    axis.grid(color="#e3e7ec")
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
