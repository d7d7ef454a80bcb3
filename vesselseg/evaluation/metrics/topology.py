"""Centrelines, pieces and holes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from vesselseg.evaluation.metrics.masks import Mask

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def centreline_metrics(
    prediction: Mask, truth: Mask, prediction_skeleton: Mask, truth_skeleton: Mask
) -> dict[str, float]:
    """clDice and its halves, by Shit et al., "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure
    Segmentation", CVPR 2021.

    Topology precision is the part of the prediction's skeleton that lies inside the truth, topology sensitivity the
    part of the truth's skeleton that lies inside the prediction, clDice their harmonic mean.
    """
    if not prediction.any() or not truth.any():
        value = float(not prediction.any() and not truth.any())
        return dict.fromkeys(("cldice", "topology_precision", "topology_sensitivity"), value)
    precision, sensitivity = _part_inside(prediction_skeleton, truth), _part_inside(truth_skeleton, prediction)
    total = precision + sensitivity
    return {
        "cldice": 2 * precision * sensitivity / total if total else 0.0,
        "topology_precision": precision,
        "topology_sensitivity": sensitivity,
    }


def piece_metrics(prediction: Mask, truth: Mask) -> dict[str, float]:
    """Errors of the Betti numbers, and pieces without any counterpart; masks (height, width)."""
    of_prediction, predicted = label(prediction, _EIGHT_NEIGHBOURS)
    of_truth, labelled = label(truth, _EIGHT_NEIGHBOURS)
    untouched = predicted + labelled - _touched(of_prediction, truth) - _touched(of_truth, prediction)
    return {
        "betti_0_error": float(abs(predicted - labelled)),
        "betti_1_error": float(abs(holes(prediction) - holes(truth))),
        "components_error": float(untouched),
    }


def holes(mask: Mask) -> int:
    """Betti-1 of a mask whose pixels touch by edges and corners: pieces of background, which touch by edges alone,
    without the one outside. What lies beyond the image is outside.
    """
    return int(label(~np.pad(mask, 1))[1]) - 1


def _part_inside(skeleton: Mask, mask: Mask) -> float:
    return float(np.count_nonzero(skeleton & mask) / np.count_nonzero(skeleton))


def _touched(pieces: NDArray[np.int32], mask: Mask) -> int:
    """How many of the labelled pieces share a pixel with mask."""
    return int(np.count_nonzero(np.unique(pieces[mask])))
