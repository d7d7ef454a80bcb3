"""Masks at twice SAM2's resolution: what SAM2 answers, enlarged, and a correction that starts at zero."""

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

    kind: `features`: from SAM2's embedding at stride 4 alone; `pixels`: from the square view too, through two
    convolutions, since a vessel thinner than four pixels is in the view and perhaps not in the embedding.
    The token's part of the product starts at zero, so the first answers are SAM2's own, enlarged.
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
        """coarse: (objects, h, w), SAM2's logits. embedding: (objects, 32, h, w), its upscaled one. tokens: (objects,
        256), the mask token behind each of these logits. view: (images, 3, 4 h, 4 w), normalised or uint8,
        read by kind `pixels` only. image_of_mask: (objects,) int64. Returns (objects, 2 h, 2 w), logits before sigmoid.
        """
        fine = self.upscale(embedding)
        if self.view is not None:
            if view is None:
                raise ValueError('fine_masks="pixels" reads the square view, and none was given')
            fine = fine + self.view(normalised_view(view, fine.dtype))[image_of_mask]
        fine = functional.gelu(self.mix(functional.gelu(self.norm(fine))))
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
    """While it lasts, what SAM2's mask decoder multiplies its tokens with is put into the list: (objects, 32, h, w)."""
    kept: list[Tensor] = []
    last = decoder.output_upscaling[-1]
    hook = last.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        hook.remove()
