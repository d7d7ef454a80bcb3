"""Curves of one or more trainings, one colour each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vesselseg.training.logs.analysis import Analysis, skipped
from vesselseg.training.logs.training_log import finite, loss_names

# Okabe and Ito's colours, which colour-blind readers can distinguish; the report's blue first.
COLOURS = ("#2563a8", "#d55e00", "#1f7a4d", "#cc79a7", "#8a6d00", "#56b4e9", "#6b4fa0", "#333a45")
_SOFT, _ACCENT = "#5b6675", "#b3261e"
_MAX_MARKS = 200
_LOG_SCALE = 30  # a loss that falls by more than this factor is drawn on a logarithmic axis


@dataclass(frozen=True)
class Line:
    """One curve; a second quantity of the same run is dashed, in the same colour."""

    run: int  # index of the run
    x: list[float]
    y: list[float]
    label: str
    dashed: bool = False
    points: bool = False


@dataclass(frozen=True)
class Chart:
    """One chart (height, width, 3) uint8 with its title and note."""

    title: str
    note: str
    picture: NDArray[np.uint8]


def colour(number: int) -> str:
    """Colour of a run."""
    return COLOURS[number % len(COLOURS)]


def draw_charts(runs: Sequence[Analysis]) -> list[Chart]:
    """A chart of every quantity that at least one run logged."""
    quantities = [
        ("loss", name, "mean since the line before", [name]) for name in loss_names([run.log for run in runs])
    ]
    quantities += [
        ("rate", "learning rate", "", ["lr"]),
        ("amount", "images per second", "all processes together", ["images_per_s"]),
        ("amount", "seconds per iteration", "", ["iter_s"]),
        ("amount", "seconds of an iteration spent waiting for data", "", ["data_s"]),
        ("amount", "memory, GiB", "solid: allocated, dashed: reserved", ["memory_gib", "memory_reserved_gib"]),
        ("", "gradient norm", "", ["grad_norm"]),
    ]
    charts = [_dice_chart(runs)]
    for kind, title, note, columns in quantities:
        lines = [
            line
            for number, run in enumerate(runs)
            for order, column in enumerate(columns)
            if (line := _line(number, run, column, dashed=order > 0)).y
        ]
        if lines:
            dashed = any(line.dashed for line in lines)
            kept = note if "dashed" not in note or dashed else "allocated"
            charts.append(Chart(title, kept, _draw(lines, runs, kind)))
    return [chart for chart in charts if chart is not None]


def _line(number: int, run: Analysis, column: str, dashed: bool) -> Line:
    rows = [row for row in run.log.train if finite(row.get(column))]
    return Line(
        number, [row["iter"] for row in rows], [row[column] for row in rows], run.name, dashed, points=len(rows) < 3
    )


def _dice_chart(runs: Sequence[Analysis]) -> Chart | None:
    """Validation Dice, and training Dice (1 - Dice loss) dashed, where they are known."""
    lines = []
    for number, run in enumerate(runs):
        rows, weight = run.log.validations, run.log.dice_weight
        if rows:
            lines.append(Line(number, [r["iter"] for r in rows], [r["dice"] for r in rows], run.name, points=True))
        train = [row for row in run.log.train if finite(row.get("loss_dice"))] if weight else []
        if rows and train and weight:
            values = [1 - row["loss_dice"] / weight for row in train]
            lines.append(Line(number, [row["iter"] for row in train], values, run.name, dashed=True))
    if not lines:
        return None
    dashed = any(line.dashed for line in lines)
    note = "solid: validation; dashed: training, 1 - Dice loss" if dashed else "validation"
    return Chart("Dice", note, _draw(lines, runs))


def _draw(lines: Sequence[Line], runs: Sequence[Analysis], kind: str = "") -> NDArray[np.uint8]:
    figure = Figure(figsize=(5.6, 3.1), dpi=160, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    for line in lines:
        axis.plot(
            *(line.x, line.y),
            color=colour(line.run),
            linestyle=(0, (5, 3)) if line.dashed else "-",
            linewidth=1.3 if line.dashed else 1.8,
            marker="o" if line.points else "",
            markersize=4,
            label=None if line.dashed or len(runs) == 1 else line.label,
        )
    for number in sorted({line.run for line in lines} if kind == "loss" else ()):
        for row in skipped(runs[number].log)[:_MAX_MARKS]:
            tint = _ACCENT if len(runs) == 1 else colour(number)
            axis.axvline(row["iter"], color=tint, linewidth=0.8, alpha=0.6, linestyle=":")
    values = [value for line in lines for value in line.y]
    if kind == "loss" and min(values) > 0 and max(values) > _LOG_SCALE * min(values):
        axis.set_yscale("log")
    elif kind == "amount":
        axis.set_ylim(0, 1.08 * max(values) or 1)
    elif kind == "rate":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _style(axis, legend=len(runs) > 1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _style(axis: Axes, legend: bool) -> None:
    axis.set_xlabel("iteration", color=_SOFT, fontsize=9)
    axis.grid(color="#e3e7ec", linewidth=0.8)
    axis.tick_params(colors=_SOFT, length=0, labelsize=9, which="both")
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#cfd5dc")
    if legend:
        axis.legend(frameon=False, fontsize=9, labelcolor=_SOFT, loc="best")
