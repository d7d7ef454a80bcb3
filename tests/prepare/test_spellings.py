"""Names, ids and sizes that contradict each other: matched by listed rules, or refused with what differs."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.labelme_files import found, run
from tests.prepare.label_formats import DRAWN, HEIGHT, WIDTH, coco_content, picture, truth, write_coco, write_labelme
from tests.shared_cases import case
from vesselseg.dataset.manifest import read_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.errors import UserError
from vesselseg.imaging.source_files import list_source_files
from vesselseg.imaging.spellings import other_spellings, spelling_key
from vesselseg.predict.inputs import find_inputs
from vesselseg.prepare.readers.ids import Ids

ALL: dict[str, Any] = {"fractions": (1.0, 0.0, 0.0)}
POLYGONS = [[points] for points in DRAWN["p1_a"]]


def coco(root: Path, file_name: str, **image: Any) -> dict[str, Any]:
    """A COCO file of one image; without its picture."""
    content = coco_content(lambda stem: POLYGONS if stem == "p1_a" else [])
    content["images"] = [{**content["images"][0], "file_name": file_name, **image}]
    root.mkdir(parents=True, exist_ok=True)
    (root / "result.json").write_text(json.dumps(content))
    return content


# name in the label file -> name of the picture, rule or None
NAMES = {
    "a%20b.png": ("a b.png", "percent-encoding"),
    "%25E8%25A1%2580.png": ("血.png", "percent-encoding, twice"),
    "a+b.png": ("a b.png", "percent-encoding with + for a space"),
    "/data/local-files/?d=set%2Fa.png&x=1": ("a.png", "the address of a local file"),
    "upload/1/0a1b2c3d-a.png": ("a.png", "the prefix of an upload"),
    "血管.png": ("%E8%A1%80%E7%AE%A1.png", "percent-encoding"),
    unicodedata.normalize("NFD", "é.png"): (unicodedata.normalize("NFC", "é.png"), None),
    "IM_1.PNG": ("im_1.png", None),
    "50%.png": ("50%.png", None),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_in_another_spelling(tmp_path: Path, name: str) -> None:
    stored, rule = NAMES[name]
    picture(tmp_path / "s" / stored)
    coco(tmp_path / "s", name)
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert [finding["code"] for finding in report["findings"]] == ([] if rule is None else ["name_match"])
    assert rule is None or report["findings"][0]["reason"].endswith(f"by {rule}")
    (record,) = read_manifest(tmp_path / "o")
    assert np.array_equal(record_masks(record, HEIGHT, WIDTH)[0], truth("p1_a"))


def test_the_name_itself_comes_first(tmp_path: Path) -> None:
    for stored in ("a%20b.png", "a b.png"):
        picture(tmp_path / "s" / stored)
    coco(tmp_path / "s", "a%20b.png")
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert (report["findings"], report["unlabelled"]) == ([], ["a b.png"])


def test_a_missing_name_is_told_with_the_nearest(tmp_path: Path) -> None:
    write_coco(tmp_path / "s")
    path = tmp_path / "s" / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace("p2_b.png", "p2_bb.png"))
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert "p2_bb.png is not in the source; did you mean 'p2_b.png'?" in report["findings"][0]["reason"]


def test_labelme_names_in_another_spelling(tmp_path: Path) -> None:
    write_labelme(tmp_path / "s")
    (tmp_path / "s" / "p1_a.png").rename(tmp_path / "s" / "p1 ä.png")
    label = tmp_path / "s" / "p1_a.json"
    label.write_text(label.read_text().replace("p1_a.png", "p1%20%C3%A4.png"))
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert found(report) == {("p1_a.json", None, "name_match")}


def test_spellings_never_leave_the_name_empty() -> None:
    for name in ("", "%", "%zz", "?d=", "0a1b2c3d-", "//[", "a?d=%00"):
        assert all(spelled for _, spelled in other_spellings(name))
    assert spelling_key("É.PNG") == spelling_key(unicodedata.normalize("NFD", "é.png"))


@pytest.mark.parametrize(
    ("image", "annotation"), [(1, 1.0), (1, "1"), ("1", 1), ("1", 1.0), (1.0, "1.0"), (7, "007"), ("a1", "a1")]
)
def test_ids_of_other_types(tmp_path: Path, image: Any, annotation: Any) -> None:
    content = coco(tmp_path / "s", "a.png", id=image)
    picture(tmp_path / "s" / "a.png")
    kept = [{**entry, "image_id": annotation, "category_id": "3"} for entry in content["annotations"]]
    (tmp_path / "s" / "result.json").write_text(json.dumps({**content, "annotations": kept}))
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert report["counts"]["shapes"] == len(POLYGONS)
    assert [row["label"] for row in report["labels"]] == ["vessel"]
    assert report["findings_by_code"] == ({} if type(image) is type(annotation) else {"id_type": 1})


def test_ambiguous_and_unknown_ids_are_named(tmp_path: Path) -> None:
    assert Ids([1, "1"]).find("1") == "1" and Ids([1, "1"]).find(1.0) == 1.0
    assert Ids([1, "1", "01"]).find("001") == "001"
    content = coco(tmp_path / "s", "a.png", id=5)
    picture(tmp_path / "s" / "a.png")
    kept = [{**entry, "image_id": "x5"} for entry in content["annotations"]]
    (tmp_path / "s" / "result.json").write_text(json.dumps({**content, "annotations": kept}))
    with pytest.raises(UserError, match=r"image_id 'x5'; the images have ids like 5"):
        run(tmp_path / "s", tmp_path / "o", **ALL)


def jpeg(path: Path, size: tuple[int, int], orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    values = np.random.default_rng(5).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(values).save(path, exif=exif)


# (stored size, orientation, stated size, lower right corner of the shape) -> size of the mask, or None: refused
SIZES = {
    "before the turn": ((40, 30), 6, (40, 30), (25, 38), (30, 40)),
    "before the turn, left": ((40, 30), 8, (40, 30), (28, 36), (30, 40)),
    "as stored, twice as large": ((40, 30), 6, (80, 60), (75, 50), (40, 30)),
    "exchanged": ((40, 30), None, (30, 40), (35, 25), (40, 30)),
    "exchanged, fits both": ((40, 30), None, (30, 40), (25, 25), (40, 30)),
    "exchanged, twice as large": ((40, 30), None, (60, 80), (75, 50), (40, 30)),
    "turned after labelling": ((40, 30), None, (30, 40), (25, 38), None),
    "as stated": ((40, 30), None, (40, 30), (38, 25), (40, 30)),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_contradict_the_shapes(tmp_path: Path, name: str) -> None:
    stored, orientation, stated, corner, size = SIZES[name]
    jpeg(tmp_path / "s" / "a.jpg", stored, orientation)
    x, y = corner
    content = coco(tmp_path / "s", "a.jpg", width=stated[0], height=stated[1])
    entry = {**content["annotations"][0], "segmentation": [[2, 2, x, 2, x, y, 2, y]]}
    (tmp_path / "s" / "result.json").write_text(json.dumps({**content, "annotations": [entry]}))
    if size is None:
        with pytest.raises(UserError, match="was it turned after labelling"):
            run(tmp_path / "s", tmp_path / "o", **ALL)
        return
    report = run(tmp_path / "s", tmp_path / "o", fill="coco", **ALL)
    assert list(report["sizes"]) == [f"{size[0]}x{size[1]}"]
    assert ("size_swapped" in report["findings_by_code"]) == (not name.startswith("as st"))
    (record,) = read_manifest(tmp_path / "o")
    rows, columns = np.nonzero(record_masks(record, size[1], size[0])[0])
    factor = 0.5 if "twice" in name else 1
    assert (columns.max() + 1, rows.max() + 1) == pytest.approx((x * factor, y * factor), abs=1)


def nnunet(root: Path, labels: dict[str, Any], values: np.ndarray) -> None:
    for number in range(2):
        picture(root / "imagesTr" / f"XA_{number:03}_0000.png", seed=number)
        (root / "labelsTr").mkdir(exist_ok=True)
        Image.fromarray(values).save(root / "labelsTr" / f"XA_{number:03}.png")
    content = {"channel_names": {"0": "XA"}, "labels": labels, "numTraining": 2, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("labels", [{"background": 0, "artery": 1}, {"0": "background", "1": "artery"}])
def test_raw_folders_of_nnunet(tmp_path: Path, labels: dict[str, Any]) -> None:
    nnunet(tmp_path / "s", labels, truth("p1_a"))
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert (report["format"], report["findings"]) == ("masks", [])
    assert [row["label"] for row in report["labels"]] == ["artery"]
    for record in read_manifest(tmp_path / "o"):
        assert np.array_equal(record_masks(record, HEIGHT, WIDTH)[0], truth("p1_a"))


def test_the_ignore_label_of_nnunet(tmp_path: Path) -> None:
    values = truth("p1_a").copy()
    values[:2] = 2
    nnunet(tmp_path / "s", {"background": 0, "vessel": 1, "ignore": 2}, values)
    run(tmp_path / "s", tmp_path / "o", **ALL)
    for record in read_manifest(tmp_path / "o"):
        assert record.ignore and np.array_equal(record_masks(record, HEIGHT, WIDTH)[0], values == 1)


def test_linked_folders_are_listed_once(tmp_path: Path) -> None:
    write_labelme(tmp_path / "elsewhere" / "p4")
    picture(tmp_path / "s" / "p0" / "x.png")
    (tmp_path / "s" / "p4").symlink_to(tmp_path / "elsewhere" / "p4")
    (tmp_path / "s" / "again").symlink_to(tmp_path / "s" / "p4")
    (tmp_path / "s" / "p0" / "loop").symlink_to(tmp_path / "s")
    (tmp_path / "s" / "up").symlink_to(tmp_path)
    files = list_source_files(tmp_path / "s")
    assert files.images == ("again/p1_a.png", "again/p2_b.png", "p0/x.png")
    assert [name for name, _ in files.links] == ["p0/loop", "p4", "up"]
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert report["findings_by_code"]["link"] == 3
    assert report["counts"]["images"] == 2


CASES = {
    "names_percent_encoded/c1_urlencoded": (3, {"name_match": 3}),
    "names_percent_encoded/c1b_localfiles": (3, {"name_match": 3}),
    "names_percent_encoded/x2_yolo_encoded": (3, {"name_match": 2}),
    "coco_ids_of_other_type/c3_float_ids": (3, {"id_type": 3}),
    "coco_ids_of_other_type/c4_str_ids": (3, {"id_type": 3}),
    "coco_exif_size_not_turned/source": (3, {"turned": 3, "size_swapped": 3}),
    "nnunet_raw_folder/source": (4, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(tmp_path: Path, name: str) -> None:
    images, codes = CASES[name]
    folder, _, below = name.partition("/")
    report = run(case(folder) / below, tmp_path / "o", **ALL)
    assert report["counts"]["images"] == images and report["counts"]["negatives"] == 0
    assert report["findings_by_code"] == codes


def test_predict_follows_linked_folders_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s")
    assert [unit.file for unit in find_inputs(tmp_path / "s")] == ["linked/x.png"]
    assert "loop: link not followed: its folder is in the source already" in caplog.text


def test_raw_folders_of_nnunet_with_named_masks(tmp_path: Path) -> None:
    nnunet(tmp_path / "s", {"background": 0, "vessel": 1}, truth("p1_a"))
    report = run(tmp_path / "s", tmp_path / "o", masks=("labelsTr",), **ALL)
    assert (report["counts"]["images"], report["findings"]) == (2, [])
