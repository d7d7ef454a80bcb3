"""Masks at twice SAM2's resolution: SAM2's logits, upsampled, plus a correction that starts at zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam2_utils import MLP, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from vesselseg.dataset.batch import normalised_view

KINDS = ("features", "pixels")
DECODER_DIM = 256  # width of SAM2's mask tokens
COARSE_DIM = 32  # channels of its embedding at stride 4, in every variant
FINE_DIM = 16


class FineMasks(nn.Module):
    """One more step of SAM2's upscaling, to stride 2, and one more product with the mask token.

    kind: `features` reads SAM2's embedding at stride 4 alone; `pixels` also the square view, through two convolutions:
    a vessel thinner than four pixels is visible there, but perhaps lost in the embedding.
    The token's factor starts at zero, so that an untrained head returns SAM2's own logits, upsampled.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"sam2.fine_masks is {kind!r}; expected None, {' or '.join(map(repr, KINDS))}")
        self.upscale = nn.ConvTranspose2d(COARSE_DIM, FINE_DIM, kernel_size=2, stride=2)
        self.view = _of_view() if kind == "pixels" else None
        self.norm = LayerNorm2d(FINE_DIM)
        self.mix = nn.Conv2d(FINE_DIM, FINE_DIM, kernel_size=3, padding=1)
        self.hypernetwork = MLP(DECODER_DIM, DECODER_DIM, FINE_DIM, 3)
        nn.init.zeros_(self.hypernetwork.layers[-1].weight)
        nn.init.zeros_(self.hypernetwork.layers[-1].bias)

    def forward(
        self, coarse: Tensor, embedding: Tensor, tokens: Tensor, view: Tensor | None, image_of_mask: Tensor
    ) -> Tensor:
        """Refine SAM2's logits.

        coarse: (objects, h, w), SAM2's logits. embedding: (objects, 32, h, w), SAM2's upscaled embedding. tokens:
        (objects, 256), the mask tokens that predicted the logits. view: (images, 3, 4 h, 4 w), normalised or uint8,
        read by kind `pixels` only. image_of_mask: (objects,) int64. Returns (objects, 2 h, 2 w), logits before sigmoid.
        """
        fine = self.upscale(embedding)  # (objects, 16, 2 h, 2 w)
        if self.view is not None:
            if view is None:
                raise ValueError('fine_masks="pixels" reads the square view, and none was given')
            fine = fine + self.view(normalised_view(view, fine.dtype))[image_of_mask]
        fine = functional.gelu(self.mix(functional.gelu(self.norm(fine))))
        # As in SAM2's mask decoder: the dot product of each pixel's embedding and the object's weights.
        correction = torch.einsum("oc,ochw->ohw", self.hypernetwork(tokens), fine)
        enlarged = functional.interpolate(coarse.unsqueeze(1), scale_factor=2, mode="bilinear", align_corners=False)
        return enlarged.squeeze(1) + correction


def _of_view() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, FINE_DIM, kernel_size=3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(FINE_DIM, FINE_DIM, kernel_size=3, padding=1),
    )


@contextmanager
def upscaled_embedding(decoder: MaskDecoder) -> Iterator[list[Tensor]]:
    """Collect the upscaled embeddings (objects, 32, h, w) that SAM2's mask decoder computes but does not return."""
    kept: list[Tensor] = []
    last = decoder.output_upscaling[-1]
    hook = last.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        hook.remove()
