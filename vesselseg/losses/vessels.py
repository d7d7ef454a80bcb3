"""Losses that look at what makes a vessel: centreline, borders, width, how rare it is. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vesselseg.losses.masks import bce_elements
from vesselseg.losses.skeleton import tube


def soft_skeleton(mask: Tensor, iterations: int) -> Tensor:
    """What morphological opening takes away, erosion after erosion: a skeleton that gradients pass through.

    Shit et al., "clDice", CVPR 2021, algorithm 1 ("soft-skeleton"); no erosion from outside of the image.
    mask: (objects, H, W) 0 to 1. iterations: the largest radius in pixels, in steps along rows and columns; vessels
    that are thicker have no skeleton, more iterations change nothing. Returns (objects, H, W), 0 to 1, nowhere above
    the mask.
    """
    image = mask.unsqueeze(1)
    skeleton = torch.zeros_like(image)
    for _ in range(iterations + 1):
        eroded = _erode(image)
        taken = functional.relu(image - functional.max_pool2d(eroded, 3, 1, 1))
        skeleton = skeleton + functional.relu(taken - skeleton * taken)
        image = eroded
    return skeleton.squeeze(1)


def _erode(image: Tensor) -> Tensor:
    """The lowest of a pixel and its four neighbours; (objects, 1, H, W)."""
    columns = -functional.max_pool2d(-image, (3, 1), 1, (1, 0))
    rows = -functional.max_pool2d(-image, (1, 3), 1, (0, 1))
    return torch.minimum(columns, rows)


def soft_cldice_per_object(logits: Tensor, target: Tensor, iterations: int = 10, smooth: float = 1.0) -> Tensor:
    """1 - soft clDice (Shit et al. 2021, algorithm 2): a gap costs its whole width of centreline, however thin.

    The harmonic mean of topology precision, the part of the predicted skeleton inside the label, and of topology
    sensitivity, the part of the label's skeleton inside the prediction, each with `smooth` pixels above and below.
    logits: (objects, H, W). target: (objects, H, W), above 0.5 is vessel: of fractions the label is not the least.
    With an empty target the loss falls as the predicted skeleton vanishes. Returns (objects,), 0 to 1.
    """
    probability, target = torch.sigmoid(logits), (target > 0.5).to(logits.dtype)
    predicted, labelled = soft_skeleton(probability, iterations), soft_skeleton(target, iterations)
    precision = _part_inside(predicted, target, smooth)
    sensitivity = _part_inside(labelled, probability, smooth)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def _part_inside(skeleton: Tensor, mask: Tensor, smooth: float) -> Tensor:
    return ((skeleton * mask).flatten(1).sum(1) + smooth) / (skeleton.flatten(1).sum(1) + smooth)


def boundary_weights(target: Tensor, strength: float = 5.0) -> Tensor:
    """How much a pixel counts: 1 + strength x |mean of the labels around it - its own label|.

    Wei et al., "F3Net: Fusion, Feedback and Focus for Salient Object Detection", AAAI 2020, with its strength; its
    window of 31 of 352 pixels is a sixteenth of the shorter side here, so that it does not depend on the label's
    resolution. A thin vessel is all border. target: (objects, H, W) 0 to 1. Returns the same shape, 1 to 1 + strength.
    """
    window = min(target.shape[-2:]) // 16 | 1
    around = functional.avg_pool2d(target.unsqueeze(1), window, 1, window // 2, count_include_pad=False).squeeze(1)
    return 1 + strength * (around - target).abs()


def boundary_bce_per_object(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels weighted by `boundary_weights` (as the code of Wei et al. 2020).

    logits, target (0 to 1): (objects, H, W). Returns (objects,).
    """
    weights = boundary_weights(target)
    return (weights * bce_elements(logits, target)).flatten(1).sum(1) / weights.flatten(1).sum(1)


def thin_weights(target: Tensor, strength: float) -> Tensor:
    """How much a pixel counts: 1 outside of vessels and in wide ones, up to 1 + strength in thin ones.

    A labelled pixel gets 1 + strength x (1 - share / 0.6), where share is the labelled part of a square window around
    it, and 1 from a share of 0.6 on. The window is a 34th of the shorter side, 15 pixels at 512, where vessels of about
    10 pixels and more count once. target: (objects, H, W) 0 to 1. Returns the same shape.
    """
    window = min(target.shape[-2:]) // 34 | 1
    share = functional.avg_pool2d(target.unsqueeze(1), window, 1, window // 2, count_include_pad=False).squeeze(1)
    return 1 + strength * (target > 0.5) * (1 - share / 0.6).clamp(min=0)


def thin_bce_per_object(logits: Tensor, target: Tensor, strength: float) -> Tensor:
    """Binary cross-entropy times `thin_weights`, mean over pixels; with a strength of 0 plain cross-entropy.

    logits, target (0 to 1): (objects, H, W). Returns (objects,).
    """
    return (thin_weights(target, strength) * bce_elements(logits, target)).flatten(1).mean(1)


def skeleton_recall_per_object(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - the part of the label's tubed skeleton that is found: a thin vessel counts by its length.

    Kirchhoff et al., "Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation of Thin
    Tubular Structures", ECCV 2024. The tube is 3 pixels wide (`tube`), where the paper's is up to 5. The skeleton has
    no gradient: it depends on the label alone. The loss knows no false positives; it needs BCE or Dice in addition.
    logits: (objects, H, W). target: (objects, H, W), above 0.5 is vessel. smooth: in pixels; with an empty target the
    loss is 0. Returns (objects,), 0 to 1.
    """
    expected = tube(target).flatten(1)
    found = (torch.sigmoid(logits).flatten(1) * expected).sum(1)
    return 1 - (found + smooth) / (expected.sum(1) + smooth)


def focal_tversky_per_object(
    logits: Tensor, target: Tensor, missed: float = 0.7, invented: float = 0.3, power: float = 0.75, smooth: float = 1.0
) -> Tensor:
    """(1 - Tversky index) ** power (Abraham & Khan 2019, with its numbers: alpha, beta, 1 / gamma).

    The index is tp / (tp + missed x fn + invented x fp), so a missed pixel costs more than an invented one. tp, fn and
    fp are sums of min(p, t), max(t - p, 0) and max(p - t, 0), which for labels of 0 and 1 are the usual products, and
    for fractions have their least where p = t (Wang et al., "Dice Semimetric Losses", 2023).
    logits, target (0 to 1): (objects, H, W). smooth: in pixels. Returns (objects,), 0 to 1.
    """
    probability, target = torch.sigmoid(logits).flatten(1), target.flatten(1)
    hit = torch.minimum(probability, target).sum(1)
    wrong = missed * (target - probability).relu().sum(1) + invented * (probability - target).relu().sum(1)
    # The power's slope has no bound at 0.
    return (wrong / (hit + wrong + smooth)).clamp(min=1e-6) ** power
