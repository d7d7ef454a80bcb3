"""The U-Net baseline: what it is trained on, that the same seed gives the same weights, and the tool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command_line import call_command
from tests.evaluation.drawn_data import REPOSITORY, Drawn
from vesselseg.baselines.folder import Pictures
from vesselseg.baselines.options import UNetOptions
from vesselseg.baselines.unet import AUGMENT, TrainedUNet, build_unet, train_unet, unet_loss
from vesselseg.config.load import load_config
from vesselseg.dataset.augment import Augment
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.sources import open_source
from vesselseg.evaluation.threshold import best_threshold, threshold_counts

CPU = torch.device("cpu")
TINY = UNetOptions(size=64, epochs=2, batch=2)


@pytest.fixture
def pictures(drawn: Drawn) -> tuple[Pictures, Pictures]:
    train, validation = (Pictures(drawn.folder, drawn.records(split)) for split in ("train", "val"))
    return train, validation


def test_the_augmentation_is_that_of_the_other_training_from_scratch() -> None:
    config = load_config(REPOSITORY / "configs/scratch_1gpu.py")
    assert Augment(**config["train_dataset"]["augment"]) == AUGMENT


def test_pictures_are_images_and_the_union_of_their_objects(drawn: Drawn, pictures: tuple[Pictures, Pictures]) -> None:
    image, truth = pictures[1][1]
    record = drawn.records("val")[1]
    assert image.shape == (72, 96, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[..., 0], drawn.image(record))
    np.testing.assert_array_equal(truth, drawn.truth(record))


def test_the_same_seed_gives_the_same_weights_and_another_one_others(pictures: tuple[Pictures, Pictures]) -> None:
    before = torch.random.get_rng_state()
    first, second = (train_unet(*pictures, TINY, CPU) for _ in range(2))
    other = train_unet(*pictures, UNetOptions(size=64, epochs=2, batch=2, seed=1), CPU)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's own draws stay what they were
    assert first.epochs == second.epochs != other.epochs
    image = pictures[1][0][0]
    np.testing.assert_array_equal(first.predict(image), second.predict(image))
    assert first.ended_by == "epochs"


def test_epoch_and_threshold_are_the_best_on_the_validation_images(pictures: tuple[Pictures, Pictures]) -> None:
    trained = train_unet(*pictures, UNetOptions(size=64, epochs=4, batch=2), CPU)
    assert trained.epochs[trained.best].dice == max(epoch.dice for epoch in trained.epochs)
    validation = pictures[1]
    counts = np.stack([threshold_counts(trained.predict(i), t) for i, t in map(validation.__getitem__, range(3))])
    threshold, dice = best_threshold(counts)  # of the weights that were kept, not of the last ones
    assert (threshold, dice) == (trained.threshold, trained.epochs[trained.best].dice)


def test_it_learns(pictures: tuple[Pictures, Pictures]) -> None:
    plain = Augment(horizontal_flip=0, rotation=0, scale=0, translation=0, brightness=0, contrast=0)
    options = UNetOptions(size=64, epochs=16, batch=2, learning_rate=3e-3)
    trained = train_unet(*pictures, options, CPU, augment=plain)
    assert trained.epochs[-1].loss < 0.6 * trained.epochs[0].loss
    assert trained.epochs[trained.best].dice > 0.6


def test_minutes_end_it_after_at_least_one_epoch(pictures: tuple[Pictures, Pictures]) -> None:
    trained = train_unet(*pictures, UNetOptions(size=64, epochs=50, batch=2, minutes=1e-6), CPU)
    assert (len(trained.epochs), trained.ended_by) == (1, "minutes")


def test_predictions_have_the_images_size_and_follow_a_flip() -> None:
    trained = TrainedUNet(build_unet(0), 64, [], 0, "epochs")
    image = np.random.default_rng(0).integers(0, 255, (50, 131, 3), np.uint8)
    found = trained.predict(image)
    assert found.shape == (50, 131) and found.dtype == np.float32
    assert 0 <= found.min() < found.max() <= 1


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([20.0, 20.0, -20.0, -20.0]).view(1, 1, 2, 2)
    truth = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    # one of two found pixels is right: BCE 20 / 4, Dice (2 + 1) / (2 + 1 + 1)
    assert float(unet_loss(logits, truth)) == pytest.approx(5 + 1 - 3 / 4, abs=1e-4)


@pytest.mark.parametrize(
    "changed", [{"size": 100}, {"size": 32}, {"epochs": 0}, {"batch": 0}, {"minutes": 0}, {"minutes": float("nan")}]
)
def test_options_without_sense_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(EvaluationError, match="expected"):
        UNetOptions(**changed)  # type: ignore[arg-type]


def test_the_tool_writes_what_the_evaluation_reads(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "unet"
    short = ("--epochs", 2, "--size", 64, "--device", "cpu")
    assert call_command("baselines", "unet", drawn.folder, "--out", out, *short) == 0
    assert "validation Dice" in capsys.readouterr().out
    settings = json.loads((out / "predictions.json").read_text())
    assert settings["splits"] == ["val", "test"] and len(settings["training"]["epochs"]) == 2
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert files == sorted(record.image for split in ("val", "test") for record in drawn.records(split))
    assert np.asarray(Image.open(out / files[0])).dtype == np.uint16
    found = evaluate(drawn.folder, "test", open_source(out, read_manifest(drawn.folder)))
    assert (found.kind, found.threshold.value) == ("probabilities", settings["threshold"])
    assert call_command("baselines", "unet", drawn.folder, "--out", out, *short) == 2
    assert "--force" in capsys.readouterr().err
    drawn.resplit(val=[])
    assert call_command("baselines", "unet", drawn.folder, "--split", "test", "--out", tmp_path / "x", *short) == 2
    assert "no image in the split val" in capsys.readouterr().err
