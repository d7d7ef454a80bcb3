"""A tiny checkpoint as training saves it, and input images for vesselseg predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.predict.predict_calls import NAMES
from tests.tiny import model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.inference.load import load_predictor
from vesselseg.inference.predictor import Predictor


@pytest.fixture(scope="session")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.pth"
    return save_checkpoint(shaken_model(tiny_base), path, model_arguments(tiny_base))


@pytest.fixture(scope="session")
def predictor(model: Path) -> Predictor:
    return load_predictor(model, device="cpu")


@pytest.fixture(scope="session")
def middle(predictor: Predictor) -> float:
    """A threshold at which the masks of random weights are neither empty nor full."""
    return round(float(np.median(predictor.predict([picture(0)], [["blood vessel"]])[0].probabilities)), 4)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, 90 + 20 * number, 70 + 5 * number).save(folder / name)
    (folder / "frame 1.json").write_text("{}")  # other files next to the images are ignored
    return folder
