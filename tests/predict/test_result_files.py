"""Polygons reproduce the masks they come from, and output names are unique."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.imaging.dicom_files import frames, write_dicom
from tests.labelme_files import run as prepare_labels
from tests.tiny import picture
from vesselseg.dataset.manifest import read_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.imaging.mask_polygons import mask_polygons
from vesselseg.imaging.rasterise import rasterise
from vesselseg.inference.predictor import Prediction
from vesselseg.predict.inputs import InputUnit, find_inputs, read_unit
from vesselseg.predict.result_files import ResultWriter, phrase_tags, prediction_labels
from vesselseg.predict.result_folder import ResultFolder, assign_output_names


def redrawn(mask: np.ndarray) -> np.ndarray:
    polygons = [polygon.ravel().tolist() for polygon in mask_polygons(mask)]
    return rasterise(polygons, *mask.shape).astype(bool)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def loops() -> np.ndarray:
    """A thin vessel tree with loops, rings in rings, single pixels, and pieces at the border."""
    mask = np.zeros((200, 260), np.uint8)
    for radius, width in ((80, 3), (60, 1), (40, 6), (10, 2)):
        cv2.circle(mask, (110, 100), radius, 1, width)
    cv2.line(mask, (0, 0), (259, 199), 1, 2)
    cv2.line(mask, (30, 199), (200, 0), 1, 1)
    mask[5, 250], mask[199, 0], mask[100:130, 258:] = 1, 1, 1
    return mask.astype(bool)


def test_every_small_mask_is_reproduced_exactly() -> None:
    """All of 3 x 4 pixels: dots, lines, diagonal rings, holes."""
    for bits in range(1, 1 << 12, 3):
        mask = (bits >> np.arange(12) & 1).reshape(3, 4).astype(bool)
        np.testing.assert_array_equal(redrawn(mask), mask)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_noise_and_trees_are_reproduced(share: float) -> None:
    noise = np.random.default_rng(3).random((120, 100)) < share
    smooth = cv2.GaussianBlur(np.random.default_rng(4).standard_normal((256, 256)), (0, 0), 3)
    tree = np.abs(smooth) < share * smooth.std()
    for mask in (noise, tree, loops()):
        assert iou(redrawn(mask), mask) >= 0.98
        assert len(mask_polygons(mask)) == cv2.connectedComponents(mask.astype(np.uint8))[0] - 1


def test_an_outline_is_simplified() -> None:
    disc = np.zeros((200, 200), np.uint8)
    cv2.circle(disc, (100, 100), 80, 1, -1)
    [polygon] = mask_polygons(disc)
    assert len(polygon) < 125  # a quarter of its border pixels
    distance = np.hypot(*(polygon - 100.5).T)
    assert distance.max() <= 80.5 and distance.min() >= 78.5


def test_an_empty_and_a_full_mask() -> None:
    assert mask_polygons(np.zeros((9, 9), bool)) == []
    assert redrawn(np.ones((9, 12), bool)).all()


def test_holes_come_back_through_preparing(tmp_path: Path) -> None:
    masks = np.stack([loops(), np.zeros_like(loops()), loops()[::-1]])
    found = Prediction(masks.astype(np.float32), masks, ("vessel", "nothing", "artery"), 0.5)
    picture(1, 260, 200).save(tmp_path / "a b.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a b.json").write_text(json.dumps(prediction_labels(found, "../a b.png")))
    report = prepare_labels(
        tmp_path / "labels", tmp_path / "data", labels={"vessel": "vessel", "artery": "artery"}, per_shape=True
    )
    assert {finding["code"] for finding in report["findings"]} == {"empty_split"}  # of one file, that is
    [record] = read_manifest(tmp_path / "data")
    assert record.phrases == ("vessel", "artery")  # the pieces of a phrase share a group_id
    for drawn, mask in zip(record_masks(record, 200, 260).astype(bool), (masks[0], masks[2])):
        assert iou(drawn, mask) >= 0.98


def test_tags() -> None:
    assert phrase_tags(["blood vessel"]) == [""]
    assert phrase_tags(["a/b", "A b", "左冠 状", "??"]) == ["_a_b", "_A_b_2", "_左冠_状", "_phrase"]


def test_a_failed_write_leaves_no_files(tmp_path: Path) -> None:
    """With the second phrase the name is longer than file systems allow."""
    masks, image = np.ones((2, 16, 16), bool), picture(1, 16, 16)
    prediction = Prediction(masks.astype(np.float32), masks, ("a", "b" * 40), 0.5)
    writer = ResultWriter(tmp_path, prediction.phrases, ("masks", "overlay"))
    assert writer.write("short", image, None, prediction)[0] == "masks/short_a.png"
    with pytest.raises(OSError, match="too long"):
        writer.write("n" * 220, image, None, prediction)
    left = sorted(path.name for path in tmp_path.rglob("*.*"))
    assert left == sorted(["short_a.png", f"short_{'b' * 40}.png", "short.png"])


def test_output_names_are_unique() -> None:
    files = ["a.jpg", "a.png", "A.tif", "s/a.png", "a_x.png", "a_y.png"]
    names = assign_output_names(files, ["_x", "_z"], {"a.png": {"name": "a"}})
    assert names["a.png"] == "a" and names["a.jpg"] == "a_jpg" and names["s/a.png"] == "s/a"
    assert names["a_x.png"] == "a_x_png"  # a_x is what a's phrase x is called
    written = [f"{name}{tag}".casefold() for name in names.values() for tag in ("", "_x", "_z")]
    assert len(set(written)) == len(written)


def test_a_name_with_a_line_separator_is_recognised_again(tmp_path: Path) -> None:
    entry = {"file": "left\u2028right\x85.png", "name": "left", "outputs": []}
    with ResultFolder(tmp_path / "out").open({}) as results:
        results.add(entry)
    with ResultFolder(tmp_path / "out").open({}) as results:
        assert list(results.entries) == [entry["file"]]


def test_a_list_holds_names_with_line_separators(tmp_path: Path) -> None:
    names = ["left\u2028right.png", "a\x85.png", "\u2028b.png\x1c"]
    (tmp_path / "list.txt").write_text("\r\n".join(["", f" {names[0]}\t", *names[1:], ""]), encoding="utf-8")
    found = find_inputs(tmp_path / "list.txt")
    assert [unit.path for unit in found] == [tmp_path / name for name in names]
    assert [InputUnit.from_json(json.loads(json.dumps(unit.to_json()))) for unit in found] == found


def test_names_in_an_old_encoding_stay_apart(tmp_path: Path) -> None:
    """Two Chinese names encoded in GBK are equal when read as UTF-8."""
    contents = {}
    for number, name in enumerate(("造影1.png", "血管1.png")):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name.encode("gbk")))
        picture(number).save(path)
        contents[path] = path.read_bytes()
    found = find_inputs(tmp_path)
    assert len({item.file for item in found}) == 2
    assert {item.path for item in found} == set(contents)
    for item in found:
        item.file.encode("utf-8")
        read = read_unit(item, lambda *_: False)
        assert read is not None and read.sha256 == hashlib.sha256(contents[item.path]).hexdigest()


@pytest.mark.parametrize(
    ("numbers", "notes"),
    [
        ((1, 2, 3), ()),
        ((1, 3, 5), ()),
        ((1, 2, 4, 5, 8), ("images may be missing: 3 InstanceNumbers from 1 to 8 are absent, the first is 3",)),
    ],
)
def test_gaps_in_a_series_are_reported(numbers: tuple[int, ...], notes: tuple[str, ...], tmp_path: Path) -> None:
    for number in numbers:
        own = {"SeriesInstanceUID": "1.2.3", "SeriesNumber": 7, "InstanceNumber": number}
        write_dicom(tmp_path / f"IM{number}", frames(1), **own)
    (run,) = find_inputs(tmp_path)
    read = read_unit(run, lambda *_: False)
    assert read is not None and read.pictures is not None
    assert read.pictures.frames == len(numbers) and read.pictures.notes == notes
