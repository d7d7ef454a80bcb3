"""The Frangi filter as a baseline, with its parameters searched on labelled images.

Frangi et al., "Multiscale vessel enhancement filtering", MICCAI 1998, by ``skimage.filters.frangi``. Every scale is run
on its own with the image multiplied by sigma squared: that is the paper's scale normalisation, which scikit-image
leaves out, and without which the smallest scale drowns the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import frangi

THRESHOLD = 0.5
"""The threshold that belongs to the probabilities of ``apply_frangi``."""


@dataclass(frozen=True)
class FrangiParams:
    """What is tuned.

    sigmas: scales in pixels. beta: sensitivity to blobs. gamma: sensitivity to contrast, in standard deviations of the
    prepared image. background: width of the Gaussian whose blur is subtracted, as a part of the shorter side; 0 is
    off. clahe: adaptive histogram equalisation first. border: part of the shorter side blanked along the edges.
    relative: vesselness is divided by its 99th percentile in the image. level: vesselness above it is vessel.
    smallest: connected parts with fewer pixels are dropped, but for the largest part of the image.
    """

    sigmas: tuple[float, ...] = (2.0, 4.0)
    beta: float = 0.5
    gamma: float = 1.0
    background: float = 0.0
    clahe: bool = False
    border: float = 0.0
    relative: bool = False
    level: float = 0.1
    smallest: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "sigmas": list(self.sigmas)}


def apply_frangi(image: NDArray[np.uint8], params: FrangiParams) -> NDArray[np.float32]:
    """Probabilities (height, width) float32 in 0..1 of an image (height, width) or (height, width, 3) uint8.

    vesselness / (vesselness + level), so 0.5 is where vesselness equals the tuned level; parts that are too small are
    halved, which puts them below 0.5. The mask is ``probability > THRESHOLD``.
    """
    strength = vesselness(image, params)
    probabilities = strength / (strength + np.float32(params.level))
    small = strength > params.level
    small &= ~drop_small(small, params.smallest)
    probabilities[small] *= 0.5
    return probabilities


def vesselness(image: NDArray[np.uint8], params: FrangiParams) -> NDArray[np.float32]:
    """Frangi's vesselness of dark vessels, (height, width) float32 from 0; level and smallest play no part."""
    prepared = prepare(image, params)
    return finish([scale_response(prepared, sigma, params) for sigma in params.sigmas], params)


def prepare(image: NDArray[np.uint8], params: FrangiParams) -> NDArray[np.float32]:
    """Grey, equalised and without background as params say, with mean 0 and standard deviation 1."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if params.clahe:
        grey = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(8, 8)).apply(np.ascontiguousarray(grey))
    values = grey.astype(np.float32)
    if params.background:
        sigma = params.background * min(values.shape)
        values = np.subtract(values, cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT))
    deviation = float(values.std())
    return (values - values.mean()) / np.float32(deviation if deviation > 0 else 1.0)


def scale_response(prepared: NDArray[np.float32], sigma: float, params: FrangiParams) -> NDArray[np.float32]:
    """Vesselness at one scale, (height, width) float32 in 0..1; prepared: as from ``prepare``."""
    response = frangi(
        prepared * np.float32(sigma**2), sigmas=[sigma], beta=params.beta, gamma=params.gamma, black_ridges=True
    )
    return np.asarray(response, dtype=np.float32)


def finish(responses: Sequence[NDArray[np.float32]], params: FrangiParams) -> NDArray[np.float32]:
    """The strongest scale of every pixel, with border and relative applied."""
    strength = np.max(np.stack(responses), axis=0)
    margin = round(params.border * min(strength.shape))
    if margin:
        inside = strength[margin:-margin, margin:-margin].copy()
        strength[:] = 0
        strength[margin:-margin, margin:-margin] = inside
    if params.relative:
        strength = strength / np.float32(max(float(np.percentile(strength, 99)), 1e-6))
    return strength


def drop_small(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    """The mask (height, width) without 8-connected parts of fewer than ``smallest`` pixels; the largest stays."""
    if smallest <= 1:
        return mask
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    kept = areas >= min(smallest, max(int(areas.max()), 1))
    return np.asarray(kept[labels])
