"""Centrelines of binary masks, computed on their device: thinning with a lookup table of 256 neighbourhoods."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

# A pixel's eight neighbours are the bits of one byte, the index into the lookup table: x1 (east) is bit 0, then
# counter-clockwise to x8 (south-east).
_CODE = ((8.0, 4.0, 2.0), (16.0, 0.0, 1.0), (32.0, 64.0, 128.0))


def skeleton(mask: Tensor) -> Tensor:
    """Thinning of Guo and Hall, "Parallel thinning with two-subiteration algorithms", CACM 32 (1989), algorithm A1.

    The result is that of ``skimage.morphology.thin``, without a copy to the CPU. It iterates until no pixel changes:
    about half as many passes as the widest vessel has pixels. mask: (objects, H, W), above 0.5 is vessel. Returns
    (objects, H, W) float32, 0 or 1, with the mask's connected components, nowhere outside of the mask.
    """
    if not mask.numel():
        return torch.zeros_like(mask, dtype=torch.float32)
    left = (mask > 0.5).float().unsqueeze(1)  # (objects, 1, H, W), the pixels that are left
    weights = left.new_tensor(_CODE).view(1, 1, 3, 3)
    tables = _removable().to(left.device)
    while True:
        before = left
        for table in tables:
            # A convolution encodes all neighbourhoods at once; codes up to 255 are exact in float32.
            code = functional.conv2d(left, weights, padding=1).round().long()
            left = left * table[code].logical_not()
        if torch.equal(left, before):
            return left.squeeze(1)


def tube(mask: Tensor) -> Tensor:
    """The skeleton dilated by a pixel on each side, inside the mask: (objects, H, W) float32, 0 or 1."""
    wide = functional.max_pool2d(skeleton(mask).unsqueeze(1), 3, 1, 1).squeeze(1)
    return wide * (mask > 0.5)


@functools.cache
def _removable() -> Tensor:
    """(2, 256) bool: neighbourhoods whose centre is removed in the first and in the second sub-iteration."""
    return torch.tensor([[_is_removed(code, number) for code in range(256)] for number in range(2)])


def _is_removed(code: int, subiteration: int) -> bool:
    """Conditions G1, G2 and G3 of the paper."""
    x = [bool(code >> bit & 1) for bit in range(8)]  # x[0] is x1
    # G1: the neighbours form one 8-connected component, so that removing the pixel splits nothing.
    branches = sum(not x[i] and (x[i + 1] or x[(i + 2) % 8]) for i in (0, 2, 4, 6))
    # G2: neither an end point (below 2) nor interior (above 3).
    one = sum(x[i] or x[(i - 1) % 8] for i in (1, 3, 5, 7))
    other = sum(x[i] or x[(i + 1) % 8] for i in (1, 3, 5, 7))
    # G3: each sub-iteration removes pixels from opposite sides only, so that the centreline stays in the middle.
    shift = 4 * subiteration
    kept = (x[1 + shift] or x[2 + shift] or not x[(7 + shift) % 8]) and x[shift]
    return branches == 1 and 2 <= min(one, other) <= 3 and not kept
