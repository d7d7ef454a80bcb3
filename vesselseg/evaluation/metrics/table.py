"""What each metric is called, means and counts: the one home of it, in the order of reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vesselseg.evaluation.metrics.surfaces import NSD_TOLERANCE_MM, NSD_TOLERANCE_PX
from vesselseg.evaluation.metrics.widths import EDGES_MM, EDGES_PX

EMPTY_MASK_RULE = (
    "Truth and prediction both empty: Dice = IoU = precision = recall = clDice and its halves = NSD = 1, "
    "and the distances are 0. "
    "One of them empty: all of these are 0, and the distances are undefined. "
    "Specificity is 1 where the truth covers the whole image. "
    "Recall and precision by width are undefined without vessel of that width, the areas under curves without "
    "probabilities and where the truth holds only vessel or only background. "
    "Means are over the images where a value is defined."
)

_OUTLINE = "outlines: mask pixels with background or the image's edge above, below, left or right; centre to centre"
_SKELETON = "centrelines by scikit-image's skeletonize, 2D"
_PIECES = "pieces touch by edges and corners (8 neighbours), background by edges (4 neighbours)"
_WIDTH = (
    "width: twice the way from the centreline to the nearest background, less 1 px; a pixel has the width of the "
    "nearest centreline pixel"
)


@dataclass(frozen=True)
class Metric:
    """One metric.

    label: its name for people; meaning: in plain words; convention: what implementations disagree on, settled.
    unit: "px/mm" is mm where the spacing is given and pixels where not; "" a part, mostly in 0..1. scaled: whether the
    spacing changes it, be it as a length or as a limit in mm: such values compare only where both have one or neither.
    """

    name: str
    label: str
    meaning: str
    convention: str = ""
    lower_is_better: bool = False
    unit: Literal["", "px/mm", "count"] = ""
    needs_probabilities: bool = False
    scaled: bool = False


def _overlap() -> Iterator[Metric]:
    yield Metric("dice", "Dice", "overlap: twice the common pixels over the sum of both masks")
    yield Metric("iou", "IoU", "overlap: common pixels over the union of both masks")
    yield Metric("precision", "Precision", "part of the predicted vessel that is vessel")
    yield Metric("recall", "Recall", "part of the vessel that was found; also called sensitivity")
    yield Metric("specificity", "Specificity", "part of the background that was left alone")
    yield Metric("accuracy", "Accuracy", "part of all pixels that is right; high for any method where vessels are thin")
    yield Metric(
        "balanced_accuracy",
        "Balanced accuracy",
        "mean of recall and specificity: vessel and background count alike",
        "over the classes that the truth holds",
    )
    yield Metric(
        "mcc",
        "MCC",
        "Matthews' correlation of prediction and truth, -1 to 1; 0 is chance",
        "where a margin is 0: 1 or -1 if all pixels are of one kind, right or wrong, else 0 (Chicco and Jurman 2020)",
    )


def _ranking() -> Iterator[Metric]:
    yield Metric(
        "roc_auc",
        "ROC-AUC",
        "chance that a vessel pixel is given a higher probability than a background pixel, over all thresholds",
        "of all pixels of an image; exact, equal probabilities count half",
        needs_probabilities=True,
    )
    yield Metric(
        "pr_auc",
        "PR-AUC",
        "precision averaged over all recalls, over all thresholds; chance is the part of the image that is vessel",
        "average precision: steps, no interpolation between thresholds",
        needs_probabilities=True,
    )


def _centrelines() -> Iterator[Metric]:
    yield Metric(
        "cldice",
        "clDice",
        "Dice of the centrelines: rewards connected, complete trees, whatever their width",
        f"harmonic mean of its halves; {_SKELETON}",
    )
    yield Metric(
        "topology_precision",
        "Topology precision",
        "part of the prediction's centreline that lies in the vessel: false branches lower it",
        _SKELETON,
    )
    yield Metric(
        "topology_sensitivity",
        "Topology sensitivity",
        "part of the vessel's centreline that was found: gaps and missing branches lower it",
        _SKELETON,
    )


def _surfaces() -> Iterator[Metric]:
    distance = partial(Metric, lower_is_better=True, unit="px/mm", scaled=True)
    yield distance("hd", "HD", "Hausdorff distance: the largest way from one outline to the other", _OUTLINE)
    yield distance(
        "hd95",
        "HD95",
        "the way to the other outline that 95 % of an outline's pixels stay within, of the worse of both directions",
        f"the larger of the two directions' percentiles, interpolated linearly; {_OUTLINE}",
    )
    yield distance(
        "assd",
        "ASSD",
        "mean way from one outline to the other",
        f"average symmetric surface distance: mean over the pixels of both outlines together; {_OUTLINE}",
    )
    yield Metric(
        "nsd",
        "NSD",
        f"part of both outlines within {NSD_TOLERANCE_PX:g} px of the other ({NSD_TOLERANCE_MM:g} mm with spacing)",
        f"normalised surface distance, outline pixels counted; {_OUTLINE}",
        scaled=True,
    )


def _pieces() -> Iterator[Metric]:
    count = partial(Metric, lower_is_better=True, unit="count")
    yield count(
        "betti_0_error",
        "Betti-0 error",
        "difference of the numbers of connected pieces: a broken tree has too many",
        f"of the whole image; {_PIECES}",
    )
    yield count(
        "betti_1_error",
        "Betti-1 error",
        "difference of the numbers of holes: loops that are closed wrongly or not at all",
        f"of the whole image; {_PIECES}; what lies beyond the image is no hole",
    )
    yield count(
        "components_error",
        "Lone pieces",
        "pieces of the prediction without any vessel below, and of the vessel without any prediction",
        "counterpart: at least one common pixel; pieces touch by edges and corners",
    )


def _widths() -> Iterator[Metric]:
    (thin_px, wide_px), (thin_mm, wide_mm) = EDGES_PX, EDGES_MM
    classes = {
        "thin": f"below {thin_px:g} px ({thin_mm:g} mm with spacing)",
        "medium": f"{thin_px:g} to below {wide_px:g} px ({thin_mm:g} to {wide_mm:g} mm with spacing)",
        "wide": f"{wide_px:g} px and more ({wide_mm:g} mm with spacing)",
    }
    for word, limits in classes.items():
        meaning = f"part of the {word} vessel that was found: {limits}"
        yield Metric(f"recall_{word}", f"Recall, {word}", meaning, f"widths of the truth; {_WIDTH}", scaled=True)
    for word, limits in classes.items():
        meaning = f"part of the predicted {word} vessel that is vessel: {limits}"
        convention = f"widths of the prediction; {_WIDTH}"
        yield Metric(f"precision_{word}", f"Precision, {word}", meaning, convention, scaled=True)


METRIC_TABLE: dict[str, Metric] = {
    metric.name: metric for part in (_overlap, _ranking, _centrelines, _surfaces, _pieces, _widths) for metric in part()
}
METRICS = tuple(METRIC_TABLE)
