"""A teacher, and a dataset to distil it on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.evaluation.conftest import drawn
from tests.evaluation.drawn_data import Drawn
from tests.tiny import shaken_model
from vesselseg.inference.load import load_predictor
from vesselseg.inference.predictor import Predictor
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.write_published import write_published_folder

PHRASE = "blood vessel"
TEACHER_TRAINED_ON = "0123456789ab"
FEATURE_BYTES = 2 * (256 * 8**2 + 64 * 16**2 + 32 * 32**2)  # per image of 128 px, in half precision


@pytest.fixture(scope="package")
def teacher_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = shaken_model(tiny_base)
    model.seg_projector.linear_2.weight.data *= 40  # makes prompts and masks depend on the image
    model.config.threshold, model.config.mask_temperature = 0.4, 1.5
    model.config.training_images = TEACHER_TRAINED_ON
    folder = tmp_path_factory.mktemp("teacher")
    write_published_folder(model, read_base_folder(tiny_base).tokenizer, folder, dtype=torch.float32, extra={})
    return folder


@pytest.fixture(scope="package")
def teacher(teacher_folder: Path) -> Predictor:
    return load_predictor(teacher_folder, device="cpu")


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return drawn.__wrapped__(tmp_path_factory.mktemp("data"))  # type: ignore[attr-defined]
