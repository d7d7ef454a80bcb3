"""Run an encoder over images: at once while it trains, a few at a time and without gradients while it is frozen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Encode = Callable[[Tensor], tuple[Tensor, ...]]


def trains(module: nn.Module) -> bool:
    """Whether any weight of the module trains."""
    return any(parameter.requires_grad for parameter in module.parameters())


def encode_images(encoder: nn.Module, encode: Encode, images: Tensor, at_once: int) -> tuple[Tensor, ...]:
    """What `encode` makes of images (images, ...), image after image; `encoder` holds the weights that it uses.

    Without gradients nothing is kept for a backward pass, so `at_once` images bound the memory, however many there are.
    Partitioned weights (ZeRO-3) are gathered by all processes together: there everyone calls the encoder once, since
    images may be cut into different numbers of tiles.
    """
    if torch.is_grad_enabled() and trains(encoder):
        return encode(images)
    partitioned = any(hasattr(parameter, "ds_id") for parameter in encoder.parameters())
    with torch.no_grad():
        pieces = [encode(piece) for piece in images.split(len(images) if partitioned else at_once)]
        return pieces[0] if len(pieces) == 1 else tuple(torch.cat(level) for level in zip(*pieces))
