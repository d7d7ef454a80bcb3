"""Cine runs and models with memory, for tests."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn

from tests.tiny import picture
from vesselseg.models.sam2_grounding import SAM2Grounding


def shake_memory(grounding: SAM2Grounding, seed: int = 0, present: bool = True) -> None:
    """Perturb all weights of SAM2's memory, so that each has an effect.

    present: whether SAM2 predicts the object as present in every frame.
    """
    generator = torch.Generator().manual_seed(seed)
    sam2 = grounding.sam2
    with torch.no_grad():
        for part in (sam2.memory_attention, sam2.memory_encoder, sam2.obj_ptr_proj, sam2.sam_mask_decoder):
            for parameter in part.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        last = sam2.sam_mask_decoder.pred_obj_score_head.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.fill_(1.0 if present else -1.0)


def cine_frames(count: int, width: int = 150, height: int = 120) -> list[Image.Image]:
    """One image that moves from frame to frame."""
    large = picture(7, width + 4 * count, height)
    return [large.crop((4 * number, 0, 4 * number + width, height)) for number in range(count)]
