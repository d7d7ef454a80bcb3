"""Losses on mask logits: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def area_average(mask: Tensor, height: int, width: int) -> Tensor:
    """Labels at the logits' size: each cell is the fraction of its area that is vessel.

    mask: (objects, H, W) 0/1. Returns (objects, height, width) float32, 0 to 1. Nearest-neighbour downsampling loses
    vessels thinner than a cell, which limits the Dice that can be reached; the average preserves their width. Where the
    sizes do not divide, a pixel counts in each cell by the fraction of the pixel inside it.
    """
    if mask.shape[-2] % height == 0 and mask.shape[-1] % width == 0:
        return functional.avg_pool2d(mask.float(), (mask.shape[-2] // height, mask.shape[-1] // width))
    # The overlap of a pixel and a cell is the product of their overlaps along rows and along columns.
    rows = _overlap(height, mask.shape[-2], mask.device)  # (height, H)
    columns = _overlap(width, mask.shape[-1], mask.device)  # (width, W)
    # Rounding may leave sums slightly above 1, which binary cross-entropy does not accept as a label.
    return (rows @ mask.float() @ columns.T).clamp(0, 1)


def _overlap(cells: int, pixels: int, device: torch.device) -> Tensor:
    """Fraction of each of `cells` equal intervals that each pixel covers: (cells, pixels) float32; rows sum to 1."""
    edges = torch.arange(cells + 1, device=device, dtype=torch.float64) * pixels / cells
    pixel = torch.arange(pixels, device=device, dtype=torch.float64)
    # Length of the intersection of cell [edge, next edge] and pixel [p, p + 1]; negative where they are apart.
    shared = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return (shared.clamp(min=0) * cells / pixels).float()


def bce_elements(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every pixel. logits, target (0 to 1): one shape, which is returned."""
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


def bce_per_object(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels. logits, target (0 to 1): (objects, H, W). Returns (objects,)."""
    return bce_elements(logits, target).flatten(1).mean(1)


def dice_per_object(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss, 1 - (2 |pt| + s) / (|p| + |t| + s) (Milletari et al. 2016, with linear denominator).

    logits, target (0 to 1): (objects, H, W). smooth: in pixels; with an empty target the loss falls as |p| falls.
    Returns (objects,), 0 to 1.
    """
    probability, target = torch.sigmoid(logits).flatten(1), target.flatten(1)
    overlap = (probability * target).sum(1)
    return 1 - (2 * overlap + smooth) / (probability.sum(1) + target.sum(1) + smooth)
