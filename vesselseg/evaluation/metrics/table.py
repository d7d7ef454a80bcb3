"""Definition of every metric, in the order of the reports: name, meaning, convention, unit, source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vesselseg.evaluation.metrics.surfaces import NSD_TOLERANCE_MM, NSD_TOLERANCE_PX
from vesselseg.evaluation.metrics.widths import EDGES_MM, EDGES_PX

EMPTY_MASK_RULE = (
    "Truth and prediction both empty: Dice = IoU = precision = recall = clDice and its two parts = NSD = 1, "
    "and the distances are 0. "
    "One of them empty: all of these are 0, and the distances are undefined. "
    "Specificity is 1 where the truth covers the whole image. "
    "Recall and precision by width are undefined without vessel of that width, the areas under curves without "
    "probabilities and where the truth contains only vessel or only background. "
    "Means are over the images where a value is defined."
)

_OUTLINE = (
    "outlines: mask pixels next to background or to the image's edge (4 neighbours); distances between pixel centres"
)
_SKELETON = "centrelines by scikit-image's skeletonize, 2D"
_COMPONENTS = "components are 8-connected, background is 4-connected"
_WIDTH = (
    "width: twice the distance from the centreline to the nearest background, minus 1 px; a pixel has the width of the "
    "nearest centreline pixel"
)
_CLDICE = "Shit et al., clDice, CVPR 2021"
_RELOADED = "Maier-Hein et al., Metrics reloaded, Nature Methods 2024"


@dataclass(frozen=True)
class Metric:
    """Definition of one metric."""

    name: str  # key in results
    label: str  # name in reports
    meaning: str
    convention: str = ""  # the choice made where implementations differ
    lower_is_better: bool = False
    unit: Literal["", "px/mm", "count"] = ""  # "": a fraction, MCC -1..1; "px/mm": mm with a spacing, else pixels
    needs_probabilities: bool = False
    scaled: bool = False  # depends on the spacing, as a length or by a limit in mm: compare only results of one unit
    source: str = ""  # paper of the definition


def _overlap() -> Iterator[Metric]:
    yield Metric(
        "dice", "Dice", "overlap: twice the common pixels over the sum of both masks", source="Dice, Ecology 1945"
    )
    yield Metric(
        "iou", "IoU", "overlap: common pixels over the union of both masks", source="Jaccard, New Phytologist 1912"
    )
    yield Metric("precision", "Precision", "fraction of the predicted vessel that is vessel")
    yield Metric("recall", "Recall", "fraction of the vessel that was found; also called sensitivity")
    yield Metric("specificity", "Specificity", "fraction of the background that stays background")
    yield Metric(
        "accuracy", "Accuracy", "fraction of all pixels that is correct; high for any method where vessels are thin"
    )
    yield Metric(
        "balanced_accuracy",
        "Balanced accuracy",
        "mean of recall and specificity: vessel and background have equal weight",
        "over the classes that the truth contains",
        source="Brodersen et al., ICPR 2010",
    )
    yield Metric(
        "mcc",
        "MCC",
        "Matthews' correlation of prediction and truth, -1 to 1; 0 is chance",
        "where a margin is 0: 1 or -1 if all pixels are of one kind, right or wrong, else 0 (Chicco and Jurman 2020)",
        source="Matthews, BBA 1975; Chicco and Jurman, BMC Genomics 2020",
    )


def _ranking() -> Iterator[Metric]:
    yield Metric(
        "roc_auc",
        "ROC-AUC",
        "probability that a vessel pixel is ranked above a background pixel",
        "of all pixels of an image; exact, ties count half",
        needs_probabilities=True,
        source="Hanley and McNeil, Radiology 1982",
    )
    yield Metric(
        "pr_auc",
        "PR-AUC",
        "precision averaged over all recalls; chance level is the fraction of the image that is vessel",
        "average precision: steps, no interpolation between thresholds",
        needs_probabilities=True,
        source="Davis and Goadrich, ICML 2006",
    )


def _centrelines() -> Iterator[Metric]:
    yield Metric(
        "cldice",
        "clDice",
        "Dice of the centrelines: rewards connected, complete trees, whatever their width",
        f"harmonic mean of topology precision and sensitivity; {_SKELETON}",
        source=_CLDICE,
    )
    yield Metric(
        "topology_precision",
        "Topology precision",
        "fraction of the prediction's centreline inside the vessel: false branches lower it",
        _SKELETON,
        source=_CLDICE,
    )
    yield Metric(
        "topology_sensitivity",
        "Topology sensitivity",
        "fraction of the vessel's centreline that was found: gaps and missing branches lower it",
        _SKELETON,
        source=_CLDICE,
    )


def _surfaces() -> Iterator[Metric]:
    distance = partial(Metric, lower_is_better=True, unit="px/mm", scaled=True)
    yield distance(
        "hd",
        "HD",
        "Hausdorff distance: the largest distance from one outline to the other",
        _OUTLINE,
        source="Huttenlocher et al., PAMI 1993",
    )
    yield distance(
        "hd95",
        "HD95",
        "95th percentile of the distances from one outline to the other, of the worse direction",
        f"the larger of the two directions' percentiles, interpolated linearly; {_OUTLINE}",
        source=_RELOADED,
    )
    yield distance(
        "assd",
        "ASSD",
        "mean distance from one outline to the other",
        f"average symmetric surface distance: mean over the pixels of both outlines together; {_OUTLINE}",
        source="Heimann et al., IEEE TMI 2009",
    )
    yield Metric(
        "nsd",
        "NSD",
        f"fraction of both outlines within {NSD_TOLERANCE_PX:g} px of the other ({NSD_TOLERANCE_MM:g} mm with spacing)",
        f"normalised surface distance, outline pixels counted; {_OUTLINE}",
        scaled=True,
        source="Nikolov et al., JMIR 2021",
    )


def _components() -> Iterator[Metric]:
    count = partial(Metric, lower_is_better=True, unit="count")
    betti = "Hu et al., Topology-Preserving Deep Image Segmentation, NeurIPS 2019"
    yield count(
        "betti_0_error",
        "Betti-0 error",
        "difference in the number of connected components: a fragmented tree has too many",
        f"of the whole image; {_COMPONENTS}",
        source=betti,
    )
    yield count(
        "betti_1_error",
        "Betti-1 error",
        "difference in the number of holes: loops that are closed wrongly or not at all",
        f"of the whole image; {_COMPONENTS}; background at the image's edge is no hole",
        source=betti,
    )
    yield count(
        "components_error",
        "Unmatched components",
        "predicted components without any vessel, plus vessel components without any prediction",
        "match: at least one common pixel; components are 8-connected",
    )


def _widths() -> Iterator[Metric]:
    (thin_px, wide_px), (thin_mm, wide_mm) = EDGES_PX, EDGES_MM
    classes = {
        "thin": f"below {thin_px:g} px ({thin_mm:g} mm with spacing)",
        "medium": f"{thin_px:g} to below {wide_px:g} px ({thin_mm:g} to {wide_mm:g} mm with spacing)",
        "wide": f"{wide_px:g} px and more ({wide_mm:g} mm with spacing)",
    }
    for word, limits in classes.items():
        meaning = f"fraction of the {word} vessel that was found: {limits}"
        yield Metric(f"recall_{word}", f"Recall, {word}", meaning, f"widths of the truth; {_WIDTH}", scaled=True)
    for word, limits in classes.items():
        meaning = f"fraction of the predicted {word} vessel that is vessel: {limits}"
        convention = f"widths of the prediction; {_WIDTH}"
        yield Metric(f"precision_{word}", f"Precision, {word}", meaning, convention, scaled=True)


METRIC_TABLE: dict[str, Metric] = {
    metric.name: metric
    for family in (_overlap, _ranking, _centrelines, _surfaces, _components, _widths)
    for metric in family()
}
METRICS = tuple(METRIC_TABLE)
