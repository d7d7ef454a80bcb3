"""The driver of vessel learning: a real run, the runs that a later call skips, the statistics of differences."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.variants import Run, Study
from benchmarks.vessel_learning import CONFIG, NAME, REFERENCE, VARIANTS, draw, summarise, table
from tests.fork_server import on_path, python
from tests.training.conftest import REPOSITORY, write_data
from vesselseg.config.load import load_config
from vesselseg.errors import UserError
from vesselseg.losses.total import TotalLoss

OTHER = "clDice beside them"
SETTINGS = {"iterations": 3, "micro_batch": 2, "image_size": 64}


def run_of(variant: str, seed: int, dice: float, **changes: Any) -> dict[str, Any]:
    metrics = {"dice": dice, "cldice": dice + 0.1, "hd95": None}
    curves = {"loss": {1: 2.0, 2: 1.0}, "dice": {2: dice}, "memory_gib": 1.5, "images_per_s": 9.0}
    outcome = {"status": "ok", "message": "", "seconds": 9.0, "threshold": 0.3}
    return {"variant": variant, "seed": seed, **outcome, **curves, "metrics": metrics, **changes}


RUNS = [run_of(REFERENCE, seed, 0.6 + 0.01 * seed) for seed in range(3)]
RUNS += [run_of(OTHER, seed, 0.8 + 0.01 * seed) for seed in range(3)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_config_that_loads(variant: str) -> None:
    loss = load_config(CONFIG, VARIANTS[variant])["model"]["loss"]
    assert TotalLoss(**loss).mask_weights["dice"] >= 0
    changed = {name for name, value in loss.items() if value != load_config(CONFIG)["model"]["loss"][name]}
    assert changed == {path.removeprefix("model.loss.") for path in VARIANTS[variant] if ".loss." in path}


def test_a_difference_beyond_the_noise_of_the_seeds_is_bold_and_undefined_values_are_left_out() -> None:
    variants = summarise([*RUNS, run_of(REFERENCE, 3, 0.1, status="failed")])
    dice = variants[OTHER]["metrics"]["dice"]
    assert dice["mean"] == pytest.approx(0.81) and dice["deviation"] == pytest.approx(0.01)
    assert dice["difference"] == pytest.approx(0.2) and dice["noise"] == pytest.approx(2.776 * (2e-4 / 3) ** 0.5)
    assert "hd95" not in variants[OTHER]["metrics"] and variants[REFERENCE]["metrics"]["dice"]["difference"] is None
    lines = table(variants).splitlines()
    assert lines[0] == "| variant | seeds | dice | cldice | peak GiB |"
    assert lines[2] == f"| {REFERENCE} | 3 | 0.610 ± 0.010 | 0.710 ± 0.010 | 1.50 |"
    assert lines[3].startswith(f"| {OTHER} | 3 | 0.810 ± 0.010 (**+0.200 ± 0.023**)")
    one_each = table(summarise([RUNS[0], RUNS[3]])).splitlines()
    assert "0.800 (+0.200)" in one_each[3]


def test_finished_runs_are_skipped_and_failed_ones_are_repeated(tmp_path: Path) -> None:
    study = Study(tmp_path / "runs.json", SETTINGS, summarise)
    study.add(RUNS[0])
    study.add(run_of(OTHER, 0, 0.5, status="time limit"))
    again = Study(tmp_path / "runs.json", SETTINGS, summarise)
    again.read()
    assert again.runs == [RUNS[0]]
    assert again.has(Run(REFERENCE, 0)) and not again.has(Run(REFERENCE, 1)) and not again.has(Run(OTHER, 0))
    with pytest.raises(UserError, match=r"holds runs with .*; choose another --out"):
        Study(tmp_path / "runs.json", {**SETTINGS, "iterations": 4}, summarise).read()


def test_the_picture_is_drawn_with_and_without_runs(tmp_path: Path) -> None:
    for name, runs in {"all": RUNS, "none": []}.items():
        draw(runs, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


@pytest.mark.e2e
def test_a_run_is_trained_and_evaluated(tmp_path: Path) -> None:
    command = [python(), str(REPOSITORY / "benchmarks" / "vessel_learning.py"), "--out", str(tmp_path / "out")]
    command += ["--data", str(write_data(tmp_path / "data")), "--variants", "fine masks, pixels, clDice"]
    command += ["--seeds", "1", "--iterations", "2", "--micro-batch", "2", "--image-size", "64", "--parallel", "2"]
    scratch = tmp_path / "scratch"
    command += ["--workers", "0", "--scratch", str(scratch)]
    environment = on_path({**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(command, text=True, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 0: Dice" in done.stdout and "1 of 1 runs are done" in done.stdout
    content = json.loads((tmp_path / "out" / f"{NAME}.json").read_text())
    (run,) = content["runs"]
    assert 0 <= run["metrics"]["dice"] <= 1 and "loss" in run and list(run["dice"]) == ["1", "2"]
    assert (tmp_path / "out" / f"{NAME}.md").exists() and [path.name for path in scratch.iterdir()] == ["base"]
