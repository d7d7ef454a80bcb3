from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sam2
import torch
from accelerate import init_empty_weights
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import nn

from tests.tiny import SAM2
from vesselseg.models.sam2_grounding import TRUNKS, SAM2Grounding, build_sam2

LETTERS = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


def package_model(variant: str, version: str) -> nn.Module:
    """SAM2 as its own YAML file describes it."""
    name = "sam2" if version == "2.0" else "sam2.1"
    path = Path(sam2.__path__[0]) / "configs" / name / f"{name}_hiera_{LETTERS[variant]}.yaml"
    return instantiate(OmegaConf.load(path).model, _recursive_=True)


def plain_values(module: nn.Module) -> dict[str, Any]:
    """Every number, text and flag in a module and below it."""
    return {
        f"{prefix}.{name}": value
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str, tuple, list)) and not name.startswith("_")
    }


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("variant", TRUNKS)
def test_sizes_are_those_of_the_package(variant: str, version: str) -> None:
    with init_empty_weights(include_buffers=False):
        ours = build_sam2({"variant": variant, "version": version, "image_size": 1024})
        theirs = package_model(variant, version)
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    expected, found = plain_values(theirs), plain_values(ours)
    different = {name for name in expected if expected[name] != found.get(name)}
    assert not different, {name: (expected[name], found.get(name)) for name in different}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"variant": "huge"}, "variant 'huge' version '2.0'; expected tiny, small, base_plus, large"),
        ({"version": "3"}, "version '3'"),
        ({"image_size": 1000}, "image_size is 1000; it must be a multiple of 32"),
    ],
)
def test_sizes_that_do_not_exist(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_sam2({**SAM2, **wrong})


@pytest.fixture(scope="module")
def grounding() -> SAM2Grounding:
    torch.manual_seed(0)
    made = SAM2Grounding(SAM2).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_features_are_those_of_the_packages_own_path(grounding: SAM2Grounding, images: torch.Tensor) -> None:
    model, ours = grounding.sam2, grounding.encode(images)
    _, features, _, sizes = model._prepare_backbone_features(model.forward_image(images))
    embedding = (features[-1] + model.no_mem_embed).permute(1, 2, 0).unflatten(2, sizes[-1])
    torch.testing.assert_close(ours.embedding, embedding)
    decoder = model.sam_mask_decoder
    for convolved, feature, size in (
        (decoder.conv_s0(ours.stride_4), features[0], sizes[0]),
        (decoder.conv_s1(ours.stride_8), features[1], sizes[1]),
    ):
        torch.testing.assert_close(convolved, feature.permute(1, 2, 0).unflatten(2, size))


@torch.inference_mode()
def test_masks_are_those_of_the_packages_own_heads(grounding: SAM2Grounding, images: torch.Tensor) -> None:
    """SAM2's own heads, with the prompt vector appended to what they make of no click and no mask."""
    model, prompts = grounding.sam2, torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
    _, features, _, sizes = model._prepare_backbone_features(model.forward_image(images))
    levels = [feature.permute(1, 2, 0).unflatten(2, size) for feature, size in zip(features, sizes)]
    own = model.sam_prompt_encoder.forward

    def with_prompt(**inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = own(**inputs)
        return torch.cat([sparse, prompts.unsqueeze(1)], dim=1), dense

    model.sam_prompt_encoder.forward = with_prompt
    model.pred_obj_scores = False  # else a low object score would blank the mask
    try:
        image_embedding = levels[-1] + model.no_mem_embed.transpose(1, 2).unsqueeze(-1)
        result = model._forward_sam_heads(image_embedding, high_res_features=levels[:2], multimask_output=True)
    finally:
        model.pred_obj_scores = True
        del model.sam_prompt_encoder.forward
    ours = grounding.decode(grounding.encode(images), prompts, torch.tensor([0, 1]))
    torch.testing.assert_close(ours, result[3].squeeze(1), atol=1e-5, rtol=1e-4)
    assert ours.shape == (2, 32, 32)


@torch.inference_mode()
def test_each_prompt_meets_its_own_image(grounding: SAM2Grounding, images: torch.Tensor) -> None:
    prompts = torch.randn(4, 256, generator=torch.Generator().manual_seed(2))
    features, image_of_prompt = grounding.encode(images), torch.tensor([0, 1, 1, 0])
    together = grounding.decode(features, prompts, image_of_prompt)
    for number, image in enumerate(image_of_prompt.tolist()):
        alone = grounding.decode(grounding.encode(images[image : image + 1]), prompts[number, None], torch.tensor([0]))
        torch.testing.assert_close(together[number], alone[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0], together[3], atol=1e-3)  # the prompt matters
    swapped = grounding.decode(features, prompts, 1 - image_of_prompt)
    assert not torch.allclose(together, swapped, atol=1e-3)  # and so does the image
    torch.testing.assert_close(
        grounding.decode(features.select(torch.tensor([1, 0])), prompts, 1 - image_of_prompt), together
    )


@torch.inference_mode()
@pytest.mark.parametrize("side", [64, 256])
def test_weights_trained_at_one_size_work_at_another(grounding: SAM2Grounding, side: int) -> None:
    """SAM2-L at 512 instead of 1024: no entry depends on the size, position embeddings are interpolated."""
    other = SAM2Grounding({**SAM2, "image_size": side})
    other.load_state_dict(grounding.state_dict())
    trunk, grid = other.sam2.image_encoder.trunk, side // 4
    found = trunk._get_pos_embed((grid, grid)).permute(0, 3, 1, 2)
    window = trunk.pos_embed_window
    whole = nn.functional.interpolate(trunk.pos_embed, size=(grid, grid), mode="bicubic")
    torch.testing.assert_close(found, whole + window.tile(1, 1, grid // window.shape[2], grid // window.shape[3]))
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    features = other.encode(images)
    assert features.embedding.shape == (1, 256, side // 16, side // 16)
    masks = other.decode(features, torch.zeros(1, 256), torch.tensor([0]))
    assert masks.shape == (1, side // 4, side // 4) and torch.isfinite(masks).all()
    assert other.sam2.sam_prompt_encoder.get_dense_pe().shape[2:] == (side // 16, side // 16)


def test_positions_keep_their_precision_in_half_type() -> None:
    torch.manual_seed(0)
    exact = SAM2Grounding(SAM2)
    matrix = exact.sam2.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.clone()
    expected = exact.sam2.sam_prompt_encoder.get_dense_pe()
    exact.bfloat16()
    exact.sam2.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix = matrix
    assert torch.equal(exact._image_positions(), expected)


@torch.inference_mode()
def test_encoding_leaves_video_its_positions(grounding: SAM2Grounding, images: torch.Tensor) -> None:
    before = grounding.sam2.image_encoder.neck.position_encoding
    with patch.object(PositionEmbeddingSine, "forward", side_effect=AssertionError("computed for nothing")):
        grounding.encode(images)
    assert grounding.sam2.image_encoder.neck.position_encoding is before
    assert grounding.sam2.forward_image(images)["vision_pos_enc"][0].shape == (2, 256, 32, 32)


@torch.inference_mode()
def test_frozen_convolutions_belong_to_the_encoder(grounding: SAM2Grounding, images: torch.Tensor) -> None:
    prompts, image_of_prompt = torch.randn(3, 256, generator=torch.Generator().manual_seed(4)), torch.tensor([0, 1, 1])
    late = grounding.decode(grounding.encode(images), prompts, image_of_prompt)
    frozen = copy.deepcopy(grounding).requires_grad_(False)
    features = frozen.encode(images)
    assert features.stride_8.shape[1:] == (64, 16, 16) and features.stride_4.shape[1:] == (32, 32, 32)
    torch.testing.assert_close(frozen.decode(features, prompts, image_of_prompt), late)
