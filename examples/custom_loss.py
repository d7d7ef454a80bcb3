"""A mask loss and a validation metric of your own; examples/custom_loss_config.py trains with them.

bash tools/dist.sh train examples/custom_loss_config.py 1
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vesselseg.registry import LOSSES, METRICS


@LOSSES.register_module()
def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Binary cross-entropy with less weight on pixels that are nearly right (Lin et al. 2017, equation 4, alpha 1).

    logits, target (0 to 1): (objects, H, W). Returns (objects,); the weight in the config multiplies their mean.
    """
    elements = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")  # (objects, H, W)
    error = (torch.sigmoid(logits) - target).abs()  # (objects, H, W), 0 to 1
    return (error**gamma * elements).flatten(1).mean(1)


@METRICS.register_module()
def precision(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Share of the predicted pixels that are vessel; NaN, which is not counted, where nothing is predicted.

    mask, truth: (height, width) bool, of one phrase of one validation image at the best threshold.
    """
    return float((mask & truth).sum() / mask.sum()) if mask.any() else float("nan")
