"""Losses for thin, rare, tubular structures: centreline, borders, width, class imbalance. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vesselseg.losses.masks import bce_elements
from vesselseg.losses.skeleton import tube


def soft_skeleton(mask: Tensor, iterations: int) -> Tensor:
    """A differentiable skeleton: what morphological opening removes, collected over repeated erosions.

    Shit et al., "clDice", CVPR 2021, algorithm 1 ("soft-skeleton"). Vessels are not eroded at the image's edge.
    mask: (objects, H, W) 0 to 1. iterations: largest radius in pixels (city-block distance) of vessels that are
    skeletonised completely; more iterations than the largest radius change nothing. Returns (objects, H, W), 0 to 1,
    nowhere above the mask.
    """
    image = mask.unsqueeze(1)  # (objects, 1, H, W), as are all tensors below
    skeleton = torch.zeros_like(image)
    for _ in range(iterations + 1):
        eroded = _erode(image)
        # Opening is erosion, then dilation. It removes what is thinner than the structuring element.
        removed = functional.relu(image - functional.max_pool2d(eroded, 3, 1, 1))
        # A soft union, s + r - s r: pixels that are in the skeleton already count only once.
        skeleton = skeleton + functional.relu(removed - skeleton * removed)
        image = eroded
    return skeleton.squeeze(1)


def _erode(image: Tensor) -> Tensor:
    """Minimum over a pixel and its four neighbours; (objects, 1, H, W). Padding of max_pool2d is never the maximum."""
    columns = -functional.max_pool2d(-image, (3, 1), 1, (1, 0))
    rows = -functional.max_pool2d(-image, (1, 3), 1, (0, 1))
    return torch.minimum(columns, rows)


def soft_cldice_per_object(logits: Tensor, target: Tensor, iterations: int = 10, smooth: float = 1.0) -> Tensor:
    """1 - soft clDice (Shit et al. 2021, algorithm 2): a gap counts by its length, however thin the vessel.

    clDice is the harmonic mean of topology precision, the fraction of the predicted skeleton inside the label, and
    topology sensitivity, the fraction of the label's skeleton inside the prediction; `smooth` is added to numerators
    and denominators. logits: (objects, H, W). target: (objects, H, W), above 0.5 is vessel: with fractional labels the
    label itself would not minimise the loss. With an empty target the loss falls as the predicted skeleton vanishes.
    Returns (objects,), 0 to 1.
    """
    probability, target = torch.sigmoid(logits), (target > 0.5).to(logits.dtype)
    predicted, labelled = soft_skeleton(probability, iterations), soft_skeleton(target, iterations)
    precision = _fraction_inside(predicted, target, smooth)  # (objects,)
    sensitivity = _fraction_inside(labelled, probability, smooth)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def _fraction_inside(skeleton: Tensor, mask: Tensor, smooth: float) -> Tensor:
    return ((skeleton * mask).flatten(1).sum(1) + smooth) / (skeleton.flatten(1).sum(1) + smooth)


def boundary_weights(target: Tensor, strength: float = 5.0) -> Tensor:
    """Weight of each pixel: 1 + strength x |mean label of its neighbourhood - its own label|.

    Wei et al., "F3Net: Fusion, Feedback and Focus for Salient Object Detection", AAAI 2020, with its
    strength. The paper's window, 31 of 352 pixels, is a sixteenth of the shorter side here, so that it does not depend
    on the label's resolution. Thin vessels consist of border pixels only. target: (objects, H, W) 0 to 1. Returns the
    same shape, 1 to 1 + strength.
    """
    # | 1 makes the window odd, so that it has a centre.
    window = min(target.shape[-2:]) // 16 | 1
    around = functional.avg_pool2d(target.unsqueeze(1), window, 1, window // 2, count_include_pad=False).squeeze(1)
    return 1 + strength * (around - target).abs()


def boundary_bce_per_object(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels weighted by `boundary_weights` (as in the code of Wei et al. 2020).

    logits, target (0 to 1): (objects, H, W). Returns (objects,).
    """
    weights = boundary_weights(target)
    return (weights * bce_elements(logits, target)).flatten(1).sum(1) / weights.flatten(1).sum(1)


def thin_weights(target: Tensor, strength: float) -> Tensor:
    """Weight of each pixel: 1 in the background and in wide vessels, up to 1 + strength in thin vessels.

    This project's own formula; docs/results.md compares it. A labelled pixel gets 1 + strength x (1 - share / 0.6),
    where share is the labelled fraction of a square window around it, and 1 if share is 0.6 or more. The window is 1/34
    of the shorter side: 15 pixels at 512, where vessels of about 10 pixels and more have weight 1.
    target: (objects, H, W) 0 to 1. Returns the same shape.
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
    """1 - recall of the label's skeleton, dilated to a tube: vessels count by their length, not by their area.

    Kirchhoff et al., "Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation of Thin
    Tubular Structures", ECCV 2024. The tube is 3 pixels wide (`tube`); the paper's is up to 5. The skeleton depends on
    the label alone, so it needs no gradient. False positives cost nothing: combine this loss with BCE or Dice.
    logits: (objects, H, W). target: (objects, H, W), above 0.5 is vessel. smooth: in pixels; with an empty target the
    loss is 0. Returns (objects,), 0 to 1.
    """
    expected = tube(target).flatten(1)  # (objects, H * W)
    found = (torch.sigmoid(logits).flatten(1) * expected).sum(1)
    return 1 - (found + smooth) / (expected.sum(1) + smooth)


def focal_tversky_per_object(
    logits: Tensor, target: Tensor, alpha: float = 0.7, beta: float = 0.3, power: float = 0.75, smooth: float = 1.0
) -> Tensor:
    """(1 - Tversky index) ** power (Abraham and Khan 2019, "A Novel Focal Tversky Loss Function").

    alpha, beta, power: the paper's values of alpha, beta and 1 / gamma. The index is tp / (tp + alpha fn + beta fp), so
    a false negative costs more than a false positive. tp, fn and fp are sums of min(p, t), max(t - p, 0) and
    max(p - t, 0). For binary labels these are the usual products; for fractional ones they make the loss minimal at
    p = t (Wang et al., "Dice Semimetric Losses", 2023).
    logits, target (0 to 1): (objects, H, W). smooth: in pixels. Returns (objects,), 0 to 1.
    """
    probability, target = torch.sigmoid(logits).flatten(1), target.flatten(1)
    true_positives = torch.minimum(probability, target).sum(1)
    errors = alpha * (target - probability).relu().sum(1) + beta * (probability - target).relu().sum(1)
    # Clamped, because the gradient of x ** 0.75 is unbounded at 0.
    return (errors / (true_positives + errors + smooth)).clamp(min=1e-6) ** power
