"""A trained checkpoint and the folder that it was exported to, shared by all tests here, which only read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.conftest import drawn  # noqa: F401, a fixture
from tests.tiny import model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.export.convert import convert

LOSS = {"bce": 3.0, "dice": 0.5, "mask_target": "full"}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number in range(2):
        paths.append(folder / f"{number}.png")
        picture(number).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def checkpoint(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.pth"
    config = f"data_root = 'data/x'\nmodel = {{'type': 'TrainingModel', 'loss': {LOSS}}}\n"
    return save_checkpoint(shaken_model(tiny_base), path, model_arguments(tiny_base), config=config)


@pytest.fixture(scope="session")
def exported(checkpoint: Path, images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "model"
    check = convert(checkpoint, out, images)
    assert check.images == 2
    assert check.probability <= 1e-5
    return out
