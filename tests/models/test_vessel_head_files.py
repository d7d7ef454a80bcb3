"""The vessel head on its way through files: checkpoints, exported folders, graphs; and what predicts from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from tests.tiny import SAM2, model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.dataset.prompts import question_for
from vesselseg.distill import graphs
from vesselseg.distill.predict_onnx import predict as predict_without_torch
from vesselseg.distill.student_folder import ProgramPredictor
from vesselseg.errors import UserError, WeightsError
from vesselseg.export.convert import convert
from vesselseg.export.hf_model import VesselSegModel
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.load import load_predictor
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.prompted_config import PromptedSAM2Config
from vesselseg.models.prompted_sam2 import PromptedSAM2, build_prompted
from vesselseg.models.sa2va import Sa2VA

OPTIONS: dict[str, Any] = {"channels": [8, 8, 8, 8, 8], "object_channels": [8, 8, 8], "side": 64}
WITH_HEAD = {**SAM2, "vessel_head": OPTIONS}
PHRASES = ("left coronary artery", "catheter")


@pytest.fixture(scope="module")
def exported(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a trained model with a vessel head, and beside it the folder made of it."""
    folder = tmp_path_factory.mktemp("head")
    picture(0).save(folder / "0.png")
    checkpoint = save_checkpoint(
        shaken_model(tiny_base, sam2=WITH_HEAD), folder / "best.pth", model_arguments(tiny_base, sam2=WITH_HEAD)
    )
    assert convert(checkpoint, folder / "hf", [folder / "0.png"]).probability < 1e-5
    return folder / "hf"


def probabilities(place: Path) -> np.ndarray:
    return load_predictor(place, device="cpu").predict([picture(7)], [["blood vessel"]])[0].probabilities


def head_of(model: Sa2VA) -> dict[str, Tensor]:
    return model.grounding.vessel_head.state_dict()


@pytest.mark.slow
def test_checkpoint_folder_and_its_own_code_answer_alike(exported: Path, tiny_base: Path) -> None:
    expected = probabilities(exported)
    np.testing.assert_allclose(probabilities(exported.parent / "best.pth"), expected, atol=1e-5)
    assert np.ptp(expected) > 0.01
    kept = json.loads((exported / "config.json").read_text())["grounding_config"]["vessel_head"]
    assert OPTIONS.items() <= kept.items() and kept["norm"] == "group"  # whole: defaults may change
    assert (exported / "vessel_head.py").exists()
    model = VesselSegModel.from_pretrained(exported).eval()
    answer = model.predict_forward(
        picture(7), f"<image>\n{question_for('blood vessel')}", tokenizer=read_base_folder(str(exported)).tokenizer
    )
    np.testing.assert_allclose(answer["prediction_probs"][0], expected, atol=1e-5)


def test_masks_do_not_pass_through_a_larger_square(exported: Path) -> None:
    """A picture of the head's own side gets the head's own numbers, which the view's square would blur."""
    predictor = load_predictor(exported, device="cpu")
    image = picture(3, 64, 64)
    found = predictor.predict([image], [["blood vessel"]])[0].probabilities
    with torch.inference_mode(), predictor.eval_mode():
        logits = predictor.mask_logits(predictor.build_inputs([image], [[predictor.format_question("blood vessel")]]))
    np.testing.assert_allclose(found, logits.sigmoid().numpy(), atol=1e-6)


def test_a_folder_with_the_head_trains_on_with_it(exported: Path) -> None:
    expected = head_of(load_predictor(exported, device="cpu").model)
    for asked in (None, {**OPTIONS, "at_once": 1}):
        model = build_model(**model_arguments(exported, sam2={"image_size": 128, "vessel_head": asked}))
        assert all(torch.equal(value, expected[name]) for name, value in head_of(model).items())
        assert model.randomly_initialised == ()
        assert model.grounding.vessel_head.at_once == (2 if asked is None else 1)
    for other in ({"vessel_head": {**OPTIONS, "side": 128}}, {"fine_masks": "pixels"}):
        with pytest.raises(
            UserError, match=r"holds a vessel head of .*leave it at None, which keeps what the base holds"
        ):
            build_model(**model_arguments(exported, sam2={"image_size": 128, **other}))


def test_a_checkpoint_with_the_head_needs_it_in_the_config_and_whole(
    exported: Path, tiny_base: Path, tmp_path: Path
) -> None:
    content = torch.load(exported.parent / "best.pth", weights_only=True)
    torch.save({**content, "model_config": model_arguments(tiny_base)}, tmp_path / "without.pth")
    with pytest.raises(WeightsError, match=r"unexpected: grounding\.vessel_head\."):
        load_predictor(tmp_path / "without.pth", device="cpu")
    del content["state_dict"]["grounding.vessel_head.objects.answer.weight"]
    torch.save(content, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"1 missing: grounding\.vessel_head\.objects\.answer\.weight"):
        load_predictor(tmp_path / "cut.pth", device="cpu")


@pytest.mark.slow
def test_a_folder_without_the_head_gets_a_fresh_one(tiny_base: Path, tmp_path: Path) -> None:
    """SAM2 trained at its own resolution, exported, and trained on with a head: first answers are its own."""
    picture(0).save(tmp_path / "0.png")
    checkpoint = save_checkpoint(shaken_model(tiny_base), tmp_path / "best.pth", model_arguments(tiny_base))
    convert(checkpoint, tmp_path / "hf", [tmp_path / "0.png"])
    further = model_arguments(tmp_path / "hf", sam2={"image_size": 128, "vessel_head": OPTIONS})
    model = build_model(**further)
    assert model.randomly_initialised == ("grounding.vessel_head.",)
    again = save_checkpoint(model, tmp_path / "further.pth", further)
    assert np.abs(probabilities(again) - probabilities(tmp_path / "hf")).mean() < 0.02


def test_without_sam2_no_memory_carries_masks(tiny_base: Path, tmp_path: Path) -> None:
    without = {**SAM2, "vessel_head": {**OPTIONS, "sam2": False}}
    checkpoint = save_checkpoint(
        shaken_model(tiny_base, sam2=without), tmp_path / "best.pth", model_arguments(tiny_base, sam2=without)
    )
    predictor = load_predictor(checkpoint, device="cpu")
    with pytest.raises(UserError, match=r"drawn without SAM2 \(vessel_head\.sam2=False\).*--cine frames"):
        segment_cine(predictor, [picture(0)], ["blood vessel"], "memory")
    frames = segment_cine(predictor, [picture(0)], ["blood vessel"], "frames")
    assert np.ptp(next(frames).probabilities) > 0


@pytest.fixture(scope="module")
def prompted() -> PromptedSAM2:
    torch.manual_seed(0)
    grounding = {**SAM2, "image_size": 64, "vessel_head": {**OPTIONS, "side": 32}}
    model = build_prompted(PromptedSAM2Config(PHRASES, grounding))
    with torch.no_grad():
        model.prompt_head.base.normal_()
        for parameter in model.grounding.vessel_head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval().requires_grad_(False)


@pytest.mark.slow
def test_graphs_give_the_same_masks_for_any_batch(prompted: PromptedSAM2, tmp_path: Path) -> None:
    graphs.write_onnx(prompted, tmp_path / graphs.ONNX)
    graphs.write_program(prompted, tmp_path / graphs.PROGRAM)
    plain = PromptedPredictor(prompted)
    onnx, program = (
        graphs.OnnxPredictor(prompted, tmp_path / graphs.ONNX),
        ProgramPredictor(prompted, tmp_path / graphs.PROGRAM),
    )
    squares = torch.stack([plain.views.square(picture(number)) for number in range(11)])
    expected = prompted(squares)
    assert expected.shape == (11, len(PHRASES), 32, 32)
    assert not torch.allclose(expected[:, 0], expected[:, 1], atol=0.1)
    for count in (1, 2, 11):
        for graph in (onnx, program):
            torch.testing.assert_close(graph.run_graph(squares[:count]), expected[:count], atol=1e-3, rtol=1e-3)
    session = onnxruntime.InferenceSession(tmp_path / graphs.ONNX, providers=["CPUExecutionProvider"])
    image = picture(5, 32, 32)
    found, wanted = predict_without_torch(session, image), plain.predict([image], [PHRASES])[0].probabilities
    for number, phrase in enumerate(PHRASES):
        np.testing.assert_allclose(found[phrase], wanted[number], atol=1e-4)
