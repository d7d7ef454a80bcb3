"""Folds: every image is tested once, groups are undivided, sizes nearly equal; every tool accepts a fold."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_line import call_command
from vesselseg.dataset.manifest import (
    Record,
    fingerprint,
    image_path,
    read_fold,
    read_manifest,
    read_split,
    write_manifest,
)
from vesselseg.errors import ManifestError, UserError
from vesselseg.prepare.folds import make_folds, split_folds
from vesselseg.prepare.splits import SplitError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of six groups, two each."""
    data = tmp_path / "drawn"
    (data / "images").mkdir(parents=True)
    records = []
    for number in range(12):
        values = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(data / "images" / f"{number}.png")
        records.append(Record(f"{number}.png", (([1, 1, 5, 1, 5, 5],),), ("vessel",), f"p{number // 2}"))
    write_manifest(data, records)
    (data / "splits.json").write_text(json.dumps({"train": [], "val": [], "test": []}))
    return data


def of_all(folds: list[Path]) -> set[str]:
    """The fingerprints of the set of folds, as read from each fold."""
    return {fold.fingerprint for fold in map(read_fold, folds) if fold is not None}


@pytest.mark.parametrize("trial", range(40))
def test_properties_over_random_groups(trial: int) -> None:
    draw = np.random.default_rng(trial)
    folds = int(draw.integers(2, 8))
    sizes = draw.integers(1, draw.integers(2, 20), size=folds + int(draw.integers(1, 40)))
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    draw.shuffle(groups)
    images = [f"{number}.png" for number in range(len(groups))]
    of = dict(zip(images, groups))
    splits = split_folds(images, groups, folds, float(draw.uniform(0.05, 0.4)), trial)
    assert Counter(image for one in splits for image in one["test"]) == Counter(images)
    for one in splits:
        assert sorted(one["train"] + one["val"] + one["test"]) == sorted(images)
        assert all(one.values())
        sides = [{of[image] for image in one[name]} for name in ("train", "val", "test")]
        assert sum(map(len, sides)) == len(set(groups))
    tested = [len(one["test"]) for one in splits]
    assert max(tested) - min(tested) <= max(sizes)


def test_single_images_give_folds_of_equal_size_and_the_requested_validation() -> None:
    images = [str(number) for number in range(100)]
    splits = split_folds(images, images, 5, 0.1, 0)
    assert [[len(one[name]) for name in ("train", "val", "test")] for one in splits] == [[72, 8, 20]] * 5


def test_the_seed_determines_the_folds() -> None:
    images = [str(number) for number in range(30)]
    assert split_folds(images, images, 3, 0.2, 1) == split_folds(images, images, 3, 0.2, 1)
    assert split_folds(images, images, 3, 0.2, 1) != split_folds(images, images, 3, 0.2, 2)


@pytest.mark.parametrize(
    ("folds", "val", "says"), [(1, 0.1, "2 or more"), (7, 0.1, "6 groups"), (3, 0.0, "above 0"), (3, 1.0, "below 1")]
)
def test_impossible_folds(folder: Path, folds: int, val: float, says: str) -> None:
    with pytest.raises(SplitError, match=says):
        make_folds(folder, folds, val)
    assert not (folder / "folds").exists()


def test_two_groups_leave_none_for_validation() -> None:
    with pytest.raises(SplitError, match="none is left for validation"):
        split_folds(["a", "b"], ["a", "b"], 2, 0.5, 0)


def test_a_fold_is_a_dataset_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = make_folds(folder, 3, seed=4)
    fold = folder / "folds" / "2"
    assert [record.image for record in read_split(fold, "test")] == splits[1]["test"]
    assert read_manifest(fold) == read_manifest(folder)
    assert image_path(fold, read_manifest(fold)[0]).is_file()
    facts = read_fold(fold)
    assert facts is not None and (facts.number, facts.of) == (2, 3)
    monkeypatch.chdir(fold)
    assert read_fold(Path()) == facts and len(read_split(Path(), "test")) == 4


def test_fingerprints(folder: Path) -> None:
    make_folds(folder, 3)
    folds = [folder / "folds" / str(number) for number in (1, 2, 3)]
    assert len({fingerprint(path) for path in (*folds, folder)}) == 4
    before = of_all(folds)
    assert len(before) == 1
    make_folds(folder, 3, force=True)
    assert of_all(folds) == before
    records = read_manifest(folder)
    write_manifest(folder, [Record(r.image, ((),), r.phrases, r.group) for r in records])
    after = of_all(folds)
    assert after != before
    make_folds(folder, 3, seed=1, force=True)
    assert of_all(folds) not in (before, after)
    assert read_fold(folder) is None


def test_a_missing_fold_is_reported_with_the_existing_ones(folder: Path) -> None:
    with pytest.raises(ManifestError, match="which has: none"):
        read_split(folder / "folds" / "1", "test")
    make_folds(folder, 2)
    with pytest.raises(ManifestError, match="which has: 1, 2"):
        read_split(folder / "folds" / "3", "test")


def test_the_same_file_under_two_groups_stays_together(folder: Path) -> None:
    content = (folder / "images" / "0.png").read_bytes()
    (folder / "images" / "11.png").write_bytes(content)  # p0 and p5
    for seed in range(4):
        for one in make_folds(folder, 3, seed=seed, force=True):
            assert any({"0.png", "1.png", "10.png", "11.png"} <= set(images) for images in one.values())


def test_stored_folds_are_not_replaced_without_force(folder: Path) -> None:
    make_folds(folder, 3)
    with pytest.raises(UserError, match="--force"):
        make_folds(folder, 2)
    with pytest.raises(SplitError, match="is a fold itself"):
        make_folds(folder / "folds" / "1", 2)


def test_the_tool_reports_its_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_command("folds", "make", folder, "--folds", 3) == 0
    told = capsys.readouterr().out
    fold = read_fold(folder / "folds" / "1")
    assert "test 4" in told and fold is not None and fold.fingerprint in told
    assert call_command("folds", "make", folder, "--folds", 99, "--force") == 2
    assert "6 groups" in capsys.readouterr().err
