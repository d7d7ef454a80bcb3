"""The training loss: answers and masks, weighted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vesselseg.data.batch import Batch
from vesselseg.losses.masks import area_average, bce_per_object, dice_per_object

MASK_TARGETS = ("area", "full")


class TotalLoss(nn.Module):
    """Cross-entropy on answer tokens, BCE and Dice on masks.

    lm, bce, dice: weights. mask_target: `area` compares the logits, at a quarter of SAM2's side, with area-averaged
    labels; `full` enlarges the logits to the image and compares there (more memory, exact borders).
    """

    def __init__(self, lm: float = 1.0, bce: float = 2.0, dice: float = 0.5, mask_target: str = "area") -> None:
        super().__init__()
        if mask_target not in MASK_TARGETS:
            raise ValueError(f"loss.mask_target is {mask_target!r}; expected one of {', '.join(MASK_TARGETS)}")
        self.lm, self.bce, self.dice = lm, bce, dice
        self.mask_target = mask_target

    def forward(
        self, mask_logits: Tensor, answer_logits: Tensor, answer_labels: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """The weighted parts; their sum is the loss.

        mask_logits: (all objects, h, w). answer_logits: (tokens, vocabulary). answer_labels: (tokens,).
        Masks are averaged over objects, so an image with many objects counts by each of them.
        """
        bce, dice = self._mask_losses(mask_logits.float(), batch)
        return {
            "loss_lm": self.lm * functional.cross_entropy(answer_logits.float(), answer_labels),
            "loss_bce": self.bce * bce,
            "loss_dice": self.dice * dice,
        }

    def _mask_losses(self, mask_logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        bce, dice = [], []
        for logits, masks in zip(mask_logits.split(list(batch.objects_per_image)), batch.masks):
            if self.mask_target == "area":
                target = area_average(masks, *logits.shape[-2:])
            else:
                target = masks.float()
                logits = functional.interpolate(
                    logits.unsqueeze(1), size=target.shape[-2:], mode="bilinear", align_corners=False
                ).squeeze(1)
            bce.append(bce_per_object(logits, target))
            dice.append(dice_per_object(logits, target))
        return torch.cat(bce).mean(), torch.cat(dice).mean()
