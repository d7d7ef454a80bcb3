"""Masks at twice SAM2's resolution: where they start, what they see, and their way through files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.samples import batch_of, losses_of, processor_of
from tests.tiny import SAM2, model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.errors import UserError, WeightsError
from vesselseg.export.convert import convert
from vesselseg.inference.load import load_predictor
from vesselseg.losses.total import TotalLoss
from vesselseg.models.build import build_model
from vesselseg.models.fine_masks import KINDS
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding


def grounding_of(kind: str | None) -> SAM2Grounding:
    torch.manual_seed(0)
    return SAM2Grounding({**SAM2, "fine_masks": kind}).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def prompts(count: int) -> Tensor:
    return torch.randn(count, 256, generator=torch.Generator().manual_seed(2))


def moved(grounding: SAM2Grounding) -> SAM2Grounding:
    """With a correction that is not zero any more."""
    with torch.no_grad():
        for parameter in grounding.fine_masks.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.2)
    return grounding


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_they_are_sam2s_own_enlarged(kind: str) -> None:
    """Whatever SAM2 answers: the correction is a product with zero, and nothing else of SAM2 is drawn otherwise."""
    coarse, fine = grounding_of(None), grounding_of(kind)
    state = fine.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in coarse.state_dict().items())
    image_of_prompt = torch.tensor([0, 1, 1])
    expected = coarse.decode(coarse.encode(images()), prompts(3), image_of_prompt)
    found = fine.decode(fine.encode(images()), prompts(3), image_of_prompt)
    assert found.shape == (3, 64, 64) and expected.shape == (3, 32, 32)
    enlarged = functional.interpolate(expected[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, enlarged)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_each_prompt_meets_its_own_image_and_view(kind: str) -> None:
    grounding, seen, asked = moved(grounding_of(kind)).double(), images().double(), prompts(4).double()
    features, image_of_prompt = grounding.encode(seen), torch.tensor([0, 1, 1, 0])
    together = grounding.decode(features, asked, image_of_prompt)
    for number, image in enumerate(image_of_prompt.tolist()):
        alone = grounding.encode(seen[image : image + 1])
        expected = grounding.decode(alone, asked[number, None], torch.tensor([0]))[0]
        torch.testing.assert_close(together[number], expected, atol=1e-9, rtol=1e-9)
    assert (features.view is not None) == grounding.sees_view == (kind == "pixels")
    if kind == "pixels":
        other = ImageFeatures(features.embedding, features.stride_8, features.stride_4, features.view.flip(-1))
        assert not torch.allclose(grounding.decode(other, asked, image_of_prompt), together, atol=1e-3)
        blind = ImageFeatures(features.embedding, features.stride_8, features.stride_4)
        with pytest.raises(ValueError, match="reads the square view, and none was given"):
            grounding.decode(blind, asked, image_of_prompt)


@torch.inference_mode()
def test_pixels_tell_apart_what_lies_within_a_cell() -> None:
    """A line of one pixel, moved by two: what it changes moves by one at stride 2, where features see no difference."""
    grounding = moved(grounding_of("pixels"))
    features = grounding.encode(torch.zeros(1, 3, 128, 128))

    def answer(view: Tensor) -> Tensor:
        seen = ImageFeatures(features.embedding, features.stride_8, features.stride_4, view)
        return grounding.decode(seen, prompts(1), torch.tensor([0]))[0]

    empty, touched = answer(torch.zeros(1, 3, 128, 128)), []
    for column in (64, 66):
        view = torch.zeros(1, 3, 128, 128)
        view[..., column] = 3.0
        touched.append(((answer(view) - empty).abs() > 1e-6).any(0).nonzero().flatten())
    assert touched[0].min() >= 28 and touched[0].max() <= 36
    assert torch.equal(touched[1], touched[0] + 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask_target", ["area", "full"])
@pytest.mark.slow
def test_the_head_trains_with_the_decoder(tiny_base: Path, kind: str, mask_target: str) -> None:
    model = build_model(**model_arguments(tiny_base, sam2={**SAM2, "fine_masks": kind})).train()
    batch, head = batch_of(processor_of(model, tiny_base)), model.grounding.fine_masks
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves the last layer, which was zero; the second all the others
        optimizer.zero_grad()
        output = model(batch)
        loss = TotalLoss(mask_target=mask_target, cldice=0.5)
        sum(loss(output.mask_logits, output.answer_logits, output.answer_labels, batch).values()).backward()
        optimizer.step()
    assert output.mask_logits.shape[-2:] == (64, 64)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    frozen = build_model(
        **model_arguments(tiny_base, sam2={**SAM2, "fine_masks": kind}, trainable={"mask_decoder": False})
    )
    assert not any(parameter.requires_grad for parameter in frozen.grounding.fine_masks.parameters())


@pytest.mark.slow
def test_stored_features_are_enough_for_kind_features(tiny_base: Path) -> None:
    model = shaken_model(tiny_base, sam2={**SAM2, "fine_masks": "features"})
    batch = batch_of(processor_of(model, tiny_base))
    expected = losses_of(model, batch)
    batch.encoded = model.encode_views(batch.tiles, batch.sam_images)
    batch.tiles, batch.sam_images = torch.empty(0), torch.empty(0)
    torch.testing.assert_close(losses_of(model, batch), expected)


def test_a_kind_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"sam2\.fine_masks is 'both'; expected None, 'features' or 'pixels'"):
        grounding_of("both")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def arguments(tiny_base: Path, kind: str) -> dict[str, Any]:
    return model_arguments(tiny_base, sam2={**SAM2, "fine_masks": kind})


@pytest.fixture(scope="module")
def exported(arguments: dict[str, Any], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a trained model with fine masks, and beside it the folder made of it."""
    folder = tmp_path_factory.mktemp("fine")
    picture(0).save(folder / "0.png")
    checkpoint = save_checkpoint(
        shaken_model(tiny_base, sam2=arguments["sam2"]), folder / "best.pth", arguments, threshold=0.4
    )
    assert convert(checkpoint, folder / "hf", [folder / "0.png"]).probability < 1e-5
    return folder / "hf"


def probabilities(place: Path) -> np.ndarray:
    return load_predictor(place, device="cpu").predict([picture(7)], [["blood vessel"]])[0].probabilities


def head_of(model: Sa2VA) -> dict[str, Tensor]:
    return model.grounding.fine_masks.state_dict()


@pytest.mark.slow
def test_checkpoint_and_folder_answer_alike_and_say_so(exported: Path, kind: str) -> None:
    np.testing.assert_allclose(probabilities(exported.parent / "best.pth"), probabilities(exported), atol=1e-5)
    config = json.loads((exported / "config.json").read_text())
    assert config["grounding_config"]["fine_masks"] == kind
    assert (exported / "fine_masks.py").exists()


@pytest.mark.slow
def test_a_folder_with_the_head_trains_on_with_it(exported: Path, kind: str) -> None:
    expected = head_of(load_predictor(exported, device="cpu").model)
    for asked in (None, kind):
        model = build_model(**model_arguments(exported, sam2={"image_size": 64, "fine_masks": asked}))
        assert all(torch.equal(value, expected[name]) for name, value in head_of(model).items())
        assert model.randomly_initialised == ()
    other = next(name for name in KINDS if name != kind)
    with pytest.raises(UserError, match=f"holds fine masks of kind '{kind}'"):
        build_model(**model_arguments(exported, sam2={"fine_masks": other}))


@pytest.mark.slow
def test_a_checkpoint_with_the_head_needs_it_in_the_config_and_whole(
    exported: Path, arguments: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    content = torch.load(exported.parent / "best.pth", weights_only=True)
    torch.save({**content, "model_config": model_arguments(tiny_base)}, tmp_path / "without.pth")
    with pytest.raises(WeightsError, match=r"unexpected: grounding\.fine_masks\."):
        load_predictor(tmp_path / "without.pth", device="cpu")
    del content["state_dict"]["grounding.fine_masks.mix.weight"]
    torch.save(content, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"1 missing: grounding\.fine_masks\.mix\.weight"):
        load_predictor(tmp_path / "cut.pth", device="cpu")


@pytest.mark.slow
def test_a_folder_without_the_head_gets_a_fresh_one(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    """SAM2 trained at its own resolution, exported, and trained on at twice of it: first answers are its own."""
    picture(0).save(tmp_path / "0.png")
    checkpoint = save_checkpoint(shaken_model(tiny_base), tmp_path / "best.pth", model_arguments(tiny_base))
    convert(checkpoint, tmp_path / "hf", [tmp_path / "0.png"])
    assert "fine_masks" not in json.loads((tmp_path / "hf" / "config.json").read_text())["grounding_config"]
    further = model_arguments(tmp_path / "hf", sam2={"image_size": 128, "fine_masks": kind})
    model = build_model(**further)
    assert model.randomly_initialised == ("grounding.fine_masks.",)
    again = save_checkpoint(model, tmp_path / "further.pth", further)
    assert np.abs(probabilities(again) - probabilities(tmp_path / "hf")).mean() < 0.02
