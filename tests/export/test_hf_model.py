"""The model class of an exported folder: training, saving, devices, quantisation; test_convert.py covers predicting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig

from tests.evaluation.drawn_data import Drawn
from tests.export.conftest import LOSS
from tests.tiny import LORA, picture
from vesselseg.dataset.batch import Batch
from vesselseg.dataset.collate import collate
from vesselseg.export.convert import training_loss
from vesselseg.export.hf_loading import distribute_layers, resolve_device_map
from vesselseg.export.hf_model import VesselSegModel
from vesselseg.inference.load import load_predictor
from vesselseg.models.lora import Lora, Trainable, attach_lora, set_trainable, trainable_state
from vesselseg.training.training_data import training_dataset
from vesselseg.training.training_model import TrainingModel


@pytest.fixture
def batch(exported: Path, drawn: Drawn) -> Batch:
    data = training_dataset(drawn.folder, exported, 128)
    return collate([data[0], data[1]])


def load(folder: Path, **how: Any) -> Any:
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **how)


def training(folder: Path, shaken: bool = False) -> Any:
    """The model with adapters; shaken: with noise added to all trainable parameters."""
    model = load(folder)
    torch.manual_seed(0)
    attach_lora(model.sa2va, Lora(**LORA))
    set_trainable(model.sa2va, Trainable())
    if shaken:
        with torch.no_grad():
            for parameter in trainable_state(model).values():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def answers(model: Any, folder: Path) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval().predict_forward(image=picture(7), tokenizer=tokenizer)["prediction_probs"][0]


def test_the_losses_are_those_of_the_main_path(exported: Path, batch: Batch) -> None:
    main = TrainingModel({"base": str(exported), "lora": LORA, "trainable": {}}, LOSS)
    expected = main(batch)
    found = load(exported)(**vars(batch))
    assert expected.keys() == found.losses.keys() == {"loss_lm", "loss_bce", "loss_dice"}
    for name, value in expected.items():
        torch.testing.assert_close(found.losses[name], value, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, sum(expected.values()), atol=1e-5, rtol=0)
    assert found.mask_logits.shape == (2, 32, 32)


def test_the_losses_weights_come_from_the_checkpoint(exported: Path) -> None:
    assert json.loads((exported / "config.json").read_text())["training_loss"] == LOSS
    assert training_loss({}) == training_loss({"config": "seed = 0"}) == {}


def test_without_labels_there_are_masks_and_no_loss(exported: Path, batch: Batch) -> None:
    model = load(exported).eval()
    names = ("sam_images", "tiles", "input_ids")
    with torch.no_grad():
        found = model(**{name: getattr(batch, name) for name in names})
        expected = model(**vars(batch))
    assert found.loss is None and found.losses is None
    torch.testing.assert_close(found.mask_logits, expected.mask_logits)


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_give_the_same_gradients(exported: Path, batch: Batch, reentrant: bool) -> None:
    model = training(exported).train()
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.sa2va.language_model.model.layers[0].gradient_checkpointing
            assert not model.sa2va.vision_model.encoder.layer[0].gradient_checkpointing
        model.zero_grad()
        model(**vars(batch)).loss.backward()
        gradients.append([one.grad.clone() for one in model.parameters() if one.requires_grad])
    assert all(float(one.abs().max()) > 0 for one in gradients[0][-4:])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-4)


def test_trained_weights_are_in_the_saved_folder(exported: Path, tmp_path: Path) -> None:
    model = training(exported, shaken=True)
    model.save_pretrained(tmp_path / "saved")
    assert "lora_A.default.weight" in "".join(model.state_dict())  # saving does not remove the adapters
    AutoTokenizer.from_pretrained(exported).save_pretrained(tmp_path / "saved")
    expected = answers(model, exported)
    assert np.abs(expected - answers(load(exported), exported)).max() > 1e-2
    np.testing.assert_allclose(answers(load(tmp_path / "saved"), tmp_path / "saved"), expected, atol=1e-5)
    predictor = load_predictor(tmp_path / "saved", device="cpu")
    found = predictor.probabilities([picture(7)], [["Please segment the blood vessel."]])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert predictor.threshold == 0.4
    before, after = (json.loads((place / "config.json").read_text()) for place in (exported, tmp_path / "saved"))
    assert before == after
    names = {path.name for path in exported.iterdir()} - {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"README.md"}


def test_the_class_of_the_package_saves_the_same(exported: Path, tmp_path: Path) -> None:
    VesselSegModel.from_pretrained(exported).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_saved_weights_are_not_silently_ignored(exported: Path) -> None:
    """Trainer resumes this way; unknown names would only cause a warning and leave the model unchanged."""
    model = training(exported)
    with pytest.raises(ValueError, match="from_pretrained"):
        model.load_state_dict({"mlp1.0.weight": torch.zeros(1)}, strict=False)
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        ({}, 0.0),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, 2e-3),
        ({"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}, 2e-2),
    ],
)
def test_device_maps_and_quantisation_of_transformers(
    exported: Path, tmp_path: Path, how: dict[str, Any], tolerance: float
) -> None:
    model = load(exported, device_map="auto", **how)
    difference = np.abs(answers(model, exported) - answers(load(exported), exported)).max()
    assert difference <= tolerance
    if not how:
        return
    assert difference > 0
    kinds = {type(module).__name__: name for name, module in model.named_modules() if "bit" in type(module).__name__}
    assert len(kinds) == 1 and all(name.startswith("sa2va.language_model.model.layers") for name in kinds.values())
    with pytest.raises(ValueError, match="4 or 8 bits"):
        model.save_pretrained(tmp_path / "saved")


def test_only_decoder_layers_are_distributed(exported: Path) -> None:
    model = load(exported)
    devices = [torch.device("cuda", number) for number in range(2)]
    shares = distribute_layers(devices, model.config, torch.bfloat16, None)
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        owners = [place for prefix, place in shares.items() if name.startswith(f"{prefix}.")]
        assert len(owners) == 1, name
        assert owners[0] == devices[0] or ".layers." in name
    assert devices[1] in shares.values()
    assert resolve_device_map(shares, model.config, torch.bfloat16) == shares


@pytest.mark.parametrize(
    "wrong",
    [{"sa2va.grounding": 1, "sa2va.vision_model": 0}, {"": "cpu", "sa2va.language_model.model.layers.0": "disk"}],
)
def test_a_map_that_separates_sam2_is_refused(exported: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="decoder layers"):
        load(exported, device_map=wrong)
