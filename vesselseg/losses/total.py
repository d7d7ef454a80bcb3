"""The training loss: a weighted sum of the losses of answer tokens and masks."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vesselseg.dataset.batch import Batch
from vesselseg.losses.masks import area_average, bce_per_object, dice_per_object
from vesselseg.losses.vessels import (
    boundary_bce_per_object,
    focal_tversky_per_object,
    skeleton_recall_per_object,
    soft_cldice_per_object,
    thin_bce_per_object,
)

MASK_TARGETS = ("area", "full")
AT_FULL_SIZE = ("cldice", "skeleton_recall")  # need a binary label, whose centreline area averaging would blur
WITH_UNKNOWN = (torch.int8, torch.float32)  # types of masks with pixels without a label
CERTAIN = -30.0  # logit of a pixel that costs nothing as background
Term = Callable[[Tensor, Tensor], Tensor]  # logits, target: (objects, H, W) -> (objects,)


class TotalLoss(nn.Module):
    """Cross-entropy on answer tokens, BCE and Dice on masks, and losses designed for vessels.

    The defaults are those of Sa2VA's published code (Yuan et al. 2025, arXiv 2501.04001).

    lm, bce, dice: weights. thin_weight: additional weight of thin-vessel pixels in bce; 0: all pixels count equally.
    boundary: weight of a BCE with larger weights at borders, in place of bce or in addition.
    tversky: weight of the focal Tversky loss, in place of dice or in addition.
    cldice: weight of soft clDice; cldice_iterations: largest radius in pixels of vessels that soft clDice can thin.
    skeleton_recall: weight of the skeleton recall loss.
    mask_target: `area` compares logits at their own size with area-averaged labels; `full` resizes the logits to the
    image's size (more memory, exact borders). clDice and skeleton recall always use the image's size: they need a
    binary label.
    terms: further mask losses by name, each with its weight.

    A loss other than lm, bce and dice is computed only if its weight is above 0.
    """

    def __init__(
        self,
        lm: float = 1.0,
        bce: float = 2.0,
        dice: float = 0.5,
        boundary: float = 0.0,
        tversky: float = 0.0,
        cldice: float = 0.0,
        cldice_iterations: int = 10,
        skeleton_recall: float = 0.0,
        thin_weight: float = 0.0,
        mask_target: str = "area",
        terms: Mapping[str, tuple[Term, float]] | None = None,
    ) -> None:
        super().__init__()
        if mask_target not in MASK_TARGETS:
            raise ValueError(f"loss.mask_target is {mask_target!r}; expected one of {', '.join(MASK_TARGETS)}")
        if thin_weight < 0:
            raise ValueError(f"loss.thin_weight is {thin_weight}; expected 0 or more")
        self.lm = lm
        optional = {"boundary": boundary, "tversky": tversky, "cldice": cldice, "skeleton_recall": skeleton_recall}
        self.mask_weights = {"bce": bce, "dice": dice, **{name: one for name, one in optional.items() if one > 0}}
        self.terms: dict[str, Term] = {
            "bce": partial(thin_bce_per_object, strength=thin_weight) if thin_weight else bce_per_object,
            "dice": dice_per_object,
            "boundary": boundary_bce_per_object,
            "tversky": focal_tversky_per_object,
            "cldice": partial(soft_cldice_per_object, iterations=cldice_iterations),
            "skeleton_recall": skeleton_recall_per_object,
        }
        for name, (term, weight) in (terms or {}).items():
            self.terms[name], self.mask_weights[name] = term, weight
        self.mask_target = mask_target

    def forward(
        self, mask_logits: Tensor, answer_logits: Tensor, answer_labels: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """The weighted parts; their sum is the loss.

        mask_logits: (all objects, h, w). answer_logits: (tokens, vocabulary). answer_labels: (tokens,).
        Masks are averaged over objects, so an image with many objects counts by each of them.
        """
        answers = self.lm * functional.cross_entropy(answer_logits.float(), answer_labels)
        masks = self._mask_losses(mask_logits.float(), batch)
        return {"loss_lm": answers, **{f"loss_{name}": self.mask_weights[name] * one for name, one in masks.items()}}

    def _mask_losses(self, mask_logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        found = defaultdict(list)
        for logits, masks in _by_size(mask_logits, batch):
            # Each size is computed once, whatever number of losses compare there.
            compared = {self.mask_target: _compared(logits, masks, self.mask_target)}
            if not self.mask_weights.keys().isdisjoint(AT_FULL_SIZE) and self.mask_target != "full":
                compared["full"] = _compared(logits, masks, "full")
            for name in self.mask_weights:
                target = "full" if name in AT_FULL_SIZE else self.mask_target
                found[name].append(self.terms[name](*compared[target]))
        # The mean of all objects, not of the groups' means: an object counts the same whatever its image's size.
        return {name: torch.cat(values).mean() for name, values in found.items()}


def standard_arguments(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of TotalLoss in a config's `model.loss`, without classes and terms of the user's own."""
    names = inspect.signature(TotalLoss).parameters.keys() - {"terms"}
    return {name: value for name, value in (settings or {}).items() if name in names}


def _by_size(mask_logits: Tensor, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Logits (objects, h, w) and masks (objects, H, W), grouped by image size: fewer, larger operations on a GPU."""
    groups: dict[tuple[object, ...], tuple[list[Tensor], list[Tensor]]] = {}
    for logits, masks in zip(mask_logits.split(list(batch.objects_per_image)), batch.masks):
        of_size = groups.setdefault((*masks.shape[-2:], masks.dtype in WITH_UNKNOWN), ([], []))
        of_size[0].append(logits)
        of_size[1].append(masks)
    return [(torch.cat(logits), torch.cat(masks)) for logits, masks in groups.values()]


def _compared(logits: Tensor, masks: Tensor, mask_target: str) -> tuple[Tensor, Tensor]:
    """Logits and labels (objects, H, W) float32 at the size at which they are compared."""
    if mask_target == "area":
        if masks.dtype not in WITH_UNKNOWN:
            return logits, area_average(masks, *logits.shape[-2:])
        known = area_average(masks >= 0, *logits.shape[-2:])  # (objects, h, w), the known part of each cell
        vessel = area_average(masks.clamp(min=0), *logits.shape[-2:])
        return _without(logits, (vessel / known.clamp(min=0.5)).clamp(max=1), known < 0.5)
    # (objects, h, w) -> (objects, 1, H, W)
    enlarged = functional.interpolate(
        logits.unsqueeze(1), size=tuple(masks.shape[-2:]), mode="bilinear", align_corners=False
    )
    if masks.dtype in WITH_UNKNOWN:
        return _without(enlarged.squeeze(1), masks.float(), masks < 0)
    return enlarged.squeeze(1), masks.float()


def _without(logits: Tensor, target: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Both with a certain and right background where the label is unknown: no loss and no gradient there."""
    return torch.where(unknown, logits.new_tensor(CERTAIN), logits), torch.where(unknown, 0.0, target)
