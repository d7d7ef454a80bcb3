"""What is done to a mask after the threshold: small components away, small holes filled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

if TYPE_CHECKING:
    from vesselseg.inference.predictor import Prediction


@dataclass(frozen=True)
class PostProcessing:
    """Sizes in pixels, 0 switches a step off.

    min_component: components of fewer pixels go; pixels that touch by an edge or a corner belong together.
    fill_holes: holes of up to so many pixels are filled, after that; a hole is background that neither an edge between
    pixels nor the image's border connects to the rest.
    """

    min_component: int = 0
    fill_holes: int = 0

    def sizes(self) -> dict[str, int]:
        """The steps that are on, in the order in which they are done."""
        steps = {"min_component": self.min_component, "fill_holes": self.fill_holes}
        return {name: size for name, size in steps.items() if size}

    def apply(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask (height, width) bool after all steps that are on; the one given is not changed."""
        if self.min_component:
            mask = without_small_components(mask, self.min_component)
        if self.fill_holes:
            mask = with_holes_filled(mask, self.fill_holes)
        return mask

    def of(self, prediction: Prediction) -> Prediction:
        """A prediction with its masks after all steps that are on."""
        masks = [self.apply(mask) for mask in prediction.masks] if self.sizes() else None
        return prediction if not masks else replace(prediction, masks=np.stack(masks))


NO_STEPS = PostProcessing()


def without_small_components(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask (height, width) without its 8-connected components of fewer than so many pixels."""
    labels = label(mask, connectivity=2)
    large = np.bincount(labels.ravel()) >= pixels
    large[0] = False
    return np.asarray(large[labels])


def with_holes_filled(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask (height, width) with those 4-connected holes filled that have at most so many pixels."""
    labels = label(~mask, connectivity=1)
    small = np.bincount(labels.ravel()) <= pixels
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    small[border] = False
    small[0] = False
    return np.asarray(mask | small[labels])
