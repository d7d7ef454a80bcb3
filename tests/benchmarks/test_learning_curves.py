"""The driver of learning curves: two real runs at the same time, and the statistics of their differences."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.learning_curves import CONFIG, VARIANTS, compare, overrides, summarise
from benchmarks.variants import Run, over_seeds
from tests.fork_server import on_path, python
from tests.training.conftest import REPOSITORY, write_data
from vesselseg.config.load import load_config

SHARED = {
    "model.sa2va.gradient_checkpointing": True,
    "model.sa2va.sam2.image_size": 1024,
    "model.sa2va.trainable.llm": "lora",
    "model.sa2va.trainable.sam2_encoder": False,
    "model.sa2va.trainable.vision": False,
}


@pytest.mark.e2e
def test_two_variants_train_at_the_same_time_and_are_compared(tmp_path: Path) -> None:
    names = list(VARIANTS)
    command = [python(), str(REPOSITORY / "benchmarks" / "learning_curves.py"), "--out", str(tmp_path / "out")]
    command += ["--data", str(write_data(tmp_path / "data")), "--variants", names[0], names[2]]
    command += ["--seeds", "1", "--iterations", "3", "--micro-batch", "2", "--image-size", "64", "--parallel", "2"]
    command += ["--hidden-size", "32", "--workers", "0", "--scratch", str(tmp_path / "scratch")]
    environment = on_path({**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(command, text=True, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "learning_curves.json").read_text())
    assert [run["status"] for run in summary["runs"]] == ["ok", "ok"]
    for name in (names[0], names[2]):
        variant = summary["variants"][name]
        assert variant["loss"]["iter"] == [1, 2, 3] and all(0 < loss < 50 for loss in variant["loss"]["mean"])
        assert len(variant["dice"]["iter"]) == 3 and 0 <= variant["final_dice"][0] <= 1
    assert f"{names[0]} / {names[2]}: final loss" in done.stdout and "one seed, no noise estimate" in done.stdout
    assert (tmp_path / "out" / "learning_curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_config_that_loads(variant: str) -> None:
    config = load_config(CONFIG, overrides(Run(variant, seed=1), SHARED, image_size=1024))
    assert config["seed"] == 1
    assert (config["strategy"]["zero_optimization"]["stage"] == 3) is variant.startswith("ZeRO-3")
    assert (config["model"]["sa2va"]["sam2"]["image_size"] == 512) is ("half" in variant)


def variants(**finals: list[float]) -> dict[str, dict[str, list[float]]]:
    return {name: {"final_loss": values, "final_dice": values} for name, values in finals.items()}


def test_a_difference_within_the_noise_of_the_seeds_differs_from_one_beyond() -> None:
    found = variants(a=[1.0, 1.1, 1.2], near=[1.1, 1.2, 1.25], far=[2.0, 2.1, 2.2], half=[1.0])
    near = compare("a", "near", found)["final_loss"]
    assert near["agree"] is True and near["difference"] == pytest.approx(0.08333, abs=1e-4)
    assert near["noise"] == pytest.approx(2.776 * ((0.01 + 0.005833) / 3) ** 0.5, rel=1e-3)
    assert compare("a", "far", found)["final_loss"]["agree"] is False
    assert compare("a", "half", found)["final_loss"]["agree"] is None


def test_a_run_that_failed_leaves_the_others_their_curves() -> None:
    whole = {
        "variant": "a",
        "seed": 0,
        "loss": {1: 2.0, 2: 1.0},
        "dice": {2: 0.5},
        "final_loss": 1.0,
        "final_dice": 0.5,
    }
    failed = {"variant": "b", "seed": 0, "loss": {}, "dice": {}, "final_loss": None, "final_dice": None}
    summary = summarise([whole, failed])
    assert summary["variants"]["a"]["loss"]["mean"] == [2.0, 1.0] and summary["variants"]["b"]["loss"]["iter"] == []
    assert summary["comparisons"][0]["sentence"] == "a / b: no final loss; no final dice"


def test_mean_and_range_use_the_points_that_all_seeds_have() -> None:
    found = over_seeds([{1: 1.0, 2: 2.0}, {1: 3.0, 2: 6.0, 3: 9.0}])
    assert found == {"iter": [1, 2], "mean": [2.0, 4.0], "low": [1.0, 2.0], "high": [3.0, 6.0]}
