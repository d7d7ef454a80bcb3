from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vesselseg.dataset.batch import Batch
from vesselseg.losses.masks import area_average, bce_per_object, dice_per_object
from vesselseg.losses.total import TotalLoss


def random_masks(objects: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(objects, height, width, generator=generator) > 0.6).to(torch.uint8)


def average_by_hand(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cell by cell and pixel by pixel, in fractions."""
    full_height, full_width = mask.shape
    result = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            top, bottom = Fraction(row * full_height, height), Fraction((row + 1) * full_height, height)
            left, right = Fraction(column * full_width, width), Fraction((column + 1) * full_width, width)
            total = Fraction(0)
            for y in range(math.floor(top), math.ceil(bottom)):
                for x in range(math.floor(left), math.ceil(right)):
                    part = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
                    total += part * int(mask[y, x])
            result[row, column] = float(total / ((bottom - top) * (right - left)))
    return result


@pytest.mark.parametrize(
    ("full", "cells"),
    [((32, 32), (8, 8)), ((12, 30), (4, 10)), ((25, 40), (8, 12)), ((10, 7), (16, 16)), ((1, 1), (4, 4))],
)
def test_the_average_is_exact(full: tuple[int, int], cells: tuple[int, int]) -> None:
    masks = random_masks(2, *full)
    averaged = area_average(masks, *cells)
    assert averaged.shape == (2, *cells)
    assert averaged.dtype == torch.float32
    for mask, cell in zip(masks, averaged):
        np.testing.assert_allclose(cell.numpy(), average_by_hand(mask.numpy(), *cells), atol=1e-6)


@pytest.mark.parametrize("full", [(512, 512), (800, 480), (517, 333)])
def test_the_average_keeps_the_vessel_area(full: tuple[int, int]) -> None:
    masks = random_masks(1, *full)
    averaged = area_average(masks, 256, 256)
    assert averaged.mean().item() == pytest.approx(masks.float().mean().item(), abs=1e-5)
    assert averaged.min() >= 0 and averaged.max() <= 1


def test_bce_by_hand() -> None:
    logits = torch.tensor([[[0.0, 2.0], [-1.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.25]], [[0.0, 1.0], [0.5, 1.0]]])
    one = [
        math.log(2),
        math.log1p(math.exp(-2)),
        math.log1p(math.exp(-1)),
        0.25 * math.log1p(math.exp(-3)) + 0.75 * math.log1p(math.exp(3)),
    ]
    np.testing.assert_allclose(bce_per_object(logits, target).numpy(), [sum(one) / 4, math.log(2)], rtol=1e-6)


def test_dice_by_hand() -> None:
    logits = torch.tensor([[[0.0, 50.0], [-50.0, -50.0]]])  # probabilities 1/2, 1, 0, 0
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert dice_per_object(logits, target).item() == pytest.approx(1 - (2 * 1.5 + 1) / (1.5 + 2 + 1))
    assert dice_per_object(logits, target, smooth=0.0).item() == pytest.approx(1 - 3 / 3.5)


def test_dice_at_its_ends() -> None:
    mask = random_masks(1, 20, 20).float()
    assert dice_per_object(mask * 200 - 100, mask).item() == pytest.approx(0, abs=1e-6)
    assert dice_per_object(100 - mask * 200, mask).item() > 0.99


def test_an_empty_target_rewards_an_empty_answer() -> None:
    nothing = torch.zeros(1, 8, 8)
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    loss = dice_per_object(logits, nothing) + bce_per_object(logits, nothing)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert (logits.grad > 0).all()
    assert dice_per_object(nothing - 100, nothing).item() == pytest.approx(0)


def batch_with(*masks: Tensor) -> Batch:
    """A batch whose masks alone matter to the loss."""
    unused = torch.zeros(len(masks), 1)
    counts = tuple(len(of_image) for of_image in masks)
    return Batch(("",) * len(masks), unused, (1,) * len(masks), unused, (), (), masks, counts)


def answers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 11, generator=generator), torch.tensor([1, 0, 10, 4, 4])


@pytest.mark.parametrize("mask_target", ["area", "full"])
def test_total_by_hand(mask_target: str) -> None:
    masks = (random_masks(2, 40, 24), random_masks(1, 64, 64, 1))
    logits = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2))
    answer_logits, answer_labels = answers()
    losses = TotalLoss(lm=3.0, bce=2.0, dice=0.5, mask_target=mask_target)(
        logits, answer_logits, answer_labels, batch_with(*masks)
    )
    bce, dice = [], []
    for single, mask in zip(logits, [*masks[0], *masks[1]]):
        target = mask.double()
        if mask_target == "area":
            target = torch.from_numpy(average_by_hand(mask.numpy(), 16, 16))
        else:
            size = tuple(mask.shape)
            single = functional.interpolate(single[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        probability = single.double().sigmoid()
        bce.append(functional.binary_cross_entropy(probability, target).item())
        dice.append((1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)).item())
    language = functional.nll_loss(answer_logits.log_softmax(-1), answer_labels).item()
    assert losses.keys() == {"loss_lm", "loss_bce", "loss_dice"}
    assert losses["loss_lm"].item() == pytest.approx(3 * language, rel=1e-5)
    assert losses["loss_bce"].item() == pytest.approx(2 * sum(bce) / 3, rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(0.5 * sum(dice) / 3, rel=1e-5)


def test_every_object_counts_once() -> None:
    """An image with three objects weighs three times one with a single object."""
    right, wrong = torch.full((1, 8, 8), 20.0), torch.full((1, 8, 8), -20.0)
    ones = torch.ones(1, 8, 8, dtype=torch.uint8)
    loss = TotalLoss(lm=0, bce=0, dice=1)
    three_right = loss(torch.cat([right] * 3 + [wrong]), *answers(), batch_with(ones.expand(3, 8, 8), ones))
    assert three_right["loss_dice"].item() == pytest.approx(0.25 * (1 - 1 / 65), rel=1e-4)


@pytest.mark.parametrize("mask_target", ["area", "full"])
def test_gradients_reach_every_logit(mask_target: str) -> None:
    logits = torch.zeros(1, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    answer_logits, labels = answers()
    answer_logits = answer_logits.bfloat16().requires_grad_()
    losses = TotalLoss(mask_target=mask_target)(logits, answer_logits, labels, batch_with(random_masks(1, 32, 32)))
    assert all(value.dtype == torch.float32 for value in losses.values())  # sums over pixels need the precision
    sum(losses.values()).backward()
    assert (logits.grad != 0).all() and (answer_logits.grad != 0).any()
    step = logits.detach().float() - 0.5 * logits.grad.float() * 64
    again = TotalLoss(mask_target=mask_target)(step, answer_logits, labels, batch_with(random_masks(1, 32, 32)))
    assert again["loss_bce"] + again["loss_dice"] < losses["loss_bce"] + losses["loss_dice"]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'nearest'; expected one of area, full"):
        TotalLoss(mask_target="nearest")


def test_logits_and_masks_must_be_as_many() -> None:
    with pytest.raises(RuntimeError):
        TotalLoss()(torch.zeros(2, 8, 8), *answers(), batch_with(random_masks(1, 8, 8)))
