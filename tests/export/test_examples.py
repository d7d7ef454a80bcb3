"""The scripts of examples/, run on an exported folder as a user runs them."""

from __future__ import annotations

import json
import runpy
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples import hf_trainer
from tests.command_line import call_command
from tests.evaluation.drawn_data import Drawn, call_tool
from tests.export.conftest import LOSS
from tests.tiny import picture
from vesselseg.config.settings import Schedule
from vesselseg.dataset.augment import Augment
from vesselseg.dataset.collate import collate
from vesselseg.dataset.manifest import image_digests
from vesselseg.inference.load import load_predictor
from vesselseg.training.plan import TrainPlan
from vesselseg.training.sampler import StreamSampler
from vesselseg.training.training_data import training_dataset
from vesselseg.training.training_model import TrainingModel

STEPS, BATCH = 12, 2


@pytest.mark.parametrize("name", ["plain.png", "turned.jpg", "deep.png"])
@pytest.mark.parametrize("script", ["image_to_picture.py", "image_to_picture_hf.py"])
def test_ten_lines_make_a_picture(
    script: str, name: str, exported: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same image with and without vesselseg, upright and scaled from all bits of the file."""
    source = repository / "examples" / script
    code = [line for line in source.read_text().split('"""')[2].splitlines() if line and "import" not in line]
    assert len(code) <= 10
    image = saved_picture(tmp_path / name)
    monkeypatch.setattr("sys.argv", [script, str(exported), str(tmp_path / name), str(tmp_path / "out.png")])
    runpy.run_path(str(source), run_name="__main__")
    drawn = np.array(Image.open(tmp_path / "out.png"))
    mask = load_predictor(exported, device="cpu").predict([image], [["blood vessel"]])[0].masks[0]
    assert 0 < mask.mean() < 1
    expected = np.array(image)
    expected[mask, 0] = 255
    np.testing.assert_array_equal(drawn, expected)


def saved_picture(path: Path) -> Image.Image:
    """Write an image file and return the expected upright 8-bit image."""
    image = picture(5, 90, 70)
    if path.name == "turned.jpg":
        turned = Image.Exif()
        turned[0x0112] = 6  # displayed rotated by 90 degrees clockwise
        image.save(path, exif=turned)
        return Image.open(path).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    if path.name == "deep.png":
        values = np.asarray(image.convert("L")).astype(np.uint16)
        Image.fromarray(values * 200 + 300).save(path)
        low, high = int(values.min()), int(values.max())
        return Image.fromarray(np.round((values - low) * (255.0 / (high - low))).astype(np.uint8)).convert("RGB")
    image.save(path)
    return image


@pytest.mark.slow
def test_training_on_with_transformers_trainer(
    exported: Path, drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first loss equals that of vesselseg train, losses fall, and the folder can be evaluated."""
    out = tmp_path / "trained"
    options = ["--lr", 3e-3, "--batch", BATCH, "--accumulation", 1, "--max-iters", STEPS, "--epochs", 99, "--seed", 3]
    assert call_tool("../examples/hf_trainer.py", exported, "--data", drawn.folder, "--out", out, *options) == 0
    assert f"{out}: written" in capsys.readouterr().out
    rows = json.loads((out / "trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(main_path_loss(exported, drawn), abs=1e-4)
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4]), losses
    plan = TrainPlan(4, 1, Schedule(lr=3e-3, epochs=99, max_iters=STEPS, micro_batch=BATCH, accumulation=1))
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates == pytest.approx([plan.learning_rate(step) for step in range(STEPS)])
    score = ["--data", drawn.folder, "--split", "test", "--threshold", "auto", "--out", tmp_path / "eval"]
    assert call_command("eval", out, *score) == 0
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["source"]["kind"] == "model" and results["data"]["seen_in_training"] == []
    seen = image_digests(drawn.folder, drawn.records("train")).values()
    assert load_predictor(out, device="cpu").model.config.training_images.split() == sorted(seen)


def test_processes_cache_a_folders_code_one_at_a_time(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking, at_once = [], []

    def taken(reference: str, folder: str) -> None:
        taking.append(reference)
        at_once.append(len(taking))
        time.sleep(0.05)
        taking.remove(reference)

    monkeypatch.setattr(hf_trainer, "get_class_from_dynamic_module", taken)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hf_trainer.cache_code, [exported] * 4))
    assert at_once == [1] * 8  # the config's class and the model's, four times


def main_path_loss(exported: Path, drawn: Drawn) -> float:
    """Of the first batch of `bash tools/dist.sh train` with the same seed."""
    data = training_dataset(drawn.folder, exported, 128, augment=Augment(), seed=3)
    plan = TrainPlan(len(data), 1, Schedule(micro_batch=BATCH, max_iters=STEPS))
    batch = collate([data[item] for item in next(iter(StreamSampler(plan, 0, 3)))])
    model = TrainingModel({"base": str(exported), "trainable": {}, "lora": {"dropout": 0.0}}, LOSS)
    return float(sum(model.train()(batch).values()))


@pytest.mark.parametrize("wrong", ["published", "nothing", "out", "batch"])
def test_errors_of_training_are_one_line(
    wrong: str, exported: Path, drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, further = exported, tmp_path / "out", []
    if wrong == "published":
        folder = tmp_path / "folder"
        shutil.copytree(exported, folder)
        change_config(folder, architectures=["Sa2VAChatModel"])
    elif wrong == "nothing":
        folder = tmp_path
    elif wrong == "out":
        out = exported
    else:
        further = ["--batch", 0]
    status = call_tool("../examples/hf_trainer.py", folder, "--data", drawn.folder, "--out", out, *further)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and message.startswith("error: "), message
    expected = {"published": "vesselseg convert", "nothing": "config.json", "out": "--force", "batch": "micro_batch"}
    assert expected[wrong] in message
    assert not (tmp_path / "out").exists()


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
