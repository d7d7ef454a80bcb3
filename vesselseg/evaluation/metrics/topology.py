"""Centrelines, connected components and holes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from vesselseg.evaluation.metrics.masks import Mask

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def centreline_metrics(
    prediction: Mask, truth: Mask, prediction_skeleton: Mask, truth_skeleton: Mask
) -> dict[str, float]:
    """clDice, topology precision and sensitivity, 0..1; Shit et al., "clDice - a Novel Topology-Preserving Loss
    Function for Tubular Structure Segmentation", CVPR 2021.

    Topology precision is the fraction of the prediction's skeleton inside the truth, topology sensitivity the fraction
    of the truth's skeleton inside the prediction, and clDice their harmonic mean. All arguments: (height, width) bool.
    """
    if not prediction.any() or not truth.any():
        value = float(not prediction.any() and not truth.any())
        return dict.fromkeys(("cldice", "topology_precision", "topology_sensitivity"), value)
    precision, sensitivity = _fraction_inside(prediction_skeleton, truth), _fraction_inside(truth_skeleton, prediction)
    total = precision + sensitivity
    return {
        "cldice": 2 * precision * sensitivity / total if total else 0.0,
        "topology_precision": precision,
        "topology_sensitivity": sensitivity,
    }


def component_metrics(prediction: Mask, truth: Mask) -> dict[str, float]:
    """Errors of the Betti numbers and the number of unmatched components, counts; masks (height, width) bool.

    The error of a Betti number is its absolute difference, as in Hu et al., "Topology-Preserving Deep Image
    Segmentation", NeurIPS 2019, but over the whole image instead of patches.
    """
    # label maps (height, width), 0 is background, and numbers of components
    predicted_labels, predicted = label(prediction, _EIGHT_NEIGHBOURS)
    true_labels, labelled = label(truth, _EIGHT_NEIGHBOURS)
    unmatched = predicted + labelled - _overlapping(predicted_labels, truth) - _overlapping(true_labels, prediction)
    return {
        "betti_0_error": float(abs(predicted - labelled)),
        "betti_1_error": float(abs(holes(prediction) - holes(truth))),
        "components_error": float(unmatched),
    }


def holes(mask: Mask) -> int:
    """Betti-1 number of an 8-connected mask: the 4-connected components of its background, minus the outer one."""
    # The padding joins all background at the image's edge to the outer component.
    return int(label(~np.pad(mask, 1))[1]) - 1


def _fraction_inside(skeleton: Mask, mask: Mask) -> float:
    return float(np.count_nonzero(skeleton & mask) / np.count_nonzero(skeleton))


def _overlapping(label_map: NDArray[np.int32], mask: Mask) -> int:
    """Number of components that share a pixel with mask."""
    return int(np.count_nonzero(np.unique(label_map[mask])))
