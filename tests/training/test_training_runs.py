"""Real trainings of two processes: an uninterrupted one, one that is killed and resumed, and the files they leave."""

from __future__ import annotations

import gzip
import json
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.training.conftest import IMAGES, Training, rows
from vesselseg.config.load import load_config
from vesselseg.dataset.manifest import image_digests, read_split
from vesselseg.inference.load import load_predictor
from vesselseg.training.trace_summary import IDLE, ORDER, summarise

pytestmark = pytest.mark.process

# 18 images x 2 epochs in 2 processes: 18 iterations, 9 of them an epoch. One picture of the first epoch is NaN.
KILLED_AFTER = 15
POISON = (0, 5)
# Every checkpoint holds averaged weights, and resuming restores both.
SHARED = {"train_dataset__poison": POISON, "schedule__ema": 0.9}


@pytest.fixture(scope="module")
def whole(training: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "whole"
    outcome = training.run(work_dir, "--profile", "3", **SHARED)
    assert outcome.returncode == 0, outcome.stderr
    (work_dir / "console.txt").write_text(outcome.stdout + outcome.stderr)
    return work_dir


@pytest.fixture(scope="module")
def resumed(training: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "resumed"
    killed = training.run(work_dir, train_dataset__dies_after=KILLED_AFTER, **SHARED)
    assert killed.returncode == 128 + signal.SIGKILL
    assert [line for line in killed.stderr.splitlines() if line.startswith("error")] == [
        "error: process 1 was ended by SIGKILL (often by the system, because main memory ran out); all processes "
        "were stopped. The same command with --resume auto continues from the last checkpoint"
    ]
    assert "Traceback" not in killed.stderr
    (work_dir / "iter_99.resume.unfinished").mkdir()
    for path in (training.trace / work_dir.name).iterdir():
        path.unlink()
    outcome = training.run(work_dir, "--resume", "auto", **SHARED)
    assert outcome.returncode == 0, outcome.stderr
    (work_dir / "console.txt").write_text(outcome.stdout + outcome.stderr)
    return work_dir


def test_each_image_is_seen_once_per_epoch_by_exactly_one_process(training: Training, whole: Path) -> None:
    seen = [line.split() for lines in training.seen(whole) for line in lines]
    for epoch in ("0", "1"):
        images = Counter(image for number, _, image in seen if number == epoch)
        assert images == {f"train_{number}.png": 1 for number in range(IMAGES["train"])}
    first, second = training.seen(whole)
    assert len(first) == len(second) == 18


def test_a_resumed_run_sees_the_same_samples_in_the_same_order(training: Training, whole: Path, resumed: Path) -> None:
    start = next(row["iter"] for row in rows(resumed, "event") if row["event"] == "resumed")
    assert 13 <= start < KILLED_AFTER and start % 9  # in the middle of an epoch
    assert training.seen(resumed) == [lines[start:] for lines in training.seen(whole)]


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(whole: Path, resumed: Path) -> None:
    timing = ("images_per_s", "iter_s", "data_s", "eta_s", "memory_gib")
    expected, found = (
        {row["iter"]: {key: value for key, value in row.items() if key not in timing} for row in rows(folder, "train")}
        for folder in (whole, resumed)
    )
    assert list(found) == list(range(1, 19))
    assert found == expected
    assert rows(resumed, "val")[-1]["dice"] == rows(whole, "val")[-1]["dice"]


def test_a_resumed_run_ends_with_the_same_weights(whole: Path, resumed: Path) -> None:
    expected, found = (
        torch.load(folder / "iter_18.pth", weights_only=True)["state_dict"] for folder in (whole, resumed)
    )
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_learned_weights_are_not_the_first_ones(whole: Path) -> None:
    early, late = (torch.load(whole / f"iter_{number}.pth", weights_only=True)["state_dict"] for number in (17, 18))
    moved = [name for name in late if not torch.equal(early[name], late[name])]
    assert any("lora_" in name for name in moved) and any("sam_mask_decoder" in name for name in moved)


def test_a_loss_of_nan_on_one_process_is_skipped_by_both_and_counted(whole: Path) -> None:
    skips = [row for row in rows(whole, "event") if row["event"] == "skipped"]
    assert len(skips) == 1 and skips[0]["skipped"] == 1
    losses = {one["rank"]: one["losses"]["loss_bce"] for one in skips[0]["processes"]}
    assert sorted(losses.values())[-1] == "nan" and sorted(losses.values())[0] != "nan"
    assert "loss not finite, skipped (1 so far)" in (whole / "console.txt").read_text()
    skipped_row = rows(whole, "train")[skips[0]["iter"] - 1]
    assert skipped_row["loss"] is None
    assert rows(whole, "train")[-1]["step"] == 9  # the skipped iteration's group took one more instead


def test_the_report_before_the_first_step(whole: Path) -> None:
    before = (whole / "console.txt").read_text().split("iter     1/18")[0]
    for expected in (
        "18 images x 2 epoch(s), micro-batch 1, accumulation 2, 2 process(es)",
        "9 iterations per epoch, 18 in all, 9 optimizer steps (1 of warm-up)",
        "SAM2 mask decoder",
        "a checkpoint takes about",
    ):
        assert expected in before
    assert "Traceback" not in before and "Warning" not in before


def test_logs(whole: Path) -> None:
    row = rows(whole, "train")[0]
    parts = row["loss_lm"] + row["loss_bce"] + row["loss_dice"]
    assert (
        row["loss"] == pytest.approx(parts)
        and row["lr"] == pytest.approx(1e-3)
        and row["grad_norm"] is None
        and row["memory_gib"] > 0
    )
    assert rows(whole, "train")[1]["grad_norm"] > 0 and rows(whole, "train")[-1]["lr"] < 1e-4
    assert 0 <= row["data_s"] < row["iter_s"] == pytest.approx(2 / row["images_per_s"], rel=0.01)
    started, first_step = (event for event in rows(whole, "event") if event["event"] in ("started", "first_step"))
    assert 0 < started["seconds"] < first_step["seconds"] < 600 and started["memory_gib"] > 0
    # Validation is due at 8 and 16 and at the end; between optimizer steps it waits for the next one.
    assert [row["iter"] for row in rows(whole, "val")] == [9, 17, 18]
    assert list((whole / "tensorboard").glob("events*"))
    log = (whole / "train.log").read_text()
    assert "eta" in log and ": 18 training images, 3 validation images" in log and "SAM2  random weights" in log


def test_a_profile_shows_time_and_memory(whole: Path) -> None:
    with gzip.open(whole / "profile" / "trace.json.gz", "rt") as file:
        trace = json.load(file)
    names = Counter(event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation")
    # Three iterations are made four, two whole accumulation groups: those after the four in which things settle.
    skipped = sum(row["event"] == "skipped" and 5 <= row["iter"] <= 8 for row in rows(whole, "event"))
    assert all(names[name] == 4 for name in ("load data", "forward", "encoders", "mask decoder", "hooks"))
    assert names["loss"] == 8 and names["backward"] == 4 - skipped and names["optimizer"] >= 2 - skipped
    text = (whole / "profile" / "summary.txt").read_text()
    assert text.splitlines()[0].startswith("one iteration of process 0 takes ") and "mean of 4;" in text
    shares = [float(share) for share in re.findall(r"([\d.]+) %", text)]
    assert len(shares) == len(ORDER) - 1 and sum(shares) == pytest.approx(100, abs=0.6)
    found = summarise(trace)
    assert sum(found.seconds.values()) == pytest.approx(found.iteration)
    assert all(found.seconds[line] > 0 for line in ORDER if line != IDLE)
    assert max(found.memory, key=lambda line: found.memory[line]) in text
    assert all(line in (whole / "console.txt").read_text() for line in text.splitlines())


def test_the_last_checkpoints_are_kept_and_the_best(whole: Path, resumed: Path) -> None:
    names = ["best.pth", "iter_17.pth", "iter_18.pth"]
    assert sorted(path.name for path in whole.glob("*.pth")) == names
    assert sorted(path.name for path in whole.glob("*.resume")) == ["iter_17.resume", "iter_18.resume"]
    assert not list(resumed.glob("*.unfinished"))
    folders = [path for run in (whole, resumed) for path in run.iterdir() if path.is_dir()]
    assert all(any(folder.iterdir()) for folder in folders), folders  # mmengine's own for logs is gone
    best = torch.load(whole / "best.pth", weights_only=True)
    found = max(rows(whole, "val"), key=lambda row: row["dice"])
    assert best["meta"]["best_dice"] == found["dice"] and best["threshold"] == found["threshold"]


def test_a_checkpoint_predicts_and_contains_only_trained_weights(whole: Path) -> None:
    content = torch.load(whole / "best.pth", weights_only=True)
    assert not any(name.startswith(("vision_model.", "language_model.model.embed")) for name in content["state_dict"])
    size = sum(value.numel() * value.element_size() for value in content["state_dict"].values())
    assert (whole / "best.pth").stat().st_size < 1.1 * size + 200_000
    assert load_predictor(whole / "best.pth", device="cpu").threshold == pytest.approx(content["threshold"])


def test_a_checkpoint_contains_its_training_images(training: Training, whole: Path, resumed: Path) -> None:
    digests = image_digests(training.data, read_split(training.data, "train")).values()
    for path in (whole / "best.pth", whole / "iter_18.pth", resumed / "iter_18.pth"):
        assert torch.load(path, weights_only=True)["training_images"].split() == sorted(set(digests))


def test_the_config_of_a_run_loads(whole: Path) -> None:
    config = load_config(whole / "config.py")
    assert config["schedule"]["accumulation"] == 2 and config["model"]["sa2va"]["sam2"]["image_size"] == 64
    content = torch.load(whole / "iter_18.pth", weights_only=True)
    assert content["config"] == (whole / "config.py").read_text()
    assert content["meta"]["iter"] == 18 and content["meta"]["epoch"] == 2.0
    assert content["data_fingerprint"] and torch.__version__.startswith(content["versions"]["torch"])
