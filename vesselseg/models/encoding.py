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
    """Apply `encode` to images (images, ...), at most `at_once` of them at a time unless the encoder trains.

    encoder: the module whose weights `encode` uses. Without gradients no activations are kept for a backward pass, so
    that `at_once` bounds the memory, whatever the number of images.
    """
    if torch.is_grad_enabled() and trains(encoder):
        return encode(images)
    # Partitioned weights (ZeRO-3) are gathered by all processes together, so that each must call the encoder equally
    # often; images may have different numbers of tiles, so each process calls it once.
    partitioned = any(hasattr(parameter, "ds_id") for parameter in encoder.parameters())
    with torch.no_grad():
        pieces = [encode(piece) for piece in images.split(len(images) if partitioned else at_once)]
        return pieces[0] if len(pieces) == 1 else tuple(torch.cat(level) for level in zip(*pieces))
