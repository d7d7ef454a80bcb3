"""Masks at the picture's own side: where they start, what they read, and that one image holds several of them."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.samples import batch_of, losses_of, processor_of
from tests.tiny import SAM2, model_arguments, shaken_model
from vesselseg.errors import UserError
from vesselseg.losses.total import TotalLoss
from vesselseg.models import vessel_head
from vesselseg.models.build import build_model
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding
from vesselseg.models.vessel_head import OBJECTS_AT_ONCE, VesselHead
from vesselseg.models.vessel_head_options import VesselHeadOptions, read_options

SMALL: dict[str, Any] = {"channels": [8, 8, 16, 16, 16], "object_channels": [4, 8, 8]}
SIDE = 64
ABLATIONS = ({}, {"modulated": False}, {"skips": False}, {"sam2": False})


@functools.cache
def plain_sam2() -> SAM2Grounding:
    torch.manual_seed(0)
    return SAM2Grounding({**SAM2, "image_size": SIDE}).eval()


def grounding_of(**options: Any) -> SAM2Grounding:
    """With a head; all share one SAM2's numbers."""
    grounding = copy.deepcopy(plain_sam2())
    torch.manual_seed(1)
    grounding.vessel_head = VesselHead(read_options({**SMALL, **options}), SIDE).eval()
    return grounding


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def prompts(count: int) -> Tensor:
    return torch.randn(count, 256, generator=torch.Generator().manual_seed(2))


def moved(grounding: SAM2Grounding) -> SAM2Grounding:
    """With a correction that is not zero any more."""
    with torch.no_grad():
        for parameter in grounding.vessel_head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    return grounding


def changed(features: ImageFeatures, **parts: Tensor) -> ImageFeatures:
    return ImageFeatures(**{**vars(features), **parts})


@torch.inference_mode()
@pytest.mark.parametrize("side", [None, 32, 16])
def test_the_first_answer_is_sam2s_own_at_the_heads_side(side: int | None) -> None:
    """Whatever SAM2 answers: the correction is a product with zero."""
    coarse, fine = plain_sam2(), grounding_of(side=side)
    image_of_prompt = torch.tensor([0, 1, 1])
    expected = coarse.decode(coarse.encode(images()), prompts(3), image_of_prompt)
    found = fine.decode(fine.encode(images()), prompts(3), image_of_prompt)
    assert found.shape == (3, side or SIDE, side or SIDE) and fine.mask_side == (side or SIDE)
    enlarged = functional.interpolate(expected[:, None], size=found.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, enlarged[:, 0])
    assert not torch.allclose(moved(fine).decode(fine.encode(images()), prompts(3), image_of_prompt), found, atol=0.1)


def test_a_config_with_a_head_draws_the_same_sam2() -> None:
    torch.manual_seed(0)
    found = SAM2Grounding({**SAM2, "image_size": SIDE, "vessel_head": SMALL})
    state = found.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain_sam2().state_dict().items())
    assert found.vessel_head.options == VesselHeadOptions(**SMALL) and found.sees_view
    with pytest.raises(UserError, match="both refine SAM2's answer; set one of them to None"):
        SAM2Grounding({**SAM2, "vessel_head": {}, "fine_masks": "pixels"})


@torch.inference_mode()
@pytest.mark.parametrize("side", [None, 16])
def test_each_prompt_meets_its_own_image_and_view(side: int | None) -> None:
    """Also where so many objects are asked for that they are decoded in pieces."""
    grounding, seen = moved(grounding_of(side=side)).double(), images().double()
    count = OBJECTS_AT_ONCE + 2
    asked, image_of_prompt = prompts(count).double(), torch.arange(count) % 2
    together = grounding.decode(grounding.encode(seen), asked, image_of_prompt)
    for number in (0, 1, count - 1):
        image = int(image_of_prompt[number])
        alone = grounding.encode(seen[image : image + 1])
        expected = grounding.decode(alone, asked[number, None], torch.tensor([0]))[0]
        torch.testing.assert_close(together[number], expected, atol=1e-9, rtol=1e-9)


@torch.inference_mode()
@pytest.mark.parametrize("side", [None, 32])
def test_the_picture_is_seen_pixel_by_pixel(side: int | None) -> None:
    """One pixel of the view, also where the head's own are larger; and a view given as pixels is the same view."""
    grounding = moved(grounding_of(side=side))
    pixels = torch.randint(0, 255, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    features = grounding.encode(torch.zeros(1, 3, SIDE, SIDE))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    view = (pixels / 255 - mean[:, None, None]) / std[:, None, None]

    def answer(view: Tensor | None) -> Tensor:
        return grounding.decode(changed(features, view=view), prompts(1), torch.tensor([0]))[0]

    torch.testing.assert_close(answer(pixels), answer(view))
    swapped = view.clone()
    swapped[..., 40, 26:28] = view[..., 40, 26:28].flip(-1)
    assert (answer(swapped) - answer(view)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="reads the square view, and none was given"):
        answer(None)


@pytest.mark.parametrize("switches", ABLATIONS, ids=str)
def test_what_each_ablation_still_reads(switches: dict[str, bool]) -> None:
    """By the gradient of the correction, which is the whole answer less SAM2's."""
    grounding = moved(grounding_of(**switches))
    head, options = grounding.vessel_head, grounding.vessel_head.options
    shapes = ((2, 16, 16), (1, 32, 16, 16), (1, 64, 8, 8), (1, 256, 4, 4), (2, 256), (1, 3, SIDE, SIDE))
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    coarse, *features, tokens, view = inputs
    levels = head.pyramid(view, features)
    head.objects([level.expand(2, *level.shape[1:]) for level in levels], coarse, tokens).square().sum().backward()
    read = [one.grad is not None and bool(one.grad.any()) for one in inputs]
    assert read == [options.sam2, *[options.sam2 and options.skips] * 3, options.modulated, True]


@torch.inference_mode()
def test_without_sam2_the_prompt_itself_decides() -> None:
    grounding = moved(grounding_of(sam2=False))
    features, asked = grounding.encode(images(1)), prompts(2)
    found = grounding.decode(features, asked, torch.tensor([0, 0]))
    other = changed(features, embedding=features.embedding.flip(-1), stride_4=features.stride_4.flip(-1))
    assert torch.equal(grounding.decode(other, asked, torch.tensor([0, 0])), found)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    with pytest.raises(ValueError, match="there is no memory; every frame needs prompts"):
        grounding.decode_objects(features, None, torch.tensor([0]))


def shapes_picture(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A bright square and a bright disc on noise: (3, 32, 32), and their masks (2, 32, 32)."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    corner, centre = torch.randint(5, 11, (2,), generator=generator), torch.randint(21, 27, (2,), generator=generator)
    square = ((rows - corner[0]).abs() < 4) & ((columns - corner[1]).abs() < 4)
    disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 20
    masks = torch.stack([square, disc]).float()
    return masks.sum(0) * 2 + 0.3 * torch.randn(3, 32, 32, generator=generator), masks


@pytest.mark.slow
def test_two_phrases_of_one_image_learn_two_masks() -> None:
    """From nothing but two tokens: SAM2 says the same about both, and its features say nothing."""
    torch.manual_seed(0)
    options = VesselHeadOptions(channels=(8, 8, 16), object_channels=(4, 8, 8), at_once=None)
    head, generator = VesselHead(options, image_size=32).train(), torch.Generator().manual_seed(6)
    pictures = [shapes_picture(generator) for _ in range(2)]
    view, masks = torch.stack([picture for picture, _ in pictures]), torch.cat([masks for _, masks in pictures])
    tokens, coarse, image_of_object = (
        prompts(2).repeat(2, 1).requires_grad_(),
        torch.zeros(4, 8, 8),
        torch.arange(4) // 2,
    )
    features = [torch.zeros(2, wide, 32 // stride, 32 // stride) for wide, stride in ((32, 4), (64, 8), (256, 16))]
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(90):
        optimizer.zero_grad()
        logits = head(coarse, features, tokens, view, image_of_object)
        functional.binary_cross_entropy_with_logits(logits, masks).backward()
        optimizer.step()
    assert tokens.grad.any()
    found = (logits > 0).float()
    overlap = 2 * (found * masks).flatten(1).sum(1) / (found + masks).flatten(1).sum(1)
    assert overlap.min() > 0.8, overlap


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 3, 2)], ids=["one each", "several"])
def test_recomputing_a_few_images_at_a_time_changes_nothing(
    counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vessel_head, "OBJECTS_AT_ONCE", 2)
    grounding = moved(grounding_of()).double().train().requires_grad_(True)
    objects, found = sum(counts), []
    image_of_object = torch.arange(3).repeat_interleave(torch.tensor(counts))
    features = grounding.encode(images(3).double())
    for at_once in (None, 1, 2):
        grounding.vessel_head.at_once = at_once
        grounding.zero_grad()
        asked = prompts(objects).double().requires_grad_()
        logits = grounding.decode(features, asked, image_of_object, counts)
        logits.square().mean().backward(retain_graph=True)
        head = {name: parameter.grad.clone() for name, parameter in grounding.vessel_head.named_parameters()}
        found.append((logits.detach(), asked.grad, head))
    for again in found[1:]:
        torch.testing.assert_close(again, found[0])


def with_head(tiny_base: Path, **options: Any) -> dict[str, Any]:
    return model_arguments(tiny_base, sam2={**SAM2, "image_size": SIDE, "vessel_head": {**SMALL, **options}})


def learnt(model: Sa2VA, batch: Any, mask_target: str) -> Tensor:
    """Logits of the second of two steps: the first moves the last layer, which was zero, the second all the others."""
    optimizer = torch.optim.SGD(model.grounding.vessel_head.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(batch)
        loss = TotalLoss(mask_target=mask_target, cldice=0.5)
        sum(loss(output.mask_logits, output.answer_logits, output.answer_labels, batch).values()).backward()
        optimizer.step()
    return output.mask_logits


@pytest.mark.slow
@pytest.mark.parametrize(("mask_target", "side"), [("area", None), ("full", None), ("area", 32)])
def test_the_head_trains_with_the_decoder(tiny_base: Path, mask_target: str, side: int | None) -> None:
    model = build_model(**with_head(tiny_base, side=side)).train()
    batch = batch_of(processor_of(model, tiny_base))
    assert learnt(model, batch, mask_target).shape == (6, side or SIDE, side or SIDE)
    head = model.grounding.vessel_head
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    assert model.seg_projector.linear_2.weight.grad.any()
    frozen = build_model(**{**with_head(tiny_base), "trainable": {"mask_decoder": False}})
    assert not any(parameter.requires_grad for parameter in frozen.grounding.vessel_head.parameters())


@pytest.mark.parametrize("switches", ABLATIONS[1:], ids=str)
def test_no_ablation_leaves_a_weight_that_trains_without_a_gradient(tiny_base: Path, switches: dict[str, bool]) -> None:
    model = build_model(**with_head(tiny_base, **switches)).train()
    learnt(model, batch_of(processor_of(model, tiny_base)), "area")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert any(name.startswith("grounding.sam2.") for name in trained) == switches.get("sam2", True)


def test_stored_features_with_the_pixels_give_the_same_losses(tiny_base: Path) -> None:
    model = shaken_model(tiny_base, sam2=with_head(tiny_base)["sam2"])
    batch = batch_of(processor_of(model, tiny_base))
    expected = losses_of(model, batch)
    batch.encoded = model.encode_views(batch.tiles, batch.sam_images)
    batch.encoded.view = batch.sam_images
    batch.tiles, batch.sam_images = torch.empty(0), torch.empty(0)
    torch.testing.assert_close(losses_of(model, batch), expected)


def test_plain_blocks_make_the_unet_of_nnunet() -> None:
    """Two convolutions a level on both ways, each with a norm and LeakyReLU, and one of stride 2 or 1 between levels.

    Isensee et al., "nnU-Net", Nature Methods 18 (2021): "two blocks per resolution", each conv, instance norm, leaky
    ReLU; what is counted here are the weights of its convolutions for these widths.
    """
    widths = (4, 8, 8)
    options = VesselHeadOptions(channels=widths, residual=False, norm="instance", decoder_depth=2, sam2=False)
    options = VesselHeadOptions(**{**options.shape(), "object_channels": (4,)})
    pyramid = VesselHead(options, image_size=16).pyramid
    encoder = [9 * given * wide + 9 * wide * wide for given, wide in ((3, 4), (4, 8), (8, 8))]
    decoder = [9 * 2 * wide * wide + 9 * wide * wide + 4 * deeper * wide for wide, deeper in ((4, 8), (8, 8))]
    convolutions = [module for module in pyramid.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    assert sum(one.weight.numel() for one in convolutions) == sum(encoder) + sum(decoder) + 4 * 4  # and the narrowing
    norms = [module for module in pyramid.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 2 * 3 + 2 * 2 and all(norm.num_groups == norm.num_channels for norm in norms)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels are compiled for a CUDA device; there is none")
@pytest.mark.parametrize("levels", [5, 8])
def test_a_compiled_head_learns_the_same(levels: int) -> None:
    channels = [16, 16, *[32] * (levels - 2)]
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        options = VesselHeadOptions(channels=channels, norm="instance", at_once=None, compile=compiled)
        head = VesselHead(options, image_size=128).cuda().train()
        generator = torch.Generator().manual_seed(1)
        shapes = ((2, 32, 32), (2, 32, 32, 32), (2, 64, 16, 16), (2, 256, 8, 8), (2, 256), (2, 3, 128, 128))
        coarse, *features, tokens, view = (torch.randn(shape, generator=generator).cuda() for shape in shapes)
        with torch.no_grad():
            head.objects.answer.weight.fill_(0.1)
        logits = head(coarse, features, tokens, view, torch.arange(2).cuda())
        logits.square().mean().backward()
        found.append([logits.detach(), *(parameter.grad for parameter in head.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-3)


def test_options_that_do_not_fit_are_all_named_at_once() -> None:
    options = VesselHeadOptions(
        channels=[8, 8, 8],
        depth=[1, 0, 1],
        decoder_depth=[1],
        object_channels=[4] * 4,
        norm="batch",
        side=50,
        at_once=0,
    )
    with pytest.raises(UserError) as caught:
        VesselHead(options, image_size=128)
    lines = str(caught.value).splitlines()
    named = ("depth", "decoder_depth", "object_channels", "norm", "at_once", "side", "channels")
    assert [line.split(" ")[0].removeprefix("sam2.vessel_head.") for line in lines] == list(named)
    with pytest.raises(UserError, match="the last of them with one cell at side 32, over which instance norm"):
        VesselHead(VesselHeadOptions(channels=[8] * 6, norm="instance"), image_size=32)
    with pytest.raises(UserError, match=r"sam2\.vessel_head holds widths; it takes at_once, channels, "):
        read_options({"widths": [8]})
