"""Post-processing of masks after the threshold: remove small components, fill small holes.

The class is light to import, because a command line declares its options with it: scikit-image, which takes a second,
is imported where a mask is processed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vesselseg.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vesselseg.inference.predictor import Prediction


@dataclass(frozen=True)
class PostProcessing:
    """Sizes in pixels; 0 disables a step. Raises UserError for negative sizes.

    Components are 8-connected. Holes are filled afterwards; a hole is a 4-connected background component that does not
    touch the image border.
    """

    min_component: int = 0
    """remove components with fewer pixels"""
    fill_holes: int = 0
    """fill holes of at most this many pixels"""

    def __post_init__(self) -> None:
        for name, pixels in (("--min-component", self.min_component), ("--fill-holes", self.fill_holes)):
            if pixels < 0:
                raise UserError(f"{name} {pixels}: expected a number of pixels, 0 or more")

    def enabled_steps(self) -> dict[str, int]:
        """The enabled steps and their sizes, in the order of application."""
        steps = {"min_component": self.min_component, "fill_holes": self.fill_holes}
        return {name: size for name, size in steps.items() if size}

    def apply(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask (height, width) bool after all enabled steps; the input is not changed."""
        if self.min_component:
            mask = remove_small_components(mask, self.min_component)
        if self.fill_holes:
            mask = fill_small_holes(mask, self.fill_holes)
        return mask

    def apply_to(self, prediction: Prediction) -> Prediction:
        """A prediction with post-processed masks; its probabilities are unchanged."""
        import numpy as np

        masks = [self.apply(mask) for mask in prediction.masks] if self.enabled_steps() else None
        return prediction if not masks else replace(prediction, masks=np.stack(masks))


NO_POST_PROCESSING = PostProcessing()


def remove_small_components(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask (height, width) without 8-connected components of fewer than `pixels` pixels."""
    import numpy as np
    from skimage.measure import label

    labels = label(mask, connectivity=2)  # (height, width), 0 is background
    large = np.bincount(labels.ravel()) >= pixels
    large[0] = False
    return np.asarray(large[labels])


def fill_small_holes(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask (height, width) with 4-connected holes of at most `pixels` pixels filled."""
    import numpy as np
    from skimage.measure import label

    labels = label(~mask, connectivity=1)  # (height, width), 0 is vessel
    small = np.bincount(labels.ravel()) <= pixels
    # Background that reaches the image border is not enclosed by the mask.
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    small[border] = False
    small[0] = False
    return np.asarray(mask | small[labels])
