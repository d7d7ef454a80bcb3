"""The study of few labels: nested subsets, what is said of differences, and real runs at tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.few_labels import HEAD, METHODS, NAME, REFERENCE, TRAIN, UNET, Run, Study, images_of
from benchmarks.few_labels_data import COPIES, shrink, subset, write_labels
from benchmarks.few_labels_report import METRICS, summarise, table
from tests.evaluation.drawn_data import REPOSITORY, Drawn
from tests.fork_server import on_path, python
from vesselseg.baselines.options import UNetOptions
from vesselseg.dataset.manifest import fingerprint, image_path, read_split
from vesselseg.errors import UserError

IMAGES = [f"arcade_syntax_train/images/{number}.webp" for number in range(1, 1001)]
OTHER = "vesselseg, SAM2's decoder"
TRAINED = [REFERENCE, "vesselseg, vessel head"]


def run_of(method: str, seed: int, dice: list[float], labels: int = 20) -> dict[str, Any]:
    items = {f"{number}.png": [value, value, None, *[0.5] * 5] for number, value in enumerate(dice)}
    return {"method": method, "seed": seed, "labels": labels, "images": 100, "seconds": 2.0, "items": items}


@pytest.mark.parametrize("seed", [0, 1])
def test_subsets_are_nested_and_no_picture_is_in_both_parts(seed: int) -> None:
    parts = {labels: subset(IMAGES, labels, seed) for labels in (10, 20, 100, 400, 995)}
    sizes = {labels: (len(training), len(choosing)) for labels, (training, choosing) in parts.items()}
    assert sum(sizes.pop(995)) == len(IMAGES) and len(parts[995][1]) in range(100, 106)
    assert sizes == {10: (6, 4), 20: (16, 4), 100: (90, 10), 400: (360, 40)}
    smaller: set[str] = set()
    for training, choosing in parts.values():
        assert not set(training) & set(choosing)
        assert smaller <= {*training, *choosing}
        smaller = {*training, *choosing}
    assert set(IMAGES) - smaller == set()  # with all labels, copies join the part of the first picture
    for first, copy in COPIES.items():
        together = [{IMAGES[first - 1], IMAGES[copy - 1]} <= set(part) for part in parts[995]]
        assert sorted(together) == [False, True]
        assert IMAGES[copy - 1] not in {*parts[400][0], *parts[400][1]}


def test_a_subset_is_that_of_its_seed() -> None:
    """The permutation is numpy's of (2024, seed) over file numbers without copies, in any order of the names."""
    numbers = [number for number in range(1, 1001) if number not in COPIES.values()]
    expected = np.random.default_rng((2024, 3)).permutation(numbers)[:20].tolist()
    training, choosing = subset(IMAGES[::-1], 20, 3)
    assert [IMAGES.index(image) + 1 for image in [*training, *choosing]] == expected
    for labels in (4, 2000):
        with pytest.raises(UserError, match=f"{labels} labels of 1000 images: expected 5 to 1000"):
            subset(IMAGES, labels, 0)


def test_a_subset_is_a_dataset_folder(drawn: Drawn, tmp_path: Path) -> None:
    drawn.resplit(train=[record.image for split in ("train", "val") for record in drawn.records(split)], val=[])
    assert write_labels(drawn.folder, 6, 0, tmp_path / "subset") == 2
    assert [len(read_split(tmp_path / "subset", split)) for split in ("train", "val")] == [2, 4]
    assert read_split(tmp_path / "subset", "test") == drawn.records("test")
    assert (tmp_path / "subset" / "images" / drawn.records("test")[0].image).is_file()


def test_a_dataset_folder_is_shrunk_and_stays_valid(drawn: Drawn) -> None:
    before = {Path(one.image).stem: (one, drawn.image(one)) for one in drawn.records("test")}
    report = {"fractions": {drawn.records("test")[0].image: 0.1}}
    (drawn.folder / "report.json").write_text(json.dumps(report))
    shrink(drawn.folder, 80)
    after = drawn.records("test")
    assert len(after) == len(before) and all(one.image.endswith(".webp") for one in after)
    for one in after:
        record, pixels = before[Path(one.image).stem]
        assert not image_path(drawn.folder, record).exists()
        found = np.asarray(Image.open(image_path(drawn.folder, one)).convert("L"))
        assert np.abs(found.astype(int) - pixels.astype(int)).mean() < 8
        np.testing.assert_allclose(one.regions[0][0], record.regions[0][0], atol=0.0051)
    report = json.loads((drawn.folder / "report.json").read_text())
    assert report["fingerprint"] == fingerprint(drawn.folder) and list(report["fractions"]) == [after[0].image]


def test_seeds_are_averaged_per_image_before_images_are_compared() -> None:
    runs = [run_of(REFERENCE, seed, [0.5, 0.6, 0.7, 0.8]) for seed in range(2)]
    runs += [run_of(OTHER, seed, [0.6 + seed * 0.2, 0.7, 0.8, 0.9]) for seed in range(3)]
    first, second = summarise(runs, REFERENCE)
    assert first["against"] is None and first["metrics"]["dice"]["mean"] == pytest.approx(0.65)
    dice = second["against"]["dice"]
    assert second["metrics"]["dice"]["values"] == pytest.approx([0.75, 0.8, 0.85])
    assert dice["difference"] == pytest.approx((0.2 + 0.1 * 3) / 4)  # of seeds 0 and 1, which both have
    assert dice["low"] == pytest.approx(0.1) and dice["wins"] == 4
    assert second["against"]["recall_thin"] is None and second["metrics"]["recall_thin"]["mean"] is None
    lines = table([first, second]).splitlines()
    assert lines[0] == "| labels | method | seeds | Dice | clDice | recall of thin vessels |"
    assert lines[2].startswith(f"| 20 | {REFERENCE} | 2 | 0.650 (") and lines[2].endswith("|  |")
    assert "**+0.125** (+0.100 to" in lines[3]


def test_finished_runs_are_kept_and_other_settings_refused(tmp_path: Path) -> None:
    study = Study(tmp_path, {"batch": 2})
    study.add(run_of(REFERENCE, 0, [0.5, 0.6]), None)
    again = Study(tmp_path, {"batch": 2})
    again.read()
    assert again.runs == study.runs and again.has(Run(0, 20, REFERENCE)) and not again.has(Run(1, 20, REFERENCE))
    assert again.seconds(1000, 20) == pytest.approx(1000 / 50 + 60) and again.seconds(60, 100) == pytest.approx(61)
    with pytest.raises(UserError, match=r"holds runs with .*; use another --out"):
        Study(tmp_path, {"batch": 3}).read()


def test_methods_are_options_that_exist() -> None:
    assert METHODS[REFERENCE].settings == {"optimizer": UNetOptions.optimizer, "augment": UNetOptions.augment}
    for method in METHODS.values():
        if method.kind == UNET:
            UNetOptions(**method.settings)
        else:
            assert method.kind == TRAIN and set(method.settings) == {HEAD}


@pytest.mark.e2e
def test_runs_are_trained_scored_and_drawn(drawn: Drawn, tmp_path: Path) -> None:
    drawn.resplit(train=[record.image for split in ("train", "val") for record in drawn.records(split)], val=[])
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    command = [python(), str(REPOSITORY / "benchmarks" / "few_labels.py"), "--data", str(drawn.folder)]
    command += ["--out", str(out), "--scratch", str(scratch), "--labels", "6", "--seeds", "1", "--images", "4"]
    command += ["--batch", "2", "--size", "256", "--width", "4", "--gpus", "0", "--parallel", "1"]
    command += ["--methods", *TRAINED]
    environment = on_path(
        {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    )
    done = subprocess.run(command, text=True, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 runs are done" in done.stdout
    content = json.loads((out / f"{NAME}.json").read_text())
    assert [run["method"] for run in content["runs"]] == TRAINED
    for run in content["runs"]:
        assert list(run["items"]) == [record.image for record in drawn.records("test")]
        assert all(len(values) == len(METRICS) and 0 <= values[0] <= 1 for values in run["items"].values())
    with zipfile.ZipFile(out / "masks.zip") as file:
        assert len(file.namelist()) == 2
    for name in (f"{NAME}.png", f"{NAME}_vessels.png"):
        assert (out / name).stat().st_size > 5000
    assert (out / f"{NAME}.md").read_text() in done.stdout
    again = subprocess.run(command, text=True, capture_output=True, env=environment, check=False)
    assert again.returncode == 0 and json.loads((out / f"{NAME}.json").read_text())["runs"] == content["runs"]


def test_more_labels_see_more_images() -> None:
    class Options:
        images = None

    seen = [images_of(Run(0, labels, REFERENCE), Options()) for labels in (10, 20, 100, 999, 1000)]  # type: ignore[arg-type]
    assert seen == [10_000, 16_000, 30_000, 45_000, 60_000]
