"""Panels of single cases, six images each, and the selection of cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from vesselseg.evaluation.result_types import Case, ItemResult

# Distinguishable for colour-blind readers (Okabe and Ito, "Color Universal Design", 2008).
TRUE_POSITIVE = (0, 158, 115)
FALSE_POSITIVE = (230, 90, 0)
FALSE_NEGATIVE = (86, 180, 233)
OVERLAY = (255, 64, 92)

_INK = "#1c2430"
_SOFT = "#5b6675"
_TILE = 4.0  # inches
_DPI = 150  # a tile of 600 pixels: an image of 512 loses nothing when the page enlarges it


def select_cases(items: Sequence[ItemResult], each: int = 3) -> dict[str, list[ItemResult]]:
    """The worst, median and best items by Dice, at most ``each`` of them; no item is in two groups."""
    order = sorted(items, key=lambda item: (item.metrics["dice"], item.image, item.phrase))
    each = min(each, max(1, len(order) // 3))
    # Each group takes at most a third, so that none shares an item with another.
    worst = order[:each]
    best = order[each:][::-1][:each][::-1]
    rest = order[len(worst) : len(order) - len(best)]
    start = max(0, (len(rest) - each) // 2)
    return {"worst": worst, "median": rest[start : start + each], "best": best[::-1]}


def draw_panel(case: Case, title: str, threshold: float, binary: bool = False) -> NDArray[np.uint8]:
    """Image, truth, prediction, overlay, difference and probability of one case, (height, width, 3) uint8.

    binary: the source contains masks instead of probabilities.
    """
    height, width = case.truth.shape
    # Very wide or high images get a bounded tile, so that titles and legend keep their room.
    tile = _TILE * min(max(height / width, 0.4), 2.0)
    figure = Figure(figsize=(3 * _TILE + 0.8, 2 * tile + 1.75), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    total = figure.get_figheight()
    figure.text(0.025, 1 - 0.3 / total, title, size=15, weight="bold", color=_INK, va="center")
    figure.text(0.025, 1 - 0.62 / total, _figures(case.scored), size=11, color=_SOFT, va="center")
    axes = figure.subplots(2, 3)
    figure.subplots_adjust(left=0.025, right=0.975, top=1 - 1.15 / total, bottom=0.35 / total, wspace=0.05, hspace=0.13)
    tiles = [
        ("Image", case.image),
        ("Truth", _mask_picture(case.truth)),
        ("Prediction", _mask_picture(case.prediction)),
        ("Overlay of the prediction", overlay(case.image, case.prediction)),
        ("Difference", difference(case.image, case.prediction, case.truth)),
    ]
    for axis, (name, picture) in zip(axes.flat, tiles):
        _show(axis, name, picture)
    _legend(axes[1, 1])
    _probability(figure, axes[1, 2], case.probabilities, threshold, binary)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def overlay(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image (height, width, 3) uint8 with a tinted mask (height, width) and its outline in full colour."""
    picture = image.astype(np.float32)
    picture[mask] = 0.55 * picture[mask] + 0.45 * np.array(OVERLAY, dtype=np.float32)
    picture[_outline(mask)] = OVERLAY
    return picture.round().astype(np.uint8)


def difference(image: NDArray[np.uint8], prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """True positives, false positives and false negatives in colour on the darkened image, (height, width, 3) uint8."""
    picture = (image * 0.35).round().astype(np.uint8)
    picture[prediction & truth] = TRUE_POSITIVE
    picture[prediction & ~truth] = FALSE_POSITIVE
    picture[~prediction & truth] = FALSE_NEGATIVE
    return picture


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _mask_picture(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.repeat((mask * np.uint8(255))[..., None], 3, axis=2)


def _figures(scored: ItemResult) -> str:
    values = scored.metrics
    names = (("Dice", "dice"), ("IoU", "iou"), ("precision", "precision"), ("recall", "recall"), ("clDice", "cldice"))
    figures = "   ".join(f"{label} {values[name]:.3f}" for label, name in names)
    return f"{figures}   vessel: {scored.truth_pixels:,} px true, {scored.predicted_pixels:,} px predicted"


def _show(axis: Axes, name: str, picture: NDArray[np.uint8]) -> None:
    axis.imshow(picture, interpolation="antialiased")
    _frame(axis, name)


def _frame(axis: Axes, name: str) -> None:
    axis.set_title(name, size=12, color=_INK, loc="left", pad=6, y=1.0)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#cfd5dc")


def _legend(axis: Axes) -> None:
    named = ((TRUE_POSITIVE, "hit"), (FALSE_POSITIVE, "false positive"), (FALSE_NEGATIVE, "missed"))
    handles = [Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=label) for colour, label in named]
    axis.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.01, 0.985),
        ncols=3,
        frameon=False,
        fontsize=10.5,
        handlelength=0.9,
        handleheight=0.9,
        handletextpad=0.4,
        columnspacing=1.0,
        borderpad=0.2,
        labelcolor=_SOFT,
    )


def _probability(
    figure: Figure, axis: Axes, probabilities: NDArray[np.float32], threshold: float, binary: bool
) -> None:
    shown = axis.imshow(probabilities, cmap="magma", vmin=0, vmax=1, interpolation="antialiased")
    _frame(axis, "Probability (the source contains masks)" if binary else "Probability")
    if binary:
        return
    bar = figure.colorbar(shown, cax=axis.inset_axes((0.48, 1.045, 0.52, 0.028)), orientation="horizontal")
    ends = [end for end in (0, 1) if abs(end - threshold) > 0.3]  # closer ones would overlap the threshold's label
    bar.set_ticks([*ends, threshold], labels=[*map(str, ends), f"threshold {threshold:.2f}"])
    bar.ax.xaxis.set_ticks_position("top")
    bar.ax.tick_params(labelsize=9, colors=_SOFT, length=0, pad=2)
    bar.ax.axvline(threshold, color="white", linewidth=1.5)
    bar.ax.spines["outline"].set_visible(False)
