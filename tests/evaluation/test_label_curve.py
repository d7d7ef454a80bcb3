"""Nested parts of the labels, the power law through their scores, and a real curve at tiny sizes."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.fork_server import python
from tests.training.conftest import REPOSITORY, write_data
from vesselseg.cli.curve import FILE, shares_of
from vesselseg.cli.main import main
from vesselseg.errors import UserError
from vesselseg.evaluation.label_curve import CurveRun, label_curve
from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.prepare.subsets import nested_subsets
from vesselseg.reports.label_curve_chart import curve_lines, draw_curve

SHARES = (0.125, 0.25, 0.5, 1.0)


def runs_of(a: float, b: float, noise: float, seeds: int = 1, images: int = 60) -> list[CurveRun]:
    """Scores around 1 - a x labels ** -b, images that are difficult in every run, and noise of each run."""
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 0.05, images)
    return [
        CurveRun(labels, seed, {
            f"{number}.png": float(1 - a * labels**-b + difficulty[number] + generator.normal(0, noise))
            for number in range(images)
        })
        for labels in (50, 100, 200, 400)
        for seed in range(seeds)
    ]  # fmt: skip


def groups_of(runs: list[CurveRun], size: int = 1) -> dict[str, str]:
    return {image: str(number // size) for number, image in enumerate(runs[0].values)}


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_nested_and_groups_stay_whole(seed: int) -> None:
    groups = [f"patient {number % 11}" for number in range(40)]
    images = [f"{number}.png" for number in range(40)]
    parts = nested_subsets(images, groups, SHARES, seed)
    sizes = Counter(groups)
    for part, share in zip(parts, SHARES):
        taken = {groups[images.index(image)] for image in part}
        assert len(part) == sum(sizes[group] for group in taken) and part == sorted(part, key=images.index)
        assert share * 40 <= len(part) < share * 40 + max(sizes.values())
    assert all(set(small) < set(large) for small, large in itertools.pairwise(parts)) and parts[-1] == images
    assert parts != nested_subsets(images, groups, SHARES, seed + 1)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.25), "expected rising numbers above 0 and up to 1"),
        ((0.0, 1.0), "expected rising numbers"),
        ((0.5, 1.5), "expected rising numbers"),
        ((0.1, 0.2, 1.0), r"of 40 images in 2 groups give \[20, 20, 40\] images; expected different numbers"),
    ],
)
def test_shares_that_make_no_curve_are_refused(shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        nested_subsets([str(number) for number in range(40)], [str(number % 2) for number in range(40)], shares, 0)


def test_shares_are_read_as_fractions_and_numbers() -> None:
    assert shares_of("1/8,0.5,1") == (0.125, 0.5, 1.0)
    for wrong in ("half", "1/0", "1,,2"):
        with pytest.raises(ValueError, match="expected shares like 1/8,1/4,1/2,1"):
            shares_of(wrong)


@pytest.mark.parametrize(("a", "b"), [(0.9, 0.3), (0.5, 0.05)])
def test_a_power_law_is_found_and_carried_on(a: float, b: float) -> None:
    runs = runs_of(a, b, noise=0.002)
    curve = label_curve(runs, groups_of(runs))
    expected = a * 400**-b - a * 800**-b
    assert curve.exponent == pytest.approx(b, abs=0.02) and curve.doubled == 800
    assert curve.expected_gain == pytest.approx(expected, abs=0.004)
    assert curve.gain_low < expected < curve.gain_high
    assert [point.labels for point in curve.points] == [50, 100, 200, 400]
    assert curve.points[0].gain is None and curve.points[1].gain.difference == pytest.approx(
        a * (50**-b - 100**-b), abs=0.003
    )


@pytest.mark.slow
def test_correlated_images_and_noisy_trainings_widen_the_interval() -> None:
    runs = runs_of(0.9, 0.3, noise=0.1)
    width = {}
    for size in (1, 10):
        curve = label_curve(runs, groups_of(runs, size))
        width[size] = curve.gain_high - curve.gain_low
    shifted = [  # every training has luck of its own, the same for all its images
        CurveRun(run.labels, run.seed, {name: value + luck for name, value in run.values.items()})
        for run, luck in zip(runs_of(0.9, 0.3, noise=0.1, seeds=3), np.random.default_rng(1).normal(0, 0.05, 12))
    ]
    several = label_curve(shifted, groups_of(shifted))
    assert several.gain_high - several.gain_low > width[1]
    assert all(point.seeds == 3 for point in several.points)
    alone = label_curve(runs, dict.fromkeys(runs[0].values, "one patient"))
    assert alone.gain_low is None and alone.points[0].low is None


def test_runs_that_scored_different_images_are_refused() -> None:
    runs = runs_of(0.9, 0.3, 0.0)
    with pytest.raises(ValueError, match="the same images"):
        label_curve([*runs, CurveRun(800, 0, {"other.png": 0.5})], groups_of(runs))
    with pytest.raises(ValueError, match="two numbers of labels"):
        label_curve(runs[:1], groups_of(runs))


def test_lines_and_picture(tmp_path: Path) -> None:
    runs = runs_of(0.9, 0.3, 0.01)
    curve = label_curve(runs, groups_of(runs))
    lines = curve_lines(curve, "Dice")
    assert lines[0].startswith("    50 labels: Dice 0.7") and "over the row above" in lines[1]
    assert lines[-2].startswith("   800 labels, by the fitted power law: Dice +0.0") and "--seeds 3" in lines[-1]
    draw_curve(curve, "Dice", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.process
@pytest.mark.slow
def test_a_curve_of_real_trainings_is_measured_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, base, out = write_data(tmp_path / "data"), tmp_path / "base", tmp_path / "out"
    write_tiny_base(base, hidden_size=32, layers=1, tile_size=56)
    monkeypatch.setattr(sys, "executable", python())
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = ["model.sa2va.sam2.image_size=64", "loader.num_workers=0", "validation.interval=2"]
    command = ["curve", str(data), "--config", "tiny_cpu", "--gpus", "0", "--out", str(out), "--split", "val"]
    tiny = [f"model.sa2va.base={base}", *settings, "schedule.max_iters=2"]
    assert main([*command, "--shares", "1/2,1", "--cfg-options", *tiny]) == 0, capsys.readouterr()
    content = json.loads((out / FILE).read_text())
    assert [run["labels"] for run in content["runs"]] == [9, 18]
    assert all(
        len(run["values"]) == 3 and all(0 <= one <= 1 for one in run["values"].values()) for run in content["runs"]
    )
    assert "36 labels, by the fitted power law" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["curve.json", "curve.png"]

    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # nothing is left to train
    assert main([*command, "--shares", "1/2,1", "--cfg-options", *tiny]) == 0
    assert main([*command, "--cfg-options", "schedule.lr=1"]) == 2
    assert "is of other trainings" in capsys.readouterr().err
    assert main([*command, "--cfg-options", "seed=3"]) == 2
    assert "the curve sets this itself" in capsys.readouterr().err
