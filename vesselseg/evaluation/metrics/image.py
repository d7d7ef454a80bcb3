"""All metrics of one image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize

from vesselseg.evaluation.metrics.masks import Mask, bounding_box, checked_masks, checked_spacing
from vesselseg.evaluation.metrics.overlap import overlap_metrics
from vesselseg.evaluation.metrics.ranking import ranking_metrics
from vesselseg.evaluation.metrics.surfaces import surface_metrics
from vesselseg.evaluation.metrics.table import METRICS
from vesselseg.evaluation.metrics.topology import centreline_metrics, component_metrics
from vesselseg.evaluation.metrics.widths import width_metrics


def image_metrics(
    prediction: Mask,
    truth: Mask,
    probabilities: NDArray[np.floating] | None = None,
    spacing: tuple[float, float] | None = None,
    ignored: Mask | None = None,
) -> dict[str, float]:
    """Every metric of one image, in the order of METRICS; NaN where one is undefined.

    prediction, truth: (height, width) bool. probabilities: (height, width) in 0..1; without them the areas under
    curves are NaN. spacing: (row, column) in mm per pixel; without it lengths are in pixels.
    ignored: (height, width) bool, pixels that count nowhere: left out of counts and curves, background for metrics of
    shape. Raises ValueError for
    arrays of different sizes, and for a spacing or probabilities out of range.
    """
    prediction, truth = checked_masks(prediction, truth)
    spacing = None if spacing is None else checked_spacing(spacing)
    if ignored is None or not ignored.any():
        values = {**overlap_metrics(prediction, truth), **ranking_metrics(probabilities, truth)}
    else:
        known = ~ignored
        values = overlap_metrics(prediction[known], truth[known])
        values |= ranking_metrics(None if probabilities is None else probabilities[known], truth[known])
        prediction, truth = prediction & known, truth & known
    # Metrics of shape depend on the neighbourhood of the masks only; vessels cover a small part of an image.
    box = bounding_box(prediction | truth)
    prediction, truth = prediction[box], truth[box]
    skeletons = skeletonize(prediction), skeletonize(truth)
    values |= surface_metrics(prediction, truth, spacing)
    values |= centreline_metrics(prediction, truth, *skeletons)
    values |= component_metrics(prediction, truth)
    values |= width_metrics(prediction, truth, *skeletons, spacing)
    return {name: values[name] for name in METRICS}
