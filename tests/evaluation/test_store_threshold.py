"""What eval found on validation goes into an exported folder, and the folder answers by it from then on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from tests import tiny
from tests.command_line import call_command
from tests.evaluation.drawn_data import Drawn
from vesselseg.dataset.manifest import image_path
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.store_threshold import check_storable, store_threshold
from vesselseg.export.convert import convert
from vesselseg.inference.load import load_predictor


@pytest.fixture
def checkpoint(tiny_base: Path, tmp_path: Path) -> Path:
    return tiny.save_checkpoint(tiny.shaken_model(tiny_base), tmp_path / "tiny.pth", tiny.model_arguments(tiny_base))


@pytest.mark.slow
def test_found_stored_and_applied(drawn: Drawn, checkpoint: Path, tmp_path: Path) -> None:
    model, image = tmp_path / "model", image_path(drawn.folder, drawn.records("test")[0])
    convert(checkpoint, model, [image])
    found, again = tmp_path / "found", tmp_path / "again"
    arguments = [model, "--data", drawn.folder, "--device", "cpu"]
    before = load_predictor(model, device="cpu").predict([Image.open(image)], [["blood vessel"]])[0].probabilities
    assert (
        call_command("eval", *arguments, "--threshold", "auto", "--calibrate", "--store-threshold", "--out", found) == 0
    )
    results = json.loads((found / "results.json").read_text())
    temperature, threshold = (results["calibration"][name] for name in ("temperature", "threshold"))
    config = json.loads((model / "config.json").read_text())
    assert (config["threshold"], config["mask_temperature"]) == pytest.approx((threshold, temperature), abs=1e-6)
    assert f"| threshold | {threshold:.2f} at temperature {temperature:.3f}" in (model / "README.md").read_text()
    assert not list(model.glob(".*"))

    assert call_command("eval", *arguments, "--out", again) == 0
    applied = json.loads((again / "results.json").read_text())
    assert applied["threshold"]["value"] == pytest.approx(threshold, abs=1e-6)
    for one, two in zip(results["items"], applied["items"]):
        assert one["predicted_pixels"] == pytest.approx(two["predicted_pixels"], abs=3)
    nll = results["calibration"]["calibrated_everywhere"]["nll"]
    assert applied["calibration"]["everywhere"]["nll"] == pytest.approx(nll, abs=1e-4)

    remote = AutoModel.from_pretrained(model, trust_remote_code=True, dtype=torch.float32).eval()
    answer = remote.predictor(AutoTokenizer.from_pretrained(model)).predict([Image.open(image)], [["blood vessel"]])[0]
    logits = np.log(before / (1 - before))
    np.testing.assert_allclose(answer.probabilities, 1 / (1 + np.exp(-logits / temperature)), atol=1e-5)
    assert answer.threshold == config["threshold"]


def test_a_base_folders_temperature_is_not_that_of_what_was_trained_on_it(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "mask_temperature": 2.0}))
    model = tiny.shaken_model(base)
    assert model.config.mask_temperature == 2.0
    path = tiny.save_checkpoint(model, tmp_path / "tiny.pth", tiny.model_arguments(base))
    assert load_predictor(path, device="cpu").temperature == 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of an exported folder as storing reads."""
    path = tmp_path / "hf"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "sa2va_chat", "threshold": 0.5, "note": "ä"}))
    (path / "README.md").write_text(
        "| base | x |\n| threshold | 0.50, chosen on the validation split |\n| more | y |\n"
    )
    (path / "hf_model.py").write_text("mask_temperature")
    return path


def test_temperatures_multiply(folder: Path) -> None:
    """A second one is fitted to what the folder answers with the first."""
    assert store_threshold(folder, 0.3) == (0.3, 1.0)
    assert store_threshold(folder, 0.35, 2.0) == (0.35, 2.0)
    assert store_threshold(folder, 0.4, 1.5) == (0.4, 3.0)
    assert store_threshold(folder, 0.45) == (0.45, 3.0)
    assert json.loads((folder / "config.json").read_text()) == {
        "model_type": "sa2va_chat",
        "threshold": 0.45,
        "note": "ä",
        "mask_temperature": 3.0,
    }
    lines = (folder / "README.md").read_text().splitlines()
    expected = "| threshold | 0.45 at temperature 3.000, chosen on the validation split |"
    assert lines == ["| base | x |", expected, "| more | y |"]


def test_a_folder_of_an_earlier_version_takes_no_temperature(folder: Path) -> None:
    (folder / "hf_model.py").write_text("threshold")
    check_storable(folder, temperature=False)
    with pytest.raises(EvaluationError, match=r"convert the checkpoint again"):
        store_threshold(folder, 0.3, 1.5)
    assert json.loads((folder / "config.json").read_text())["threshold"] == 0.5


def test_a_failed_write_leaves_the_folder_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        store_threshold(folder, 0.3)
    assert json.loads((folder / "config.json").read_text())["threshold"] == 0.5
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "hf_model.py"]


def test_what_holds_no_model_is_refused_before_any_work(
    drawn: Drawn, checkpoint: Path, probability_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "published"
    published.mkdir()
    (published / "config.json").write_text('{"model_type": "sa2va_chat"}')
    arguments = ["--data", drawn.folder, "--out", tmp_path / "out", "--store-threshold"]
    for source, expected in (
        (checkpoint, "convert it first"),
        (probability_folder, "contains predictions, not a model"),
        (published, "another program wrote the folder"),
        (tmp_path / "nothing", "does not exist"),
    ):
        assert call_command("eval", source, *arguments, "--threshold", "auto") == 2
        assert expected in capsys.readouterr().err
    assert call_command("eval", probability_folder, *arguments, "--threshold", "0.4") == 2
    assert "--threshold auto" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
