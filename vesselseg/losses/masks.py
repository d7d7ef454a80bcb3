"""Losses on mask logits: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def area_average(mask: Tensor, height: int, width: int) -> Tensor:
    """Labels at the logits' size: each cell holds the vessel fraction of the pixels it covers.

    mask: (objects, H, W) 0/1. Returns (objects, height, width) float32, 0 to 1. A nearest-neighbour reduction loses
    vessels thinner than a cell and caps the Dice that can be reached; the average keeps their width.
    """
    return functional.adaptive_avg_pool2d(mask.float(), (height, width))


def bce_per_object(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels. logits, target (0 to 1): (objects, H, W). Returns (objects,)."""
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)


def dice_per_object(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss, 1 - (2 |pt| + s) / (|p| + |t| + s) (Milletari et al. 2016, with linear denominator).

    logits, target (0 to 1): (objects, H, W). smooth: in pixels; with an empty target the loss falls as |p| falls.
    Returns (objects,), 0 to 1.
    """
    probability, target = torch.sigmoid(logits).flatten(1), target.flatten(1)
    overlap = (probability * target).sum(1)
    return 1 - (2 * overlap + smooth) / (probability.sum(1) + target.sum(1) + smooth)
