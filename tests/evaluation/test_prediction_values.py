"""Integer pictures of predictions: masks, probabilities, or numbers of classes, which are never scored as 0."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.shared_cases import case
from vesselseg.dataset.manifest import Record, write_manifest
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.metrics import image_metrics
from vesselseg.evaluation.prediction_folder import PredictionFolder
from vesselseg.evaluation.prediction_sources import FolderSource
from vesselseg.imaging.mask_option import BY_EVIDENCE, MaskValues
from vesselseg.imaging.rasterise import encode

VESSEL = np.zeros((20, 30), np.uint8)
VESSEL[4:8, 2:28] = 1
SECOND = np.zeros_like(VESSEL)
SECOND[12:16, 5:20] = 1
SIZES = {f"{n}.png": VESSEL.shape for n in range(2)}


def folder(root: Path, *pictures: np.ndarray, asked: MaskValues = BY_EVIDENCE) -> PredictionFolder:
    for number, values in enumerate(pictures):
        Image.fromarray(values).save(root / f"{number}.png")
    sizes = dict(list(SIZES.items())[: len(pictures)])
    found = PredictionFolder(root, sizes, asked)
    found.check(sizes)
    return found


NUMBERS = {
    "one class of three": [VESSEL * np.uint8(2)],
    "two classes": [VESSEL + 2 * SECOND],
    "in different files": [VESSEL, SECOND * np.uint8(2)],
    "16 bits": [VESSEL * np.uint16(3)],
    "with an ignore value": [VESSEL + SECOND * np.uint8(255)],
    "spread classes": [VESSEL * np.uint8(127) + SECOND * np.uint8(255)],
    "a class and a mask": [VESSEL * np.uint8(2), SECOND * np.uint8(255)],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_refused_and_read_on_request(tmp_path: Path, name: str) -> None:
    with pytest.raises(EvaluationError, match="--mask-values classes"):
        folder(tmp_path, *NUMBERS[name])
    read = folder(tmp_path, *NUMBERS[name], asked=MaskValues.parse("classes"))
    for number, values in enumerate(NUMBERS[name]):
        assert np.array_equal(read.probabilities(f"{number}.png", VESSEL.shape), values > 0)
    assert not read.holds_probabilities


def test_an_ignore_value_is_no_vessel(tmp_path: Path) -> None:
    read = folder(tmp_path, VESSEL + SECOND * np.uint8(255), asked=MaskValues.parse("ignore=255"))
    assert np.array_equal(read.probabilities("0.png", VESSEL.shape), VESSEL)


def test_dark_probabilities_are_read_on_request(tmp_path: Path) -> None:
    read = folder(tmp_path, VESSEL * np.uint8(51), asked=MaskValues.parse("probability"))
    assert read.holds_probabilities
    assert read.probabilities("0.png", VESSEL.shape).max() == pytest.approx(0.2)


MASKS = {
    "0 and 1, 0 and 255": [VESSEL, SECOND * np.uint8(255)],
    "0 and 200": [VESSEL * np.uint8(200)],
    "nothing": [VESSEL * np.uint8(0)],
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_need_no_word(tmp_path: Path, name: str) -> None:
    read = folder(tmp_path, *MASKS[name])
    for number, values in enumerate(MASKS[name]):
        assert np.array_equal(read.probabilities(f"{number}.png", VESSEL.shape), values > 0)


def test_small_probabilities_of_the_baselines_are_no_classes(tmp_path: Path) -> None:
    settings = {"threshold": 0.5, "data_fingerprint": "0123"}
    (tmp_path / "predictions.json").write_text(json.dumps(settings))
    read = folder(tmp_path, VESSEL * np.uint16(20))
    assert read.holds_probabilities and read.probabilities("0.png", VESSEL.shape).max() == pytest.approx(20 / 65535)


def test_smoothed_masks_are_probabilities(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(VESSEL * np.uint8(255)).resize((60, 40), Image.Resampling.BILINEAR).reduce(2))
    read = folder(tmp_path, smooth)
    assert read.holds_probabilities
    assert np.allclose(read.probabilities("0.png", VESSEL.shape), smooth / 255)


def test_integers_of_arrays_on_request(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", (VESSEL * 2).astype(np.int64))
    sizes = {"0.png": VESSEL.shape}
    with pytest.raises(EvaluationError, match="integers 0, 2"):
        PredictionFolder(tmp_path, sizes).check(sizes)
    read = PredictionFolder(tmp_path, sizes, MaskValues.parse("classes"))
    read.check(sizes)
    assert np.array_equal(read.probabilities("0.png", VESSEL.shape), VESSEL)


def test_the_case(tmp_path: Path) -> None:
    pictures = case("prediction_of_class_numbers") / "ev_three"
    sizes = {path.name: (256, 256) for path in pictures.glob("*.png")}
    with pytest.raises(EvaluationError, match="0, 2: class numbers"):
        PredictionFolder(pictures, sizes).check(sizes)
    read = PredictionFolder(pictures, sizes, MaskValues.parse("classes"))
    read.check(sizes)
    assert all(read.probabilities(name, size).any() for name, size in sizes.items())


def test_ignored_pixels_count_nowhere() -> None:
    truth, ignored = VESSEL > 0, SECOND > 0
    wrong_there = truth | ignored
    values = np.where(wrong_there, 0.9, 0.1).astype(np.float32)
    right = image_metrics(truth, truth, np.where(truth, 0.9, 0.1).astype(np.float32))
    assert image_metrics(wrong_there, truth, values, ignored=ignored) == pytest.approx(right, nan_ok=True)
    assert image_metrics(wrong_there, truth, values)["dice"] < 1
    assert image_metrics(wrong_there, truth, ignored=np.ones_like(ignored))["dice"] == 1


def test_ignored_pixels_of_a_dataset_are_left_out(tmp_path: Path) -> None:
    data, predictions = tmp_path / "data", tmp_path / "masks"
    (data / "images").mkdir(parents=True)
    Image.fromarray(VESSEL * np.uint8(90)).save(data / "images" / "a.png")
    truth = Record("a.png", ((encode(VESSEL),),), ("vessel",), ignore=(encode(SECOND),))
    write_manifest(data, [truth])
    (data / "splits.json").write_text(json.dumps({"train": [], "val": [], "test": ["a.png"]}))
    predictions.mkdir()
    Image.fromarray((VESSEL | SECOND) * np.uint8(255)).save(predictions / "a.png")
    evaluation = evaluate(data, "test", FolderSource(predictions, [truth]))
    (item,) = evaluation.items
    assert item.metrics["dice"] == 1
    assert item.predicted_pixels == item.truth_pixels == VESSEL.sum()
