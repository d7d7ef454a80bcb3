"""The fill of polygons is found from masks that their makers exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.labelme_files import WriteLabel, polygon, run
from vesselseg.cli.prepare import summarise
from vesselseg.dataset.manifest import read_manifest
from vesselseg.errors import UserError
from vesselseg.imaging.rasterise import rasterise
from vesselseg.imaging.regions import FILLS, Fill

SIZE = (120, 90)


@pytest.fixture
def vessels(tmp_path: Path, write_label: WriteLabel) -> Path:
    """Six pictures with two oblique vessels each."""
    for number in range(6):
        far = 60.0 + 7 * number
        wide = [[5.3, 8.1], [far, 70.4], [far + 3.2, 69.1], [8.8, 6.9]]
        thin = [[20.2, 80.6], [110.7, 12.3 + number], [111.9, 13.2 + number], [21.1, 81.9]]
        write_label(tmp_path / "source", f"p{number}", [polygon(wide), polygon(thin)], size=SIZE)
    return tmp_path / "source"


def write_masks(source: Path, folder: Path, fill: Fill, name: str, value: int) -> Path:
    """Masks of a dataset made without --fill, drawn by pycocotools, OpenCV or covered area."""
    run(source, folder / "plain")
    (folder / "masks").mkdir()
    for record in read_manifest(folder / "plain"):
        mask = rasterise(record.regions[0], SIZE[1], SIZE[0], fill)
        stem = Path(record.image).stem
        Image.fromarray(mask * np.uint8(value)).save(folder / "masks" / name.format(stem))
    return folder / "masks"


@pytest.mark.parametrize("made_with", FILLS)
@pytest.mark.parametrize(("name", "value"), [("{}.png", 255), ("{}_mask.png", 1)])
def test_the_makers_fill_is_found(vessels: Path, tmp_path: Path, made_with: Fill, name: str, value: int) -> None:
    masks = write_masks(vessels, tmp_path, made_with, name, value)
    given = next(fill for fill in FILLS if fill != made_with)
    report = run(vessels, tmp_path / "out", fill=given, fill_masks=masks)
    assert {record.fill for record in read_manifest(tmp_path / "out")} == {made_with}
    assert report["options"]["fill"] == made_with and f"{made_with} 0.0%" in report["fill_by"]
    assert f"fill: {made_with}, by the makers' masks of 6 pictures" in summarise(report, tmp_path / "out")
    mean = np.mean([np.asarray(Image.open(path)).astype(bool).mean() for path in masks.iterdir()])
    assert np.mean(list(report["fractions"].values())) == pytest.approx(
        mean, abs=1e-4
    )  # of parts of pixels with coverage


def test_without_masks_the_given_fill_stays(vessels: Path, tmp_path: Path) -> None:
    report = run(vessels, tmp_path / "out", fill="coco")
    assert report["options"]["fill"] == "coco" and report["fill_by"] == ""
    assert "fill:" not in summarise(report, tmp_path / "out")


def test_masks_of_something_else_are_refused(vessels: Path, tmp_path: Path) -> None:
    masks = write_masks(vessels, tmp_path, "coco", "{}.png", 255)
    for path in masks.iterdir():
        Image.fromarray(np.roll(np.asarray(Image.open(path)), 20, axis=0)).save(path)
    with pytest.raises(UserError, match=r"no fill gives these masks: .*; are they of the same labels\?"):
        run(vessels, tmp_path / "out", fill_masks=masks)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["names", "sizes", "empty", "no folder"])
def test_nothing_to_compare_is_an_error(vessels: Path, tmp_path: Path, change: str) -> None:
    masks = write_masks(vessels, tmp_path, "coco", "{}.png", 255)
    for path in list(masks.iterdir()):
        mask = Image.open(path)
        if change == "names":
            path.rename(masks / f"other_{path.name}")
        elif change == "sizes":
            mask.resize((60, 45)).save(path)
        elif change == "empty":
            Image.new("L", SIZE).save(path)
    named = masks / "gone" if change == "no folder" else masks
    expected = "is not a folder" if change == "no folder" else "no picture has polygons and one mask of its own name"
    with pytest.raises(UserError, match=expected):
        run(vessels, tmp_path / "out", fill_masks=named)


def test_a_picture_with_two_masks_does_not_count(vessels: Path, tmp_path: Path) -> None:
    masks = write_masks(vessels, tmp_path, "coco", "{}.png", 255)
    Image.new("L", SIZE, 255).save(masks / "p0_mask.png")
    report = run(vessels, tmp_path / "out", fill_masks=masks)
    assert "coco, by the makers' masks of 5 pictures" in report["fill_by"]
