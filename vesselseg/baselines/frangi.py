"""The Frangi filter as a baseline, with its parameters searched on labelled images.

Frangi et al., "Multiscale vessel enhancement filtering", MICCAI 1998, by ``skimage.filters.frangi``. Each scale is
computed separately on the image multiplied by sigma squared: the paper's scale normalisation, which scikit-image omits
and without which the smallest scale dominates.
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
"""The threshold for the probabilities of ``apply_frangi``."""


@dataclass(frozen=True)
class FrangiParams:
    """The tuned parameters."""

    sigmas: tuple[float, ...] = (2.0, 4.0)  # scales in pixels
    beta: float = 0.5  # sensitivity to blobs, the paper's beta
    gamma: float = 1.0  # sensitivity to contrast, the paper's c, in standard deviations of the preprocessed image
    background: float = 0.0  # sigma of the subtracted Gaussian blur, as a fraction of the shorter side; 0: off
    clahe: bool = False  # contrast-limited adaptive histogram equalisation first
    border: float = 0.0  # width of the blanked border, as a fraction of the shorter side
    relative: bool = False  # divide vesselness by its 99th percentile in the image
    level: float = 0.1  # vesselness above it is vessel
    smallest: int = 0  # components with fewer pixels are dropped, except the largest of the image

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {**asdict(self), "sigmas": list(self.sigmas)}


def apply_frangi(image: NDArray[np.uint8], params: FrangiParams) -> NDArray[np.float32]:
    """Probabilities (height, width) float32 in 0..1 of an image (height, width) or (height, width, 3) uint8.

    vesselness / (vesselness + level), which is 0.5 at the tuned level; components that are too small are halved, which
    puts them below 0.5. The mask is ``probability > THRESHOLD``.
    """
    # s / (s + level) is monotone in s and 0.5 at s = level, so one threshold serves all parameters.
    strength = vesselness(image, params)
    probabilities = strength / (strength + np.float32(params.level))
    small = strength > params.level
    small &= ~drop_small(small, params.smallest)
    probabilities[small] *= 0.5
    return probabilities


def vesselness(image: NDArray[np.uint8], params: FrangiParams) -> NDArray[np.float32]:
    """Frangi's vesselness of dark vessels, (height, width) float32, 0 or more; independent of level and smallest."""
    grey = preprocess(image, params)
    return combine_scales([scale_response(grey, sigma, params) for sigma in params.sigmas], params)


def preprocess(image: NDArray[np.uint8], params: FrangiParams) -> NDArray[np.float32]:
    """Grey values (height, width), equalised and without background as in params, with mean 0 and deviation 1."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if params.clahe:
        grey = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(8, 8)).apply(np.ascontiguousarray(grey))
    values = grey.astype(np.float32)
    # A blurred copy estimates the slow background, e.g. of lung and diaphragm.
    if params.background:
        sigma = params.background * min(values.shape)
        values = np.subtract(values, cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT))
    deviation = float(values.std())
    return (values - values.mean()) / np.float32(deviation if deviation > 0 else 1.0)


def scale_response(grey: NDArray[np.float32], sigma: float, params: FrangiParams) -> NDArray[np.float32]:
    """Vesselness at one scale, (height, width) float32 in 0..1; grey: from ``preprocess``."""
    response = frangi(
        grey * np.float32(sigma**2), sigmas=[sigma], beta=params.beta, gamma=params.gamma, black_ridges=True
    )
    return np.asarray(response, dtype=np.float32)


def combine_scales(responses: Sequence[NDArray[np.float32]], params: FrangiParams) -> NDArray[np.float32]:
    """Maximum over scales at every pixel, (height, width), with border and relative applied."""
    strength = np.max(np.stack(responses), axis=0)  # (scales, height, width) -> (height, width)
    margin = round(params.border * min(strength.shape))
    # Collimator edges respond like vessels.
    if margin:
        inside = strength[margin:-margin, margin:-margin].copy()
        strength[:] = 0
        strength[margin:-margin, margin:-margin] = inside
    if params.relative:
        strength = strength / np.float32(max(float(np.percentile(strength, 99)), 1e-6))
    return strength


def drop_small(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    """The mask (height, width) without 8-connected components of fewer than ``smallest`` pixels; the largest stays."""
    if smallest <= 1:
        return mask
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # label 0 is the background
    kept = areas >= min(smallest, max(int(areas.max()), 1))
    return np.asarray(kept[labels])
