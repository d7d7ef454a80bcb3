"""Every label format gives the same masks; problems of a source are listed, never raised."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.labelme_files import found, run, tree
from tests.prepare import label_formats as formats
from tests.prepare.label_formats import DRAWN, HEIGHT, WIDTH, WRITERS, picture, truth
from vesselseg.dataset.manifest import Record, read_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.errors import UserError

ALL = {"fractions": (1.0, 0.0, 0.0)}


def by_stem(folder: Path) -> dict[str, Record]:
    return {Path(record.image).stem: record for record in read_manifest(folder)}


def mask_of(record: Record) -> np.ndarray:
    return record_masks(record, HEIGHT, WIDTH).max(axis=0)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_shapes_give_the_same_masks(tmp_path: Path, name: str) -> None:
    kind, write = WRITERS[name]
    source = tmp_path / "s"
    source.mkdir()
    write(source)
    before = tree(source)
    report = run(source, tmp_path / "o", **ALL)
    records = by_stem(tmp_path / "o")
    assert set(records) == set(DRAWN)
    for stem, record in records.items():
        assert record.phrases == ("blood vessel",)
        assert np.array_equal(mask_of(record), truth(stem)), stem
    assert report["findings"] == []
    assert report["unlabelled"] == []
    assert report["format"] == kind
    assert (report["counts"]["label_files"], report["counts"]["negatives"]) == (2, 1)
    assert tree(source) == before
    forced = run(source, tmp_path / "p", format=kind, **ALL)
    assert forced == {**report, "source": forced["source"]}


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_and_a_folder_give_the_same_dataset(tmp_path: Path, name: str) -> None:
    (tmp_path / "s").mkdir()
    WRITERS[name][1](tmp_path / "s")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "s", "some/top")
    for source in ("s", "a.tar.gz"):
        run(tmp_path / source, tmp_path / f"{source}.out", group_regex=r"(p\d)_", **ALL)
    folder, unpacked = (read_manifest(tmp_path / f"{source}.out") for source in ("s", "a.tar.gz"))
    assert folder == unpacked
    assert {record.group for record in folder} == {"p1", "p2"}


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_and_missing_images_are_findings(tmp_path: Path, name: str) -> None:
    (tmp_path / "s").mkdir()
    WRITERS[name][1](tmp_path / "s")
    path = min(path for path in (tmp_path / "s").rglob("p2_b.png") if "masks" not in path.parts)
    path.write_bytes(path.read_bytes()[:60])
    assert {code for _, _, code in found(run(tmp_path / "s", tmp_path / "o", **ALL))} == {"unreadable_image"}
    path.unlink()
    assert {code for _, _, code in found(run(tmp_path / "s", tmp_path / "p", **ALL))} == {"no_image"}
    assert [record.image.split("/")[-1] for record in read_manifest(tmp_path / "p")] == ["p1_a.png"]


@pytest.mark.parametrize("name", ["LabelMe", "COCO polygons", "YOLO", "CVAT polygons"])
@pytest.mark.parametrize("content", [b"", b"\0\xff\xfe\x80", b"{", b"[1]", b"<annotations>", b"9 x\n"])
def test_damaged_label_files_are_findings_or_one_message(tmp_path: Path, name: str, content: bytes) -> None:
    kind, write = WRITERS[name]
    (tmp_path / "s").mkdir()
    write(tmp_path / "s")
    label = next(path for path in sorted((tmp_path / "s").rglob("*")) if path.suffix in (".json", ".txt", ".xml"))
    label.write_bytes(content)
    try:
        report = run(tmp_path / "s", tmp_path / "o", format=kind, **ALL)
    except UserError as error:
        assert label.name in str(error)
    else:
        files = {file for file, _, _ in found(report)}
        assert {label.stem, "empty"} & {Path(file).stem for file in files} or (name, content) == ("YOLO", b"")


def test_mixed_formats_give_one_message(tmp_path: Path) -> None:
    formats.write_labelme(tmp_path / "s")
    formats.write_coco(tmp_path / "s")
    with pytest.raises(UserError, match=r"several formats: labelme \(2, as p1_a.json\), coco \(1, .*--format"):
        run(tmp_path / "s", tmp_path / "o")
    assert run(tmp_path / "s", tmp_path / "o", format="coco")["counts"]["images"] == 2


def coco_with(root: Path, annotations: list[Any], **fields: Any) -> None:
    content = formats.coco_content(lambda stem: [])
    entries = [{"image_id": 0, "category_id": 3, "segmentation": part} for part in annotations]
    formats.write_coco(root)
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({**content, "annotations": entries, **fields}))


COCO_PARTS: dict[str, tuple[Any, str]] = {
    "two points": ([[1, 1, 5, 5]], "too_few_points"),
    "odd": ([[1, 1, 5, 5, 9, 9, 1]], "bad_field"),
    "a word": ([[1, 1, 5, 5, 9, "x"]], "bad_field"),
    "infinite": ([[1, 1, 5, 5, 9, float("inf")]], "not_finite"),
    "on a line": ([[1, 1, 5, 5, 9, 9]], "zero_area"),
    "outside": ([[100, 100, 120, 100, 120, 120]], "outside"),
    "over the border": ([[-10, 5, 10, 5, 10, 15]], "clipped"),
    "box only": ([], "bad_field"),
    "null": (None, "bad_field"),
    "other size": ({"size": [3, 4], "counts": [12]}, "bad_mask"),
    "counts too long": ({"size": [HEIGHT, WIDTH], "counts": [1, 2, 3]}, "bad_mask"),
    "negative counts": ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH + 1, -1]}, "bad_mask"),
    "no code": ({"size": [HEIGHT, WIDTH], "counts": "~~~~"}, "bad_mask"),
    "not even text": ({"size": [HEIGHT, WIDTH], "counts": "é"}, "bad_mask"),
    "no size": ({"counts": [3]}, "bad_mask"),
    "empty mask": ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "zero_area"),
}


@pytest.mark.parametrize("name", COCO_PARTS)
def test_invalid_coco_annotations(tmp_path: Path, name: str) -> None:
    part, code = COCO_PARTS[name]
    coco_with(tmp_path / "s", [part, [[4, 6, 14, 6, 14, 16, 4, 16]]])
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert found(report) == {("train2017/p1_a.png", 0, code)}
    assert mask_of(by_stem(tmp_path / "o")["p1_a"]).sum() >= 121


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"images": [{"id": 0, "file_name": "p1_a.png"}, {"id": 0, "file_name": "p2_b.png"}]}, "more than once: 0"),
        ({"images": [{"id": 0}]}, "without"),
        ({"images": []}, "annotation(s) of images that are not listed"),
        ({"images": 3}, 'lists "images"'),
    ],
)
def test_coco_files_that_would_mislabel_are_left_out(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    coco_with(tmp_path / "s", [[[1, 1, 9, 1, 9, 9]]], **fields)
    with pytest.raises(UserError, match="nothing usable") as caught:
        run(tmp_path / "s", tmp_path / "o")
    assert words in str(caught.value)


def test_coco_parts_of_an_annotation_are_one_object_and_categories_are_labels(tmp_path: Path) -> None:
    coco_with(tmp_path / "s", [[[1, 1, 9, 1, 9, 9], [21, 1, 29, 1, 29, 9]], [1, 11, 9, 11, 9, 19]])
    report = run(tmp_path / "s", tmp_path / "o", per_shape=True, labels={"vessel": "artery"}, **ALL)
    record = by_stem(tmp_path / "o")["p1_a"]
    assert [len(regions) for regions in record.regions] == [2, 1]
    assert record.phrases == ("artery", "artery")
    assert report["labels"][0]["label"] == "vessel"


def test_coco_names_in_two_folders_match_the_nearest(tmp_path: Path) -> None:
    for split in ("train", "val"):
        root = tmp_path / "s" / split
        picture(root / "a.png", seed=len(split))
        content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
        (root / "_annotations.coco.json").write_text(json.dumps(content))
    assert run(tmp_path / "s", tmp_path / "o", **ALL)["findings_by_code"] == {"no_vessel": 1}
    (tmp_path / "s" / "val" / "a.png").unlink()
    report = run(tmp_path / "s", tmp_path / "p", **ALL)
    assert found(report) == {("train/a.png", None, "listed_twice"), ("(all files)", None, "no_vessel")}


def test_a_path_in_a_label_file_is_never_opened(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    coco_with(tmp_path / "s", [], images=[{"id": 0, "file_name": "../../secret.png"}])
    with pytest.raises(UserError, match="not in the source"):
        run(tmp_path / "s", tmp_path / "o")


def test_yolo_lines(tmp_path: Path) -> None:
    formats.write_yolo(tmp_path / "s")
    lines = ["0 0.5 0.5 0.2 0.2", "0 0.1 0.1 0.3 0.1 0.3", "0 0.1 0.1 0.3 0.1 0.3 x", "7 .1 .1 .5 .1 .5 .5",
             "0 10 12 30 12 30 20", "0 0.1 nan 0.3 0.1 0.3 0.3", "0 0.1 0.1 0.3 0.3 0.3 0.3 0.1 0.1"]  # fmt: skip
    (tmp_path / "s" / "labels" / "train" / "p1_a.txt").write_text("\n".join(lines))
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    codes = [(index, code) for _, index, code in sorted(found(report), key=lambda item: item[1] or 0)]
    assert codes == [(0, "bad_field"), (1, "bad_field"), (2, "bad_field"), (4, "bad_field"), (5, "not_finite"),
                     (6, "too_few_points")]  # fmt: skip
    assert {row["label"] for row in report["labels"] if row["shapes"]} == {"7"}
    assert mask_of(by_stem(tmp_path / "o")["p1_a"]).sum() > 60


def test_yolo_picture_without_a_text_is_unlabelled_and_names_may_be_a_list(tmp_path: Path) -> None:
    formats.write_yolo(tmp_path / "s")
    picture(tmp_path / "s" / "images" / "train" / "c.png")
    (tmp_path / "s" / "data.yaml").write_text("names: [coronary]\nnc: 1\n")
    report = run(tmp_path / "s", tmp_path / "o", labels={"coronary": "artery"}, **ALL)
    assert report["unlabelled"] == ["images/train/c.png"]
    assert by_stem(tmp_path / "o")["p1_a"].phrases == ("artery",)


CVAT_SHAPES: dict[str, tuple[str, dict[str, Any], str]] = {
    "line": ("polyline", {"points": "1,1;9,9"}, "no_width"),
    "point": ("points", {"points": "5,5"}, "no_width"),
    "points": ("points", {"points": "5,5;6,6"}, "bad_field"),
    "cuboid": ("cuboid", {"xtl1": 1}, "unknown_type"),
    "skeleton": ("skeleton", {}, "unknown_type"),
    "one corner": ("polygon", {"points": "1,1"}, "too_few_points"),
    "no pairs": ("polygon", {"points": "1;2;3"}, "bad_field"),
    "words": ("polygon", {"points": "a,1;2,2;3,5"}, "bad_field"),
    "no label": ("polygon", {"points": "1,1;9,1;9,9", "label": " "}, "bad_field"),
    "box without corner": ("box", {"xtl": 1, "ytl": 1, "xbr": 3}, "bad_field"),
    "mask": ("mask", {"rle": "3,4", "left": 0, "top": 0, "width": 3, "height": 3}, "bad_mask"),
    "mask text": ("mask", {"rle": "a", "left": 0, "top": 0, "width": 3, "height": 3}, "bad_mask"),
}


@pytest.mark.parametrize("name", CVAT_SHAPES)
def test_invalid_cvat_shapes(tmp_path: Path, name: str) -> None:
    kind, fields, code = CVAT_SHAPES[name]
    formats.cvat_file(tmp_path / "s", lambda stem: [(kind, fields)] if DRAWN[stem] else [])
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert ("images/p1_a.png", 0, code) in found(report)


def test_cvat_shapes_have_the_area_of_their_formulas(tmp_path: Path) -> None:
    box = {"xtl": 10, "ytl": 8, "xbr": 20, "ybr": 12}
    drawn: dict[str, tuple[str, dict[str, Any], float]] = {
        "box": ("box", box, 55),
        "turned box": ("box", {**box, "rotation": 90}, 55),
        "ellipse": ("ellipse", {"cx": 20, "cy": 15, "rx": 10, "ry": 5}, np.pi * 10.5 * 5.5),
        "turned ellipse": ("ellipse", {"cx": 20, "cy": 15, "rx": 10, "ry": 5, "rotation": 45}, np.pi * 10.5 * 5.5),
        "line": ("polyline", {"points": "5.5,10.5;25.5,10.5"}, 5 * 20 + np.pi * 2.5**2),
    }
    for name, (kind, fields, area) in drawn.items():
        root = tmp_path / name
        formats.cvat_file(root, lambda stem, kind=kind, fields=fields: [(kind, fields)] if DRAWN[stem] else [])  # type: ignore[misc]
        run(root, tmp_path / f"{name}.out", line_width=4.0, **ALL)
        mask = mask_of(by_stem(tmp_path / f"{name}.out")["p1_a"])
        assert mask.sum() == pytest.approx(area, rel=0.2), name
        if name == "turned box":
            assert np.ptp(np.nonzero(mask)[0]) == 10 and np.ptp(np.nonzero(mask)[1]) == 4
        if name == "turned ellipse":  # clockwise on the screen: the right end moves down
            assert mask[21, 26] and not mask[9, 26]


def test_text_between_cvat_images_is_ignored(tmp_path: Path) -> None:
    formats.write_cvat(tmp_path / "s")
    path = tmp_path / "s" / "annotations.xml"
    path.write_bytes(path.read_bytes().replace(b"</image>", b"</image>, note "))
    assert run(tmp_path / "s", tmp_path / "o", **ALL)["findings"] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<annotations><track id='0'/></annotations>", "CVAT for video"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "entities"),
        ("<annotations><image", "not readable as XML"),
    ],
)
def test_rejected_cvat_files(tmp_path: Path, content: str, words: str) -> None:
    picture(tmp_path / "s" / "a.png")
    (tmp_path / "s" / "annotations.xml").write_text(content)
    with pytest.raises(UserError, match=words):
        run(tmp_path / "s", tmp_path / "o")


def test_labels_of_other_size_are_rescaled_in_every_format(tmp_path: Path) -> None:
    formats.write_coco(tmp_path / "s")
    path = tmp_path / "s" / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image.update(width=2 * WIDTH, height=2 * HEIGHT)
    content["annotations"] = [
        {**entry, "segmentation": [[2 * v for v in part] for part in entry["segmentation"]]}
        for entry in content["annotations"]
    ]
    path.write_text(json.dumps(content))
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert report["findings_by_code"] == {"rescaled": 1}
    assert np.array_equal(mask_of(by_stem(tmp_path / "o")["p1_a"]), truth("p1_a"))


@pytest.mark.parametrize("name", ["LabelMe", "COCO polygons"])
def test_lone_surrogates_in_names_are_tolerated(tmp_path: Path, name: str) -> None:
    (tmp_path / "s").mkdir()
    WRITERS[name][1](tmp_path / "s")
    path = min((tmp_path / "s").rglob("*.json"))  # that of the picture with shapes
    text = path.read_text().replace('"vessel"', '"\\ud83d\\ude00 \\ud83d \\ude00"')
    path.write_text(text.replace("p2_b.png", "\\ud800.png"))
    run(tmp_path / "s", tmp_path / "o", **ALL)
    labels = [row["label"] for row in json.loads((tmp_path / "o" / "report.json").read_text())["labels"]]
    assert labels == ["\U0001f600 \ufffd \ufffd"]


def test_unusual_values_in_coco_files(tmp_path: Path) -> None:
    names = ["", "..", "/etc/passwd", "nul\0.png", "a" * 5000]
    images = [{"id": n, "file_name": name, "width": 1e300, "height": None} for n, name in enumerate(names)]
    coco_with(tmp_path / "s", [], images=[*images, {"id": "x", "file_name": "p1_a.png"}], categories=3)
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert report["findings_by_code"] == {"no_image": 5, "no_vessel": 1}


def test_a_source_without_labels_reports_what_is_expected(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    for kind in ("", "coco", "yolo", "cvat", "masks", "dicom"):
        with pytest.raises(UserError, match=r"no labels: found 0 \.json, 1 image"):
            run(tmp_path, tmp_path.parent / "o", format=kind)
