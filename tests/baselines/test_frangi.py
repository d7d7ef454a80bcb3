"""The Frangi baseline: what the filter does, what the search finds, and the tool from data to evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import frangi

from tests.command_line import call_command
from tests.evaluation.drawn_data import Drawn
from vesselseg.baselines import frangi_search
from vesselseg.baselines.frangi import THRESHOLD, FrangiParams, apply_frangi, drop_small, vesselness
from vesselseg.baselines.frangi_baseline import write_frangi_baseline
from vesselseg.baselines.frangi_search import tune_frangi
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.metrics import image_metrics
from vesselseg.evaluation.prediction_sources import open_predictions


def _scene(seed: int, width: int = 5, contrast: float = 50) -> tuple[np.ndarray, np.ndarray]:
    """A curved line of the given width on an uneven, noisy background: image and truth (96, 96)."""
    generator = np.random.default_rng(seed)
    x = np.arange(6, 90, dtype=np.float64)
    y = 48 + generator.uniform(8, 25) * np.sin(x / generator.uniform(10, 20) + generator.uniform(0, 6))
    truth = np.zeros((96, 96), np.uint8)
    points = np.stack([x, y], 1).round().astype(np.int32)[:, None]
    cv2.polylines(truth, [points], False, 1, width)
    shade = 130 + 40 * np.linspace(0, 1, 96)[None] + generator.normal(0, 10, (96, 96))
    image = shade + -contrast * cv2.GaussianBlur(truth.astype(np.float64), (0, 0), 1)
    return np.clip(image, 0, 255).astype(np.uint8), truth.astype(bool)


def _dice(params: FrangiParams, scenes: list[tuple[np.ndarray, np.ndarray]]) -> float:
    values = [image_metrics(apply_frangi(image, params) > THRESHOLD, truth)["dice"] for image, truth in scenes]
    return float(np.mean(values))


def test_vesselness_is_scikit_images_filter_on_scaled_images() -> None:
    image, _ = _scene(0)
    params = FrangiParams(sigmas=(2.0, 3.0), beta=0.7, gamma=1.5)
    standard = (image - image.mean()) / image.std()
    expected = [frangi(standard * s**2, sigmas=[s], beta=0.7, gamma=1.5, black_ridges=True) for s in (2.0, 3.0)]
    assert np.allclose(vesselness(image, params), np.maximum(*expected), atol=1e-4)


def test_dark_vessels_are_found_and_bright_ones_are_not() -> None:
    (dark, truth), (bright, _) = _scene(1), _scene(1, contrast=-50)
    params = FrangiParams(sigmas=(2.0,), level=0.05)
    assert image_metrics(apply_frangi(dark, params) > THRESHOLD, truth)["dice"] > 0.6
    assert image_metrics(apply_frangi(bright, params) > THRESHOLD, truth)["dice"] < 0.3


def test_the_threshold_of_the_probabilities_is_the_tuned_level() -> None:
    image, _ = _scene(2)
    params = FrangiParams(sigmas=(1.0, 2.0), level=0.02, smallest=40)
    probabilities = apply_frangi(image, params)
    assert probabilities.dtype == np.float32
    assert probabilities.min() >= 0
    assert probabilities.max() < 1
    expected = drop_small(vesselness(image, params) > 0.02, 40)
    assert ((probabilities > THRESHOLD) == expected).all()
    assert expected.sum() < (vesselness(image, params) > 0.02).sum()


def test_small_parts_are_dropped_as_an_independent_labelling_says() -> None:
    mask = np.random.default_rng(0).random((60, 60)) < 0.35
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = {label: int((labels == label).sum()) for label in range(1, count + 1)}
    for smallest in (0, 1, 2, 5, 30, 10**6):
        kept = [label for label, area in areas.items() if area >= smallest or area == max(areas.values())]
        assert (drop_small(mask, smallest) == np.isin(labels, kept)).all()
    assert not drop_small(np.zeros((5, 5), bool), 3).any()


def test_flat_and_coloured_images_and_borders() -> None:
    assert not (apply_frangi(np.full((40, 40), 7, np.uint8), FrangiParams(relative=True)) > THRESHOLD).any()
    image, _ = _scene(3)
    assert np.allclose(vesselness(np.repeat(image[..., None], 3, 2), FrangiParams()), vesselness(image, FrangiParams()))
    blanked = vesselness(image, FrangiParams(border=0.125))
    assert blanked[:12].max() == blanked[:, -12:].max() == 0
    assert blanked[12:-12, 12:-12].max() > 0


def test_the_search_finds_better_parameters_than_the_defaults_on_other_images() -> None:
    scenes = [_scene(seed, contrast=20) for seed in range(3)]
    found = tune_frangi([image for image, _ in scenes], [truth for _, truth in scenes])
    held_out = [_scene(seed, contrast=20) for seed in range(100, 106)]
    assert _dice(found, held_out) > 0.8
    assert _dice(found, held_out) > _dice(FrangiParams(), held_out) + 0.05
    assert _dice(found, scenes) >= _dice(replace(found, level=found.level * 1.5), scenes)


def test_the_search_gains_by_the_settings_beside_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [_scene(seed, contrast=15) for seed in range(3)]
    images, truths = [image for image, _ in scenes], [truth for _, truth in scenes]
    whole = tune_frangi(images, truths)
    monkeypatch.setattr(frangi_search, "_GRID", {})
    scales_only = tune_frangi(images, truths)
    assert _dice(whole, scenes) > _dice(scales_only, scenes) + 0.005


def test_the_search_takes_wider_scales_for_wider_vessels() -> None:
    thin, wide = ([_scene(seed, width) for seed in range(2)] for width in (2, 12))
    found = [tune_frangi([i for i, _ in scenes], [t for _, t in scenes]) for scenes in (thin, wide)]
    assert max(found[0].sigmas) < max(found[1].sigmas)


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        tune_frangi([], [])


@pytest.mark.slow
def test_the_tool_writes_what_the_evaluation_reads(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "frangi"
    assert call_command("baselines", "frangi", drawn.folder, "--split", "val", "test", "--out", out) == 0
    settings = json.loads((out / "predictions.json").read_text())
    assert all(name.startswith("train/") for name in settings["tuned_on"]["images"])
    params = FrangiParams(**{**settings["params"], "sigmas": tuple(settings["params"]["sigmas"])})
    found = evaluate(drawn.folder, "test", open_predictions(out, read_manifest(drawn.folder)))
    assert found.kind == "probabilities"
    assert found.threshold.value == THRESHOLD
    direct = [
        image_metrics(apply_frangi(drawn.image(record), params) > THRESHOLD, drawn.truth(record))["dice"]
        for record in drawn.records("test")
    ]
    assert found.summary["dice"].mean == pytest.approx(np.mean(direct), abs=1e-3)
    assert found.summary["dice"].mean > 0.6
    assert call_command("eval", out, "--data", drawn.folder, "--threshold", "auto", "--out", tmp_path / "eval") == 0
    assert "best mean Dice on the val split" in capsys.readouterr().out


def test_the_training_split_is_not_reported_and_must_not_be_empty(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be reported"):
        write_frangi_baseline(drawn.folder, ["train"], tmp_path / "out")
    drawn.resplit(train=[])
    with pytest.raises(EvaluationError, match="no image in the split train"):
        write_frangi_baseline(drawn.folder, ["test"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
