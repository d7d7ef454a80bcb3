"""The U-Net baseline: what it is trained on, that the same seed gives the same weights, and the tool."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command_line import call_command
from tests.evaluation.drawn_data import REPOSITORY, Drawn
from vesselseg.baselines.folder import LabelledImages
from vesselseg.baselines.options import UNetOptions
from vesselseg.baselines.plain_unet import PlainUNet, levels
from vesselseg.baselines.unet import (
    RATES,
    TrainedUNet,
    build_unet,
    learning_rate,
    standardised,
    steps_per_epoch,
    supervised_loss,
    train_unet,
    unet_loss,
)
from vesselseg.config.load import load_config
from vesselseg.dataset.augment import PRESETS, Augment
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.prediction_sources import open_predictions
from vesselseg.evaluation.threshold import best_threshold, threshold_counts

CPU = torch.device("cpu")
SMALL = UNetOptions(size=64, width=4, epochs=2, steps=1, batch=2)


@pytest.fixture
def labelled(drawn: Drawn) -> tuple[LabelledImages, LabelledImages]:
    train, validation = (LabelledImages(drawn.folder, drawn.records(split)) for split in ("train", "val"))
    return train, validation


def test_oriented_augmentation_is_that_of_the_other_training_from_scratch() -> None:
    config = load_config(REPOSITORY / "configs/scratch_1gpu.py")
    assert Augment(**config["train_dataset"]["augment"]) == PRESETS["oriented"]


def test_the_network_is_what_nnunet_plans_for_512_pixels() -> None:
    """nnU-Net 2.5 plans PlainConvUNet with 8 stages for patches of 512 x 512: 46.3 M parameters, 6 used outputs."""
    with torch.device("meta"):
        network = PlainUNet(512, 32)
    counted = sum(one.numel() for one in network.parameters())
    assert 46.0e6 < counted < 46.6e6
    assert [block[0].out_channels for block in network.encoder] == [32, 64, 128, 256, 512, 512, 512, 512]
    assert len(network.outputs) == 6
    assert [levels(side) for side in (64, 96, 256, 512, 1024)] == [5, 5, 7, 8, 8]


def test_outputs_halve_and_all_of_them_learn() -> None:
    network = PlainUNet(64, 4)
    outputs = network(torch.randn(2, 3, 64, 64))
    assert [tuple(one.shape) for one in outputs] == [(2, 1, side, side) for side in (64, 32, 16)]
    truth = torch.zeros(2, 1, 64, 64)
    truth[:, :, 20:24] = 1
    supervised_loss(outputs, truth).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in network.parameters())


def test_coarser_outputs_count_less() -> None:
    truth = (torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    outputs = [torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 8, 8)]
    averaged = truth.view(1, 1, 8, 2, 8, 2).mean((3, 5))
    expected = (unet_loss(outputs[0], truth) + 0.5 * unet_loss(outputs[1], averaged)) / 1.5
    torch.testing.assert_close(supervised_loss(outputs, truth), expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_learning_rate_ends_low(optimizer: str) -> None:
    options = replace(SMALL, optimizer=optimizer)
    rates = [learning_rate(options, progress / 100) for progress in range(101)]
    peak = RATES[optimizer]
    assert max(rates) == pytest.approx(peak) and rates[-1] <= 0.01 * peak
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert max(learning_rate(replace(options, learning_rate=1.0), p / 100) for p in range(101)) == pytest.approx(1.0)


def test_pictures_are_standardised_one_by_one() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = standardised(images // torch.tensor([1, 4]).view(2, 1, 1, 1))
    torch.testing.assert_close(found.mean((2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((2, 3)), torch.ones(2, 3))
    assert torch.equal(standardised(torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)), torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_an_epoch_is_a_pass_and_at_least_some_steps(labelled: tuple[LabelledImages, LabelledImages]) -> None:
    assert steps_per_epoch(5, replace(SMALL, steps=7)) == 7 and steps_per_epoch(5, replace(SMALL, batch=2)) == 3
    trained = train_unet(*labelled, replace(SMALL, epochs=1, steps=9), CPU)
    assert len(trained.epochs) == 1


@pytest.mark.slow
def test_averaged_weights_are_what_adamw_is_judged_by(labelled: tuple[LabelledImages, LabelledImages]) -> None:
    first, second = (train_unet(*labelled, replace(SMALL, optimizer="adamw"), CPU) for _ in range(2))
    assert first.epochs == second.epochs
    plain = train_unet(*labelled, SMALL, CPU)
    assert plain.epochs != first.epochs
    validation = labelled[1]
    counts = np.stack([threshold_counts(first.predict(i), t) for i, t in map(validation.__getitem__, range(3))])
    assert best_threshold(counts)[1] == first.epochs[first.best].dice


def test_pictures_are_images_and_the_union_of_their_objects(
    drawn: Drawn, labelled: tuple[LabelledImages, LabelledImages]
) -> None:
    image, truth = labelled[1][1]
    record = drawn.records("val")[1]
    assert image.shape == (72, 96, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[..., 0], drawn.image(record))
    np.testing.assert_array_equal(truth, drawn.truth(record))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    labelled: tuple[LabelledImages, LabelledImages],
) -> None:
    before = torch.random.get_rng_state()
    first, second = (train_unet(*labelled, SMALL, CPU) for _ in range(2))
    other = train_unet(*labelled, replace(SMALL, seed=1), CPU)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's own draws stay what they were
    assert first.epochs == second.epochs != other.epochs
    image = labelled[1][0][0]
    np.testing.assert_array_equal(first.predict(image), second.predict(image))
    assert first.ended_by == "epochs"


@pytest.mark.slow
def test_epoch_and_threshold_are_the_best_on_the_validation_images(
    labelled: tuple[LabelledImages, LabelledImages],
) -> None:
    trained = train_unet(*labelled, replace(SMALL, epochs=4), CPU)
    assert trained.epochs[trained.best].dice == max(epoch.dice for epoch in trained.epochs)
    validation = labelled[1]
    counts = np.stack([threshold_counts(trained.predict(i), t) for i, t in map(validation.__getitem__, range(3))])
    threshold, dice = best_threshold(counts)  # of the weights that were kept, not of the last ones
    assert (threshold, dice) == (trained.threshold, trained.epochs[trained.best].dice)


@pytest.mark.slow
def test_it_learns(labelled: tuple[LabelledImages, LabelledImages]) -> None:
    plain = Augment(horizontal_flip=0, rotation=0, scale=0, translation=0, brightness=0, contrast=0)
    options = replace(SMALL, epochs=12, steps=8, width=8, optimizer="adamw", learning_rate=3e-3)
    trained = train_unet(*labelled, options, CPU, augment=plain)
    assert trained.epochs[-1].loss < 0.6 * trained.epochs[0].loss
    assert trained.epochs[trained.best].dice > 0.6


def test_minutes_end_it_after_at_least_one_epoch(labelled: tuple[LabelledImages, LabelledImages]) -> None:
    trained = train_unet(*labelled, replace(SMALL, epochs=50, minutes=1e-6), CPU)
    assert (len(trained.epochs), trained.ended_by) == (1, "minutes")


def test_predictions_have_the_images_size_and_follow_a_flip() -> None:
    trained = TrainedUNet(build_unet(SMALL), 64, [], 0, "epochs")
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
    "changed",
    [
        {"size": 100},
        {"size": 32},
        {"epochs": 0},
        {"steps": 0},
        {"width": 0},
        {"batch": 0},
        {"minutes": 0},
        {"minutes": float("nan")},
    ],
)
def test_options_without_sense_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(EvaluationError, match="expected"):
        UNetOptions(**changed)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_tool_writes_what_the_evaluation_reads(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "unet"
    short = ("--epochs", 2, "--size", 64, "--width", 4, "--steps", 1, "--device", "cpu")
    assert call_command("baselines", "unet", drawn.folder, "--out", out, *short) == 0
    assert "validation Dice" in capsys.readouterr().out
    settings = json.loads((out / "predictions.json").read_text())
    assert settings["augment"] == json.loads(json.dumps(asdict(PRESETS["nnunet"])))
    assert settings["splits"] == ["val", "test"] and len(settings["training"]["epochs"]) == 2
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert files == sorted(record.image for split in ("val", "test") for record in drawn.records(split))
    assert np.asarray(Image.open(out / files[0])).dtype == np.uint16
    found = evaluate(drawn.folder, "test", open_predictions(out, read_manifest(drawn.folder)))
    assert (found.kind, found.threshold.value) == ("probabilities", settings["threshold"])
    assert call_command("baselines", "unet", drawn.folder, "--out", out, *short) == 2
    assert "--force" in capsys.readouterr().err
    drawn.resplit(val=[])
    assert call_command("baselines", "unet", drawn.folder, "--split", "test", "--out", tmp_path / "x", *short) == 2
    assert "no image in the split val" in capsys.readouterr().err
