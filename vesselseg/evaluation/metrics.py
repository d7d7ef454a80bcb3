"""Metrics of one predicted mask against its truth, from pixel counts and skeletons.

Empty masks, one rule everywhere (here, in ``threshold`` and in the report): where truth and prediction are both
empty, Dice = IoU = precision = recall = clDice = 1; where only one of them is empty, the five are 0. Specificity is 1
where the truth leaves no background that could be marked wrongly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize

METRICS = ("dice", "iou", "precision", "recall", "specificity", "accuracy", "cldice")

EMPTY_MASK_RULE = (
    "Truth and prediction both empty: Dice = IoU = precision = recall = clDice = 1. "
    "One of them empty: all five are 0. "
    "Specificity is 1 where the truth covers the whole image."
)


def image_metrics(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """All metrics of one image; prediction and truth: (height, width) bool. Every value lies in 0..1.

    Raises ValueError where the two are not bool masks of one size.
    """
    prediction, truth = _checked(prediction, truth)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    tn = truth.size - tp - fp - fn
    both_empty = tp + fp + fn == 0
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn, both_empty),
        "iou": _ratio(tp, tp + fp + fn, both_empty),
        "precision": _ratio(tp, tp + fp, both_empty),
        "recall": _ratio(tp, tp + fn, both_empty),
        "specificity": _ratio(tn, tn + fp, True),
        "accuracy": (tp + tn) / truth.size,
        "cldice": centreline_dice(prediction, truth),
    }


def centreline_dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """clDice of Shit et al., "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation",
    CVPR 2021: the harmonic mean of topology precision and topology sensitivity; masks (height, width) bool.
    """
    precision, sensitivity = topology_precision_sensitivity(prediction, truth)
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total > 0 else 0.0


def topology_precision_sensitivity(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """The two halves of clDice; masks (height, width) bool.

    Topology precision is the part of the prediction's skeleton that lies inside the truth, topology sensitivity the
    part of the truth's skeleton that lies inside the prediction. Skeletons by ``skimage.morphology.skeletonize``.
    """
    prediction, truth = _checked(prediction, truth)
    if not prediction.any() or not truth.any():
        value = float(not prediction.any() and not truth.any())
        return value, value
    rows, columns = _bounding_box(prediction | truth)
    prediction, truth = prediction[rows, columns], truth[rows, columns]
    return _part_inside(skeletonize(prediction), truth), _part_inside(skeletonize(truth), prediction)


def _part_inside(skeleton: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(skeleton & mask) / np.count_nonzero(skeleton))


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _ratio(part: int, whole: int, without_whole: bool) -> float:
    return part / whole if whole else float(without_whole)


def _checked(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both masks with every byte 0 or 1.

    Pillow hands out 1-bit images as bool arrays that hold the byte 255: NumPy counts it as 255 and scikit-image uses
    it as an index, beyond the end of its table.
    """
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.size:
            raise ValueError(f"{name}: expected a (height, width) bool mask, found {mask.dtype} {mask.shape}")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape}, truth {truth.shape}; expected one size")
    return prediction.view(np.uint8) != 0, truth.view(np.uint8) != 0
