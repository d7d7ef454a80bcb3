"""The student: its folder, its graphs, and the phrases that it refuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.command_line import call_command
from tests.distill.conftest import FEATURE_BYTES, PHRASE, TEACHER_TRAINED_ON
from tests.evaluation.drawn_data import Drawn
from tests.isolated import run_without
from tests.tiny import picture
from vesselseg.dataset.manifest import image_digests
from vesselseg.distill import graphs, targets, train_heads
from vesselseg.distill.options import RESULTS_FILE, DistillOptions
from vesselseg.distill.predict_onnx import predict as predict_without_torch
from vesselseg.distill.run import distill
from vesselseg.errors import UserError, WeightsError
from vesselseg.export.hf_prompted_model import VesselSegSAM2Model
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.load import load_predictor
from vesselseg.inference.predictor import Predictor
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.models.prompted_sam2 import POSITIONS, PromptedSAM2, positions_matrix

KEPT = 3  # images whose features fit into the limit
AS_ON_A_GPU = ("--device", "cpu", "--dtype", "bf16")
FEW_EPOCHS = 10  # end training before the minutes do, so results do not depend on the machine's speed
IMAGE = picture(5, 150, 120)


@dataclass(frozen=True)
class Distilled:
    """Output of the tool. content: of distillation.json."""

    folder: Path
    content: dict[str, Any]
    printed: str

    @property
    def chosen(self) -> dict[str, Any]:
        return next(one for one in self.content["candidates"] if one["name"] == self.content["chosen"])


@pytest.fixture(scope="module")
def distilled(teacher_folder: Path, data: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    out, printed = tmp_path_factory.mktemp("small") / "model", io.StringIO()
    with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_heads, "MAX_EPOCHS", FEW_EPOCHS)
        patch.setattr(targets, "MAX_FEATURE_BYTES", KEPT * FEATURE_BYTES)
        command = ("distill", teacher_folder, "--data", data.folder, "--out", out, "--minutes", 60, *AS_ON_A_GPU)
        assert call_command(*command) == 0
    return Distilled(out, json.loads((out / RESULTS_FILE).read_text()), printed.getvalue())


@pytest.fixture(scope="module")
def folder(distilled: Distilled) -> Path:
    return distilled.folder


@pytest.mark.slow
def test_report_and_card_state_the_images_used_for_masks(distilled: Distilled, data: Drawn) -> None:
    images = distilled.content["images"]
    kept = {split: min(KEPT, number) for split, number in images.items()}
    assert distilled.content["images_whose_masks_were_learnt"] == kept and kept["train"] < images["train"]
    text_in_both = f"{kept['train']} of {images['train']} training images"
    for file in ("README.md", "report.html"):
        text = (distilled.folder / file).read_text()
        assert text_in_both in text and "drawn with seed 0" in text, file


def test_training_on_masks_lowers_their_loss(distilled: Distilled) -> None:
    tuned = next(one for one in distilled.content["training"] if one["name"] == "mean, tuned")
    assert tuned["losses"][-1][0] < tuned["losses"][0][0] and tuned["ended_by"] in ("epochs", "patience")


def test_the_folder_lists_the_training_images_of_both_models(distilled: Distilled, data: Drawn) -> None:
    own = image_digests(data.folder, data.records("train")).values()
    assert read_config(distilled)["training_images"].split() == sorted({*own, TEACHER_TRAINED_ON})


def read_config(distilled: Distilled) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((distilled.folder / "config.json").read_text())
    return content


def test_the_folder_holds_the_measured_model(distilled: Distilled) -> None:
    folder, result = distilled.folder, distilled.content
    files = {"config.json", "model.safetensors", "README.md", "report.html", RESULTS_FILE, graphs.ONNX}
    assert files | {graphs.ONNX_INT8, graphs.PROGRAM, "predict_onnx.py"} <= {path.name for path in folder.iterdir()}
    config = read_config(distilled)
    assert config["model_type"] == "vesselseg_sam2" and config["phrases"] == [PHRASE]
    assert config["threshold"] == distilled.chosen["threshold"] and config["mask_temperature"] == 1.5
    checked = {one["file"]: one for one in result["forms"]}
    assert max(checked[name]["probability"] for name in ("model.safetensors", graphs.ONNX, graphs.PROGRAM)) < 1e-4
    assert checked[graphs.ONNX_INT8]["bytes"] < 0.7 * checked[graphs.ONNX]["bytes"]
    card = (folder / "README.md").read_text()
    assert "should not be used" in card and f"{distilled.chosen['dice']:.4f}" in card
    assert f"{result['int8']['dice']:.4f}" in card
    assert "should not be used" in (folder / "report.html").read_text()


def test_no_memory_is_stored_and_loading_is_strict(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    assert not [name for name in state if "memory" in name]
    assert all(name.startswith(("grounding_encoder.sam2_model.", "prompt_head.")) for name in state)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state.pop("prompt_head.base")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"prompt_head\.base"):
        load_predictor(tmp_path, device="cpu")


def test_the_head_is_stored_in_float32(folder: Path) -> None:
    """Not rounded to the precision that the teacher runs in."""
    base = load_file(folder / "model.safetensors")["prompt_head.base"]
    assert base.dtype == torch.float32 and not torch.equal(base, base.bfloat16().float())


def test_other_phrases_are_refused(folder: Path) -> None:
    predictor = load_predictor(folder, device="cpu")
    assert isinstance(predictor, PromptedPredictor)
    for text in (
        "catheter",
        "Please segment catheter in this image.",
        "Please segment Please segment the blood vessel..",
    ):
        with pytest.raises(UserError, match=f"only 'blood vessel', not {text!r}"):
            predictor.predict([IMAGE], [[text]])
    with pytest.raises(ValueError, match="phrase is empty"):
        predictor.resolve_phrase(" ")
    with pytest.raises(UserError, match="no language model"):
        predictor.chat(IMAGE, "What is this?")
    several = predictor.predict([IMAGE, picture(1)], [[PHRASE, " blood  vessel "], []])
    assert several[0].probabilities.shape == (2, 120, 150) and several[1].probabilities.shape[0] == 0
    np.testing.assert_array_equal(several[0].probabilities[0], several[0].probabilities[1])


@pytest.mark.parametrize("text", ["Blood Vessel", "  blood\tvessel ", "please segment the  blood vessel. "])
def test_one_rule_maps_texts_to_phrases(folder: Path, text: str) -> None:
    """In predictions, clips, questions, and the model class in the folder."""
    predictor = load_predictor(folder, device="cpu")
    assert predictor.resolve_phrase(text) == PHRASE
    expected = predictor.predict([IMAGE], [[PHRASE]])[0].probabilities
    remote = VesselSegSAM2Model.from_pretrained(folder)
    answers = {
        "predict": predictor.predict([IMAGE], [[text]])[0].probabilities,
        "probabilities": predictor.probabilities([IMAGE], [[text]])[0],
        "cine": next(segment_cine(predictor, [IMAGE], [text], "frames")).probabilities,
        "remote": remote.predict_forward(IMAGE, f"<image>{text}")["prediction_probs"][0],
    }
    for name, found in answers.items():
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)


def test_phrases_that_differ_only_in_case_are_distinguished(folder: Path) -> None:
    model = load_predictor(folder, device="cpu").model
    assert isinstance(model, PromptedSAM2)
    model.config.phrases = ["lm", "LM"]
    predictor = PromptedPredictor(model)
    assert [predictor.resolve_phrase(text) for text in ("lm", "LM", "Please segment the LM.")] == ["lm", "LM", "LM"]


@pytest.mark.process
def test_the_folder_loads_without_vesselseg(folder: Path, tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "image.png")
    script = f"""
import numpy
from PIL import Image
from transformers import AutoModel
model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
result = model.predict_forward(Image.open("image.png"), "<image>\\nPlease segment the blood vessel.")
assert result["prediction_masks"][0].dtype == bool
numpy.save("probability.npy", result["prediction_probs"][0])
"""
    run_without(script, tmp_path, "vesselseg")
    expected = load_predictor(folder, device="cpu").predict([IMAGE], [[PHRASE]])[0].probabilities
    np.testing.assert_allclose(np.load(tmp_path / "probability.npy"), expected, atol=1e-5)


def test_positions_stay_exact_in_half_types(folder: Path) -> None:
    exact = load_file(folder / "model.safetensors")[POSITIONS.replace("grounding.sam2", "grounding_encoder.sam2_model")]
    loaded = load_predictor(folder, device="cpu", dtype=torch.bfloat16)
    assert isinstance(loaded, PromptedPredictor)
    remote = VesselSegSAM2Model.from_pretrained(folder, dtype=torch.bfloat16)
    for model in (loaded.model, remote.prompted):
        assert model.dtype == torch.bfloat16
        assert torch.equal(positions_matrix(model), exact)


def test_onnx_gives_the_same_masks_for_any_batch(folder: Path) -> None:
    plain = load_predictor(folder, device="cpu")
    assert isinstance(plain, PromptedPredictor)
    onnx = graphs.OnnxPredictor(plain.model, folder / graphs.ONNX)
    squares = torch.stack([plain.views.square(picture(number)) for number in range(5)])
    with torch.no_grad():
        expected = plain.model(squares)
    scale = float(expected.abs().max())
    for count in (1, 2, 5):
        assert float((onnx.run_graph(squares[:count]) - expected[:count]).abs().max()) <= 1e-3 * scale
    images = [picture(number, 150, 90) for number in range(5)]
    phrases = [[PHRASE]] * 5
    masks = [np.stack([one.masks for one in each.predict(images, phrases)]) for each in (plain, onnx)]
    assert (masks[0] == masks[1]).mean() >= 0.999


@pytest.mark.process
def test_numpy_and_onnxruntime_are_enough(folder: Path, tmp_path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / graphs.ONNX, providers=["CPUExecutionProvider"])
    expected = load_predictor(folder, device="cpu").predict([IMAGE], [[PHRASE]])[0].probabilities[0]
    np.testing.assert_allclose(predict_without_torch(session, IMAGE)[PHRASE], expected, atol=1e-4)
    IMAGE.save(tmp_path / "image.png")
    script = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"

    def call_command(*words: str) -> subprocess.CompletedProcess[str]:
        start = f"import sys; sys.argv = {[str(folder / 'predict_onnx.py'), *words]!r}; {script}"
        return subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, cwd=tmp_path, check=False)

    model = str(folder / graphs.ONNX)
    done = call_command(model, "image.png", "m.png")
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.asarray(Image.open(tmp_path / "m.png")).shape == (120, 150)
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(tmp_path / "deep.png")
    for words, reason in (([], "predict_onnx.py model_int8.onnx"), ([model, "deep.png", "m.png"], "more than 8 bits")):
        refused = call_command(*words)
        assert refused.returncode == 1 and reason in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_eval_and_predict_take_the_folder(
    distilled: Distilled, data: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = distilled.folder
    shared = AS_ON_A_GPU
    arguments = (folder, "--data", data.folder, "--split", "val", "--out", tmp_path / "eval", *shared)
    assert call_command("eval", *arguments) == 0
    scored = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert scored["summary"]["dice"]["mean"] == pytest.approx(distilled.chosen["dice"], abs=1e-6)
    IMAGE.save(tmp_path / "image.png")
    assert call_command("predict", folder, tmp_path / "image.png", "--out", tmp_path / "out", *shared) == 0
    assert (tmp_path / "out" / "masks" / "image.png").exists()
    phrases = [word for text in ("Please segment the blood vessel.", "Blood Vessel") for word in ("--phrase", text)]
    assert call_command("predict", folder, tmp_path / "image.png", "--out", tmp_path / "second", *phrases, *shared) == 0
    assert json.loads((tmp_path / "second" / "predictions.json").read_text())["phrases"] == [PHRASE]
    masks = [(tmp_path / out / "masks" / "image.png").read_bytes() for out in ("out", "second")]
    assert masks[0] == masks[1]
    bad = (folder, tmp_path / "image.png", "--out", tmp_path / "other", "--phrase", "catheter", *shared)
    assert call_command("predict", *bad) == 2
    assert "segments only 'blood vessel'" in capsys.readouterr().err


def test_bad_input_is_refused_before_anything_is_written(
    teacher: Predictor, data: Drawn, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"no image of split train has an object called 'catheter'.*'blood vessel'"):
        distill(teacher, "big", data.folder, out, DistillOptions(phrases=("catheter",)))
    with pytest.raises(UserError, match="--phrase: the phrase is empty"):
        distill(teacher, "big", data.folder, out, DistillOptions(phrases=(" ",)))
    with pytest.raises(UserError, match="distilled model already"):
        distill(load_predictor(folder, device="cpu"), str(folder), data.folder, out, DistillOptions())
    with pytest.raises(UserError, match="exists"):
        distill(teacher, "big", data.folder, folder, DistillOptions())
    splits = (data.folder / "splits.json").read_text()
    try:
        data.resplit(val=[], test=[*json.loads(splits)["val"], *json.loads(splits)["test"]])
        with pytest.raises(UserError, match="split val has no image"):
            distill(teacher, "big", data.folder, out, DistillOptions())
    finally:
        (data.folder / "splits.json").write_text(splits)
    assert not out.exists()


def test_the_tool_prints_a_summary_and_replaces_nothing(
    distilled: Distilled, teacher_folder: Path, data: Drawn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "<- exported" in distilled.printed and "do not use it: It was trained on 4 images" in distilled.printed
    options = ("--data", data.folder, "--out", distilled.folder, *AS_ON_A_GPU)
    assert call_command("distill", teacher_folder, *options) == 2
    assert "--force" in capsys.readouterr().err
