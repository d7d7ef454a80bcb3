"""benchmarks/cine.py and cine_memory_training.py: figures by hand, and gradients that reach the memory alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cine import WAYS, Run, drawn, figures, folders, pass_as_trained, strip, summary, table
from benchmarks.cine_memory_training import clips_loss, encode, frames_loss, train
from tests.samples import processor_of
from tests.tiny import shaken_model
from vesselseg.inference.predictor import Prediction
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.sam2_memory import memory_trained
from vesselseg.synthetic.cine import draw_cine


@pytest.fixture
def predictor(tiny_base: Path) -> Sa2VAPredictor:
    model = shaken_model(tiny_base).requires_grad_(False)
    return Sa2VAPredictor(model, processor_of(model, tiny_base))


@pytest.mark.slow
def test_a_few_steps_train_the_memory_and_nothing_else(predictor: Sa2VAPredictor) -> None:
    pool = encode(predictor, [draw_cine(6, 128, seed) for seed in (1, 2)])
    assert pool.embedding.shape[0] == pool.prompts.shape[0] == 12
    assert pool.truth.shape == (2, 6, 32, 32) and pool.truth.max() > 0.9
    sam2 = predictor.grounding.sam2
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    assert float(frames_loss(predictor.grounding, pool, 3)) > 0 and not memory_trained(predictor.grounding)
    parameters = [*sam2.memory_attention.parameters(), *sam2.memory_encoder.parameters(), sam2.maskmem_tpos_enc]
    train(parameters, 1.0, lambda: clips_loss(predictor.grounding, pool, 2, 4))
    assert memory_trained(predictor.grounding)
    after = predictor.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("memory_" in name or "maskmem" in name for name in changed)


@pytest.mark.slow
def test_every_way_gives_a_prediction_per_frame(predictor: Sa2VAPredictor) -> None:
    pass_as_trained(predictor)
    run = next(drawn(1, 5, 96))
    found = {name: way(predictor, run.frames) for name, way in WAYS.items()}
    assert {len(predictions) for predictions in found.values()} == {5}
    own, both = found["frames"], found["memory, every 8, both ways"]
    for keyframe in (0, 4):
        np.testing.assert_allclose(own[keyframe].probabilities, both[keyframe].probabilities, atol=1e-4)
    assert strip(run, own).shape == (48, 5 * 48, 3)
    rows = [summary(name, [{"run": run.name, **figures(run, found[name], 0.5)}]) for name in found]
    assert len(table(rows).splitlines()) == 2 + len(WAYS)
    assert rows[0]["drawn_s_per_frame"] == 0.5 and rows[0]["real_dice"] is None


def test_figures_by_hand() -> None:
    full, half, empty = np.ones((8, 8), bool), np.tri(8, dtype=bool), np.zeros((8, 8), bool)
    truth = [full, half, empty]
    predictions = [Prediction(mask[None].astype(np.float32), mask[None], ("x",), 0.5) for mask in (full, full, full)]
    frames = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(3)]
    found = figures(Run("r", frames, truth), predictions, 0.1)
    dice = 2 * 36 / (36 + 64)
    assert found["dice"] == pytest.approx((1 + dice) / 2)
    assert found["found_in_empty"] == 1 and found["flicker"]["masks"] == 0
    assert found["flicker"]["truth"] == pytest.approx((1 - dice + 1) / 2)
    unlabelled = figures(Run("r", frames, [full, None, empty]), predictions, 0.1)
    assert unlabelled["dice"] == 1 and unlabelled["flicker"]["truth"] is None


@pytest.mark.shared
def test_folders_of_real_frames(shared: Path) -> None:
    runs = list(folders(shared / "data" / "lymphatic_labelme"))
    assert [len(run.frames) for run in runs] == [5, 4]
    assert [sum(true is None for true in run.truth) for run in runs] == [1, 0]
