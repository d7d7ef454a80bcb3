"""Losses made for vessels, against other people's code and against loops over pixels."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.morphology import thin
from torch import Tensor

from tests.losses.test_losses import answers, batch_with, random_masks
from vesselseg.losses.skeleton import skeleton, tube
from vesselseg.losses.total import MASK_TARGETS, TotalLoss
from vesselseg.losses.vessels import (
    boundary_bce_per_object,
    boundary_weights,
    focal_tversky_per_object,
    skeleton_recall_per_object,
    soft_cldice_per_object,
    soft_skeleton,
    thin_bce_per_object,
    thin_weights,
)

THIN_BCE = partial(thin_bce_per_object, strength=2.0)
PER_OBJECT = (
    boundary_bce_per_object,
    focal_tversky_per_object,
    soft_cldice_per_object,
    skeleton_recall_per_object,
    THIN_BCE,
)
SURE = 50.0  # a logit whose probability is 1


def vessel(height: int = 48, width: int = 64, thick: int = 3) -> Tensor:
    """(1, height, width) float: a vessel along the middle with a branch."""
    mask = torch.zeros(1, height, width)
    mask[:, height // 2 : height // 2 + thick, 4:-4] = 1
    mask[:, 6 : height // 2, width // 2 : width // 2 + thick] = 1
    return mask


def sure(mask: Tensor) -> Tensor:
    return (mask * 2 - 1) * SURE


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("iterations", [0, 3, 10])
def test_the_soft_skeleton_is_grey_morphology(iterations: int) -> None:
    """By scipy: the union (a + b - ab) of what opening takes away from ever more eroded images."""
    images = noise(2, 40, 33).sigmoid()
    cross, square = ndimage.generate_binary_structure(2, 1), np.ones((3, 3))
    for image, found in zip(images.double().numpy(), soft_skeleton(images, iterations)):
        skeleton = np.zeros_like(image)
        for _ in range(iterations + 1):
            eroded = ndimage.grey_erosion(image, footprint=cross, mode="constant", cval=np.inf)
            opened = ndimage.grey_dilation(eroded, footprint=square, mode="constant", cval=-np.inf)
            taken = np.maximum(image - opened, 0)
            skeleton = skeleton + np.maximum(taken - skeleton * taken, 0)
            image = eroded
        np.testing.assert_allclose(found.numpy(), skeleton, atol=1e-5)


def test_the_skeleton_of_a_vessel_is_thin_and_inside_it() -> None:
    mask = vessel(thick=5)
    skeleton = soft_skeleton(mask, 5)
    assert set(skeleton.unique().tolist()) == {0.0, 1.0} and (skeleton <= mask).all()
    assert skeleton[0, :, 10].sum() == 1 and skeleton.sum() < 0.4 * mask.sum()
    torch.testing.assert_close(soft_skeleton(mask, 12), skeleton)  # more iterations change nothing
    assert soft_skeleton(vessel(thick=9), 2).sum() < 10  # too thick for so few: no centreline


def waves() -> tuple[Tensor, Tensor]:
    """Logits and labels (2, 48, 64) that need no random numbers."""
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    logits = torch.stack([3 * torch.sin(rows / 5) * torch.cos(columns / 7), 4 * torch.cos(rows / 3 + columns / 9)])
    return logits, torch.cat([vessel(), vessel(thick=7)])


def test_cldice_is_that_of_monai() -> None:
    """MONAI 1.6.1: SoftclDiceLoss(iter_=6, smooth_nr=1.0, smooth_dr=1.0, smooth=1e-12, sigmoid=True)."""
    expected = torch.tensor([0.819205, 0.751998])
    torch.testing.assert_close(soft_cldice_per_object(*waves(), iterations=6), expected, rtol=1e-5, atol=1e-6)


def test_tversky_is_that_of_monai_for_sharp_labels() -> None:
    """MONAI 1.6.1: TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, smooth_nr=0.0, smooth_dr=1.0)."""
    logits, target = waves()
    hit = (logits.sigmoid() * target).flatten(1).sum(1)
    index = 1 - torch.tensor([0.82711, 0.686128])
    whole = hit / index
    expected = (1 - (hit + 1) / whole) ** 0.75  # ours has the smoothing pixel above and below
    torch.testing.assert_close(focal_tversky_per_object(logits, target), expected, rtol=1e-4, atol=1e-5)


def test_border_weights_by_hand() -> None:
    target = random_masks(1, 36, 52).float()  # a window of 3
    found = boundary_weights(target)[0].numpy()
    mask = target[0].numpy()
    for row in range(36):
        for column in range(52):
            around = mask[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].mean()
            assert found[row, column] == pytest.approx(1 + 5 * abs(around - mask[row, column]), abs=1e-5)
    logits = noise(1, 36, 52)
    bce = np.logaddexp(0, logits[0].numpy()) - mask * logits[0].numpy()
    assert boundary_bce_per_object(logits, target).item() == pytest.approx((found * bce).sum() / found.sum(), rel=1e-5)


def test_borders_and_thin_vessels_weigh_more() -> None:
    weights = boundary_weights(torch.cat([vessel(128, 128, thick=2), vessel(128, 128, thick=40)]))
    assert weights.min() == 1 and weights.max() <= 6
    assert weights[0, 65, 20] > 4 > weights[1, 84, 20] and weights[1, 84, 20] == 1  # the middle of each


def test_the_skeleton_is_that_of_scikit_image() -> None:
    """Vessels of several widths, blobs with holes and random pixels; `thin` is Guo and Hall's algorithm too."""
    smooth = ndimage.gaussian_filter(noise(48, 64).numpy(), 2.5) > 0
    masks = torch.stack(
        [vessel()[0], vessel(thick=9)[0], torch.from_numpy(smooth).float(), *random_masks(2, 48, 64).float()]
    )
    found = skeleton(masks)
    assert found.dtype == torch.float32 and found.device == masks.device
    for mask, line in zip(masks, found):
        np.testing.assert_array_equal(line.numpy() > 0, thin(mask.numpy() > 0))
    assert skeleton(masks[:0]).shape == (0, 48, 64)
    torch.testing.assert_close(skeleton(masks * 0.6), found)  # of coverage labels: where more than half is covered


def test_the_tube_is_three_pixels_wide_and_inside_the_label() -> None:
    wide, narrow = tube(vessel(thick=9))[0], tube(vessel(thick=2))[0]
    assert wide[:, 12].sum() == 3 and narrow[:, 12].sum() == 2
    assert (narrow <= vessel(thick=2)[0]).all()


def test_skeleton_recall_by_hand() -> None:
    target, logits = vessel(thick=5), noise(1, 48, 64)
    line = thin(target[0].numpy() > 0)
    expected = ndimage.binary_dilation(line, np.ones((3, 3))) & (target[0].numpy() > 0)
    probability = 1 / (1 + np.exp(-logits[0].double().numpy()))
    by_hand = 1 - (probability[expected].sum() + 1) / (expected.sum() + 1)
    assert skeleton_recall_per_object(logits, target).item() == pytest.approx(by_hand, rel=1e-5)
    gone = target.clone()
    gone[:, :, 4:34] = 0  # half of the main vessel
    assert skeleton_recall_per_object(sure(gone), target).item() > 0.3
    assert skeleton_recall_per_object(sure(torch.ones_like(target)), target).item() == pytest.approx(0, abs=1e-5)


def test_thin_weights_by_hand() -> None:
    target = random_masks(1, 36, 104).float() * (noise(1, 36, 104, seed=5) > 0.3)  # a window of 1 pixel at 36
    assert (thin_weights(target, 2.0) == 1).all()  # a labelled pixel is all of such a window
    target = torch.cat([vessel(136, 136, thick=3), vessel(136, 136, thick=40)])  # a window of 5
    found = thin_weights(target, 2.0)
    for row, column in ((69, 20), (68, 20), (68, 4), (10, 69), (20, 20)):
        for mask, weight in zip(target.numpy(), found):
            share = mask[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].mean()
            by_hand = 1 + 2 * mask[row, column] * max(0.0, 1 - share / 0.6)
            assert weight[row, column].item() == pytest.approx(by_hand, abs=1e-5)
    assert found.min() == 1 and found[1, 80, 60] == 1 and found.max() > 1.5


def test_thin_bce_by_hand() -> None:
    target, logits = vessel(136, 136, thick=2), noise(1, 136, 136)
    bce = np.logaddexp(0, logits[0].numpy()) - target[0].numpy() * logits[0].numpy()
    by_hand = (thin_weights(target, 3.0)[0].numpy() * bce).mean()
    assert thin_bce_per_object(logits, target, 3.0).item() == pytest.approx(by_hand, rel=1e-5)
    assert thin_bce_per_object(logits, target, 0.0).item() == pytest.approx(bce.mean(), rel=1e-5)


@pytest.mark.parametrize("loss", PER_OBJECT)
def test_no_loss_at_the_label_and_most_at_its_opposite(loss: object) -> None:
    mask = vessel()
    assert loss(sure(mask), mask).item() == pytest.approx(0, abs=1e-4)
    assert loss(sure(1 - mask), mask).item() > 0.85


def test_tversky_has_its_least_at_the_label_where_labels_are_fractions() -> None:
    target = noise(1, 16, 16).sigmoid()
    exact = torch.logit(target)
    assert focal_tversky_per_object(exact, target).item() == pytest.approx(0, abs=1e-4)
    for change in (0.5, -0.5):
        assert focal_tversky_per_object(exact + change, target).item() > 0.05


def test_a_missed_pixel_costs_more_than_an_invented_one() -> None:
    mask = vessel()
    less, more = mask.clone(), mask.clone()
    less[:, 24, 4:24] = 0
    more[:, 23, 4:24] = 1
    assert focal_tversky_per_object(sure(less), mask) > 1.2 * focal_tversky_per_object(sure(more), mask)


def test_cldice_falls_when_a_gap_closes() -> None:
    """A gap in a thin vessel costs little area and much centreline: clDice counts it by its length alone."""
    target = vessel(thick=1)
    target[:, :, 20:44] = vessel(thick=9)[:, :, 20:44]  # and a wide part
    losses, areas = [], []
    for gap in (8, 4, 2, 0):
        answer = target.clone()
        answer[:, :, 6 : 6 + gap] = 0
        losses.append(soft_cldice_per_object(sure(answer), target).item())
        areas.append(float((target - answer).sum() / target.sum()))
    assert losses == sorted(losses, reverse=True) and losses[-1] == pytest.approx(0, abs=1e-5)
    assert losses[0] > 2 * areas[0]


@pytest.mark.parametrize("loss", PER_OBJECT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_wherever_the_logits_are(loss: object, dtype: torch.dtype) -> None:
    for target in (vessel(), torch.zeros(1, 48, 64), torch.ones(1, 48, 64)):
        for start in (torch.zeros(1, 48, 64), sure(target), sure(1 - target), noise(1, 48, 64)):
            logits = start.to(dtype).requires_grad_()
            value = loss(logits.float(), target)
            value.sum().backward()
            assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", PER_OBJECT)
def test_an_empty_label_rewards_an_empty_answer(loss: object) -> None:
    nothing = torch.zeros(1, 32, 32)
    values = [loss(nothing + level, nothing).item() for level in (2.0, 0.0, -2.0, -8.0, -SURE)]
    assert values == sorted(values, reverse=True) and values[-1] == pytest.approx(0, abs=1e-4)


def test_the_loss_is_what_it_was_unless_asked() -> None:
    batch, logits = batch_with(random_masks(2, 40, 40)), noise(2, 10, 10)
    plain = TotalLoss()(logits, *answers(), batch)
    assert plain.keys() == {"loss_lm", "loss_bce", "loss_dice"}
    more = TotalLoss(boundary=2.0, tversky=0.5, cldice=0.25)(logits, *answers(), batch)
    assert list(more) == [*plain, "loss_boundary", "loss_tversky", "loss_cldice"]
    assert all(torch.equal(more[name], plain[name]) for name in plain)


def test_thin_vessels_count_more_in_bce_alone() -> None:
    batch, logits = batch_with(vessel(136, 136, thick=2)), noise(1, 34, 34)
    plain, weighted = (TotalLoss(thin_weight=strength, mask_target="full") for strength in (0.0, 3.0))
    before, after = (loss(logits, *answers(), batch) for loss in (plain, weighted))
    assert after["loss_bce"] > before["loss_bce"] and torch.equal(after["loss_dice"], before["loss_dice"])
    with pytest.raises(ValueError, match=r"thin_weight is -1; expected 0 or more"):
        TotalLoss(thin_weight=-1)


@pytest.mark.parametrize("mask_target", MASK_TARGETS)
def test_weights_and_targets_of_each_term(mask_target: str) -> None:
    """Two sizes in one batch; borders and Tversky at the given target, centrelines at the image's size in any case."""
    masks = (random_masks(2, 48, 48), random_masks(1, 32, 64, 1))
    logits = noise(3, 16, 16)
    weights = {"boundary": 2.0, "tversky": 0.5, "cldice": 0.25, "skeleton_recall": 0.75}
    found = TotalLoss(**weights, cldice_iterations=3, mask_target=mask_target)(logits, *answers(), batch_with(*masks))
    expected: dict[str, list[Tensor]] = {name: [] for name in weights}
    for single, mask in zip(logits, [*masks[0], *masks[1]]):
        full = torch.nn.functional.interpolate(single[None, None], size=tuple(mask.shape), mode="bilinear")[0]
        pair = full, mask[None].float()
        cells = (mask.shape[0] // 16, mask.shape[1] // 16)
        area = single[None], torch.nn.functional.avg_pool2d(mask[None].float(), cells)
        chosen = area if mask_target == "area" else pair
        expected["boundary"].append(boundary_bce_per_object(*chosen))
        expected["tversky"].append(focal_tversky_per_object(*chosen))
        expected["cldice"].append(soft_cldice_per_object(*pair, iterations=3))
        expected["skeleton_recall"].append(skeleton_recall_per_object(*pair))
    for name, values in expected.items():
        torch.testing.assert_close(found[f"loss_{name}"], weights[name] * torch.cat(values).mean())


@pytest.mark.parametrize("mask_target", MASK_TARGETS)
def test_all_terms_together_lead_to_the_vessel(mask_target: str) -> None:
    """Plain gradient descent on the logits of half the size, with clDice on from the first step."""
    mask = vessel(64, 64).to(torch.uint8)
    logits = torch.zeros(1, 32, 32, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    loss = TotalLoss(lm=0, bce=1, dice=1, boundary=1, tversky=1, cldice=1, mask_target=mask_target)
    for _ in range(60):
        optimizer.zero_grad()
        total = torch.stack(list(loss(logits, *answers(), batch_with(mask)).values())).sum()
        total.backward()
        optimizer.step()
    enlarged = torch.nn.functional.interpolate(logits.detach()[None], size=(64, 64), mode="bilinear")[0]
    predicted = enlarged > 0
    assert 2 * (predicted & (mask > 0)).sum() / (predicted.sum() + mask.sum()) > 0.85
