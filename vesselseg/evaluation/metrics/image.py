"""All metrics of one image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize

from vesselseg.evaluation.metrics.masks import Mask, checked_masks, checked_spacing, occupied
from vesselseg.evaluation.metrics.overlap import overlap_metrics
from vesselseg.evaluation.metrics.ranking import ranking_metrics
from vesselseg.evaluation.metrics.surfaces import surface_metrics
from vesselseg.evaluation.metrics.table import METRICS
from vesselseg.evaluation.metrics.topology import centreline_metrics, piece_metrics
from vesselseg.evaluation.metrics.widths import width_metrics


def image_metrics(
    prediction: Mask,
    truth: Mask,
    probabilities: NDArray[np.floating] | None = None,
    spacing: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Every metric of one image, in the order of METRICS; NaN where one is undefined.

    prediction, truth: (height, width) bool. probabilities: (height, width) in 0..1; without them the areas under
    curves are NaN. spacing: (row, column) mm per pixel; without it lengths are pixels. Raises ValueError where the
    arrays are not of one size, and for a spacing or probabilities out of range.
    """
    prediction, truth = checked_masks(prediction, truth)
    spacing = None if spacing is None else checked_spacing(spacing)
    found = {**overlap_metrics(prediction, truth), **ranking_metrics(probabilities, truth)}
    part = occupied(prediction | truth)
    prediction, truth = prediction[part], truth[part]
    skeletons = skeletonize(prediction), skeletonize(truth)
    found |= surface_metrics(prediction, truth, spacing)
    found |= centreline_metrics(prediction, truth, *skeletons)
    found |= piece_metrics(prediction, truth)
    found |= width_metrics(prediction, truth, *skeletons, spacing)
    return {name: found[name] for name in METRICS}
