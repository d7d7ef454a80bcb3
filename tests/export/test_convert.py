from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from tests.command_line import call_command
from tests.isolated import run_without
from tests.tiny import LORA, model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.errors import UserError, WeightsError
from vesselseg.export import convert as convert_module
from vesselseg.export.convert import convert
from vesselseg.inference.load import load_predictor
from vesselseg.models.checkpoints.published_layout import from_ours, to_ours
from vesselseg.models.checkpoints.write_published import published_state
from vesselseg.models.lora import merge_lora

POSITIONS = "grounding_encoder.sam2_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def test_checkpoint_and_folder_give_the_same_results(checkpoint: Path, exported: Path) -> None:
    image = picture(7, 200, 90)
    before = load_predictor(checkpoint, device="cpu").predict([image], [["blood vessel", "catheter"]])[0]
    after = load_predictor(exported, device="cpu").predict([image], [["blood vessel", "catheter"]])[0]
    assert before.threshold == after.threshold == 0.4
    assert before.probabilities.shape == (2, 90, 200)
    assert before.probabilities.std() > 1e-3
    np.testing.assert_allclose(before.probabilities, after.probabilities, atol=1e-5)


def test_adapters_change_the_answer(checkpoint: Path, tiny_base: Path) -> None:
    """The comparison above would be empty if LoRA did nothing."""
    content = torch.load(checkpoint, weights_only=True)
    for name in content["state_dict"]:
        if "lora_B" in name:
            content["state_dict"][name].zero_()
    torch.save(content, checkpoint.parent / "no_lora.pth")
    image = picture(7)
    with_lora = load_predictor(checkpoint, device="cpu").predict([image], [["blood vessel"]])[0]
    without = load_predictor(checkpoint.parent / "no_lora.pth", device="cpu").predict([image], [["blood vessel"]])[0]
    assert np.abs(with_lora.probabilities - without.probabilities).max() > 1e-4


@pytest.mark.slow
def test_folder_loads_without_the_training_framework(exported: Path, tmp_path: Path) -> None:
    """AutoModel in an environment without vesselseg, mmengine, xtuner, deepspeed and peft."""
    image_path = tmp_path / "image.png"
    picture(3).save(image_path)
    script = f"""
import numpy, torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(exported)!r})
model = AutoModel.from_pretrained({str(exported)!r}, trust_remote_code=True).eval()
image = Image.open({str(image_path)!r})
text = "<image>\\nPlease segment the blood vessel."
result = model.predict_forward(image=image, text=text, tokenizer=tokenizer, threshold=None)
assert set(result) == {{"prediction", "prediction_masks", "prediction_probs"}}, result.keys()
mask, probability = result["prediction_masks"][0], result["prediction_probs"][0]
assert mask.shape == probability.shape == (1, 120, 150), mask.shape
assert mask.dtype == bool and probability.dtype == numpy.float32
assert (mask == (probability > 0.4)).all()
assert "[SEG]" in result["prediction"]
tight = model.predict_forward(image=image, text=text, tokenizer=tokenizer, threshold=0.9)
assert tight["prediction_masks"][0].sum() <= mask.sum()
numpy.save({str(tmp_path / "probability.npy")!r}, probability)
"""
    run_without(script, tmp_path, "vesselseg", "mmengine", "xtuner", "deepspeed", "peft")
    inside = load_predictor(exported, device="cpu")
    expected = inside.probabilities([Image.open(image_path)], [["Please segment the blood vessel."]])[0]
    np.testing.assert_allclose(np.load(tmp_path / "probability.npy"), expected, atol=1e-5)


@pytest.mark.slow
def test_stored_dtype_is_what_from_pretrained_gives(checkpoint: Path, images: list[Path], tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "half", images, dtype=torch.bfloat16)
    model = AutoModel.from_pretrained(tmp_path / "half", trust_remote_code=True)
    assert model.sa2va.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "half")
    result = model.predict_forward(image=picture(1), tokenizer=tokenizer)
    assert result["prediction_probs"][0].dtype == np.float32


@pytest.mark.slow
def test_positions_stay_exact_in_a_bf16_folder(checkpoint: Path, images: list[Path], tmp_path: Path) -> None:
    """SAM2's matrix of position encodings is written in float32, the weights in bf16. A rounded matrix, as in published
    folders, loads as before and is written rounded.
    """

    def matrix(predictor: Any) -> torch.Tensor:
        return predictor.model.grounding.sam2.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix

    convert(checkpoint, tmp_path / "half", images, dtype=torch.bfloat16)
    drawn = matrix(load_predictor(checkpoint, "cpu"))
    assert not torch.equal(drawn.bfloat16().float(), drawn)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(matrix(load_predictor(tmp_path / "half", "cpu", dtype)), drawn)
    held = load_file(tmp_path / "half/model.safetensors")
    assert [name for name, value in held.items() if value.dtype != torch.bfloat16] == [POSITIONS]
    whole = AutoModel.from_pretrained(tmp_path / "half", trust_remote_code=True, dtype=torch.float32)
    assert torch.equal(matrix(SimpleNamespace(model=whole.sa2va)), drawn)

    save_file({**held, POSITIONS: held[POSITIONS].bfloat16()}, tmp_path / "half/model.safetensors", {"format": "pt"})
    rounded = load_predictor(tmp_path / "half", "cpu")
    assert torch.equal(matrix(rounded), drawn.bfloat16().float())
    assert published_state(rounded.model, torch.bfloat16)[POSITIONS].dtype == torch.bfloat16


def test_published_names_and_back(tiny_base: Path) -> None:
    model = shaken_model(tiny_base)
    merge_lora(model)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("new_tokens.")}
    published = from_ours(state, model.config)
    assert all(name.split(".")[0] in PUBLISHED_ROOTS for name in published), sorted(published)[:5]
    assert "vision_model.encoder.layers.0.attn.qkv.weight" in published
    assert any(name.endswith("g_weight") for name in published)
    back = {ours: piece for name, tensor in published.items() for ours, piece in to_ours(name, tensor, model.config)}
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


PUBLISHED_ROOTS = {"vision_model", "mlp1", "language_model", "text_hidden_fcs", "grounding_encoder"}


def test_new_rows_are_inside_the_tables(tiny_base: Path) -> None:
    model = shaken_model(tiny_base)
    merge_lora(model)
    state, start = published_state(model, torch.float32), model.new_tokens.start
    table = state["language_model.model.embed_tokens.weight"]
    assert len(table) == start + 5
    assert torch.equal(table[start:], model.new_tokens.embedding)
    assert torch.equal(table[:start], model.language_model.model.embed_tokens.weight)
    assert torch.equal(state["language_model.lm_head.weight"][start:], model.new_tokens.head)


def test_merged_weight_is_w_plus_scaled_ba(tiny_base: Path) -> None:
    model = shaken_model(tiny_base)
    layer = model.language_model.model.layers[1].mlp.down_proj
    weight = layer.base_layer.weight.clone()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = weight + LORA["alpha"] / LORA["r"] * b @ a
    merge_lora(model)
    torch.testing.assert_close(model.language_model.model.layers[1].mlp.down_proj.weight, expected, atol=1e-6, rtol=0)
    assert (expected - weight).abs().max() > 1e-3


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_checkpoint_that_does_not_fit_is_refused(
    fault: str, checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    name = "new_tokens.embedding"
    if fault == "missing":
        del content["state_dict"][name]
    elif fault == "unexpected":
        content["state_dict"]["new_tokens.extra"] = torch.zeros(1)
    else:
        content["state_dict"][name] = torch.zeros(5, 3)
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="new_tokens"):
        convert(tmp_path / "bad.pth", tmp_path / "out", images)
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.pth"]


@pytest.mark.slow
def test_a_difference_stops_the_conversion(
    checkpoint: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's weights are damaged between writing and checking: no folder may remain."""
    write = convert_module.write_published_folder

    def write_damaged(model, tokenizer, folder, **options):
        with torch.no_grad():
            model.seg_projector.linear_2.weight.mul_(1.5)
        write(model, tokenizer, folder, **options)

    monkeypatch.setattr(convert_module, "write_published_folder", write_damaged)
    with pytest.raises(UserError, match="gives different results"):
        convert(checkpoint, tmp_path / "out", images)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_kept(checkpoint: Path, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="--force"):
        convert(checkpoint, out, images)
    with pytest.raises(UserError, match=r"config\.json"):
        convert(checkpoint, out, images, force=True)
    assert (out / "mine.txt").read_text() == "keep"


@pytest.mark.slow
def test_a_smaller_sam2_view_reaches_every_later_step(exported: Path, images: list[Path], tmp_path: Path) -> None:
    """From a folder with SAM2 at 128: trained at 64, so predicted, converted and predicted again at 64."""
    arguments = model_arguments(exported, sam2={"image_size": 64})
    model = shaken_model(exported, sam2={"image_size": 64})
    path = save_checkpoint(model, tmp_path / "best.pth", arguments)
    convert(path, tmp_path / "hf", images)
    answers = []
    for place in (path, tmp_path / "hf"):
        predictor = load_predictor(place, device="cpu")
        assert predictor.model.grounding.image_size == predictor.processor.views.sam_size == 64
        assert predictor.model.config.grounding_config["trunk"] == load_config_of(exported)["trunk"]
        answers.append(predictor.predict([picture(7)], [["blood vessel"]])[0].probabilities)
    np.testing.assert_allclose(*answers, atol=1e-5)
    assert load_config_of(tmp_path / "hf")["image_size"] == 64 and load_config_of(exported)["image_size"] == 128


def load_config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["grounding_config"]


def test_config_and_card(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["threshold"] == 0.4
    assert config["llm_config"]["vocab_size"] == config["new_token_start"] + 5
    card = (exported / "README.md").read_text()
    assert "0.40, chosen on the validation split" in card


def test_tool_needs_images_it_can_find(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_command("convert", checkpoint, "--save-path", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "--images" in message
