"""From a source to a dataset folder: what is written and what is found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.labelme_files import Shape, WriteLabel, found, polygon, run, tree
from vesselseg.dataset.manifest import read_manifest, read_splits
from vesselseg.dataset.record_masks import record_masks
from vesselseg.errors import UserError
from vesselseg.imaging.labelme import LabelmeLabels
from vesselseg.imaging.rasterise import rasterise
from vesselseg.imaging.regions import FILLS, Fill
from vesselseg.prepare.prepare_image import ImageOptions, ImageTask, overlay_size, prepare_image


def test_dataset_folder_is_complete_and_source_unchanged(source: Path, tmp_path: Path) -> None:
    before = tree(source)
    report = run(source, tmp_path / "data" / "out")
    out = tmp_path / "data" / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "annotations.json", "images", "report.html", "report.json", "splits.json",
    ]  # fmt: skip
    records = read_manifest(out)
    assert [record.phrases for record in records] == [("blood vessel",)] * 10
    assert record_masks(records[0], 30, 40).sum() == 121
    assert (out / "images" / "p0_f0.png").read_bytes() == (source / "p0_f0.png").read_bytes()
    assert {name: len(names) for name, names in read_splits(out).items()} == {"train": 8, "val": 1, "test": 1}
    assert report == json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["findings"] == []
    assert report["fractions"]["p0_f0.png"] == pytest.approx(121 / 1200, abs=1e-6)
    assert tree(source) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_same_input_gives_the_same_bytes_with_any_number_of_workers(
    source: Path, tmp_path: Path, write_label: WriteLabel, square: Shape
) -> None:
    for number in range(30):
        write_label(source / "more", f"x{number}", [square])
    run(source, tmp_path / "a", workers=1)
    run(source, tmp_path / "b", workers=2)
    for name in ("annotations.json", "splits.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_size_is_rescaled_per_axis_and_listed(tmp_path: Path, write_label: WriteLabel) -> None:
    big = polygon([[8, 12], [28, 12], [28, 32], [8, 32]])
    write_label(tmp_path / "s", "a", [big], imageWidth=80, imageHeight=60)
    stretched = polygon([[8, 6], [28, 6], [28, 16], [8, 16]])
    write_label(tmp_path / "s", "b", [stretched], imageWidth=80, imageHeight=30)
    report = run(tmp_path / "s", tmp_path / "o", fractions=(1.0, 0.0, 0.0))
    assert found(report) == {("a.json", None, "rescaled"), ("b.json", None, "rescaled")}
    assert "multiplied by 0.5" in report["findings"][0]["reason"]
    assert "0.5 in x and 1 in y" in report["findings"][1]["reason"]
    for record in read_manifest(tmp_path / "o"):
        assert record.regions[0][0] == [4.0, 6.0, 14.0, 6.0, 14.0, 16.0, 4.0, 16.0]
    assert report["counts"]["rescaled"] == 2


def test_invalid_shapes_are_listed_and_others_kept(tmp_path: Path, write_label: WriteLabel, square: Shape) -> None:
    shapes = [
        polygon([[1, 1]]),
        square,
        polygon([[1, 1], [2, 2], [3, 3]]),
        polygon([[90, 1], [99, 1], [99, 9]]),
        polygon([[-10, 5], [10, 5], [10, 15]]),
        polygon([[1, 1], [9, float("inf")], [3, 3]]),
        {"label": "vessel", "points": [[1, 1], [9, 9]], "shape_type": "line"},
    ]
    write_label(tmp_path / "s", "a", shapes)
    report = run(tmp_path / "s", tmp_path / "o", fractions=(1.0, 0.0, 0.0))
    assert found(report) == {
        ("a.json", 0, "too_few_points"),
        ("a.json", 2, "zero_area"),
        ("a.json", 3, "outside"),
        ("a.json", 4, "clipped"),
        ("a.json", 5, "not_finite"),
        ("a.json", 6, "no_width"),
    }
    assert report["counts"]["shapes"] == 2
    assert report["counts"]["shapes_left_out"] == 5
    assert report["labels"] == [
        {"label": "vessel", "phrase": "blood vessel", "shapes": 2, "left_out": 5, "files": 1}
    ]  # fmt: skip
    assert "no_width" not in run(tmp_path / "s", tmp_path / "p", line_width=3.0)["findings_by_code"]


def test_damaged_files_are_listed_and_others_kept(tmp_path: Path, write_label: WriteLabel, square: Shape) -> None:
    write_label(tmp_path / "s", "good", [square])
    write_label(tmp_path / "s", "nopicture", [square], picture=False)
    write_label(tmp_path / "s", "empty", [square])
    (tmp_path / "s" / "empty.png").write_bytes(b"")
    write_label(tmp_path / "s", "allbroken", [polygon([[1, 1]])])
    (tmp_path / "s" / "list.json").write_text("[]")
    Image.new("L", (5, 5)).save(tmp_path / "s" / "alone.png")
    report = run(tmp_path / "s", tmp_path / "o", fractions=(1.0, 0.0, 0.0))
    assert found(report) == {
        ("nopicture.json", None, "no_image"),
        ("empty.json", None, "unreadable_image"),
        ("allbroken.json", 0, "too_few_points"),
        ("allbroken.json", None, "no_usable_shape"),
        ("list.json", None, "not_labelme"),
    }
    assert [record.image for record in read_manifest(tmp_path / "o")] == ["good.png"]
    assert sorted(path.name for path in (tmp_path / "o" / "images").iterdir()) == ["good.png"]
    assert "alone.png" in report["unlabelled"]
    assert "good.png" not in report["unlabelled"]


def test_image_without_shapes_is_a_negative(tmp_path: Path, write_label: WriteLabel, square: Shape) -> None:
    write_label(tmp_path / "s", "a", [])
    write_label(tmp_path / "s", "b", [square])
    report = run(tmp_path / "s", tmp_path / "o", text="coronary artery")
    record = read_manifest(tmp_path / "o")[0]
    assert (record.regions, record.phrases) == (((),), ("coronary artery",))
    assert record_masks(record, 30, 40).sum() == 0
    assert report["counts"]["negatives"] == 1
    assert report["counts"]["objects"] == 1


def test_labels_of_one_phrase_are_one_object(tmp_path: Path, write_label: WriteLabel) -> None:
    shapes = [
        polygon([[1, 1], [9, 1], [9, 9]], "LAD"),
        polygon([[11, 1], [19, 1], [19, 9]], "RCA"),
        polygon([[21, 1], [29, 1], [29, 9]], "catheter"),
        polygon([[1, 11], [9, 11], [9, 19]], "LAD"),
        polygon([[1, 21], [9, 21]], "note"),
    ]
    write_label(tmp_path / "s", "a", shapes)
    labels = {"LAD": "artery", "RCA": "artery", "catheter": "catheter", "note": None}
    report = run(tmp_path / "s", tmp_path / "o", labels=labels, fractions=(1, 0, 0))
    record = read_manifest(tmp_path / "o")[0]
    assert record.phrases == ("artery", "catheter")
    assert [len(regions) for regions in record.regions] == [3, 1]
    assert report["findings"] == []
    run(
        tmp_path / "s",
        tmp_path / "p",
        labels={**labels, "catheter": None, "LAD": None, "RCA": None},
        fractions=(1, 0, 0),
    )
    assert read_manifest(tmp_path / "p")[0].regions == ((),)


def test_per_shape_keeps_group_ids_together(tmp_path: Path, write_label: WriteLabel) -> None:
    shapes = [
        polygon([[1, 1], [9, 1], [9, 9]]),
        polygon([[11, 1], [19, 1], [19, 9]], group_id=4),
        polygon([[21, 1], [29, 1], [29, 9]]),
        polygon([[1, 11], [9, 11], [9, 19]], group_id=4),
    ]
    write_label(tmp_path / "s", "a", shapes)
    run(tmp_path / "s", tmp_path / "o", per_shape=True)
    record = read_manifest(tmp_path / "o")[0]
    assert [len(regions) for regions in record.regions] == [1, 2, 1]
    assert record.phrases == ("blood vessel",) * 3


def test_unknown_labels_are_an_error_with_close_names(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'vessel' \(10 shape\(s\)\); similar to 'vessels'"):
        run(source, tmp_path / "o", labels={"vessels": "blood vessel"})
    assert not (tmp_path / "o").exists()


def test_same_names_in_different_folders_do_not_collide(tmp_path: Path, write_label: WriteLabel, square: Shape) -> None:
    wide = polygon([[2, 2], [30, 2], [30, 9]])
    write_label(tmp_path / "s" / "clip1", "a", [square])
    write_label(tmp_path / "s" / "clip2", "a", [wide], size=(50, 20))
    run(tmp_path / "s", tmp_path / "o")
    records = {record.image: record for record in read_manifest(tmp_path / "o")}
    assert set(records) == {"clip1/a.png", "clip2/a.png"}
    for name in records:
        assert (tmp_path / "o" / "images" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()
    assert records["clip2/a.png"].regions[0][0][:2] == [2.0, 2.0]


def test_names_that_differ_in_case_or_suffix_only(tmp_path: Path, write_label: WriteLabel, square: Shape) -> None:
    write_label(tmp_path / "s", "a", [square])
    write_label(tmp_path / "s", "A", [square])
    write_label(tmp_path / "s", "a_2", [square])
    run(tmp_path / "s", tmp_path / "o")
    names = [record.image.casefold() for record in read_manifest(tmp_path / "o")]
    assert len(names) == len(set(names)) == 3


def test_groups_stay_together_and_unmatched_files_are_found(
    tmp_path: Path, write_label: WriteLabel, square: Shape
) -> None:
    for number in range(30):
        write_label(tmp_path / "s", f"p{number // 3:02d}_f{number}", [square])
    write_label(tmp_path / "s", "odd", [square])
    report = run(tmp_path / "s", tmp_path / "o", group_regex=r"(p\d+)_")
    assert found(report) == {("odd.json", None, "no_group")}
    groups = {record.image: record.group for record in read_manifest(tmp_path / "o")}
    assert groups["p03_f9.png"] == "p03"
    assert groups["odd.png"] == ""
    sides: dict[str, set[str]] = {}
    for split, names in read_splits(tmp_path / "o").items():
        for name in names:
            sides.setdefault(groups[name] or name, set()).add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert len(sides) == 11


def test_duplicate_images_are_listed_and_stay_in_one_split(source: Path, tmp_path: Path) -> None:
    for number in range(8):
        shutil.copy(source / "p0_f0.png", source / f"copy{number}.png")
        (source / f"copy{number}.json").write_text(
            (source / "p0_f0.json").read_text().replace("p0_f0", f"copy{number}")
        )
    report = run(source, tmp_path / "o", fractions=(0.4, 0.3, 0.3))
    assert report["findings_by_code"] == {"duplicate_image": 8}
    copies = {f"copy{number}.png" for number in range(8)} | {"p0_f0.png"}
    assert any(copies <= set(names) for names in read_splits(tmp_path / "o").values())


def test_chinese_names_and_nested_folders(tmp_path: Path, write_label: WriteLabel, square: Shape) -> None:
    write_label(tmp_path / "源" / "病人 一" / "深", "血管#1", [square])
    write_label(tmp_path / "源" / "病人 二", "血管#1", [square], imagePath="D:\\数据\\血管#1.png")
    run(tmp_path / "源", tmp_path / "出", group_regex="病人 [一二]")
    records = read_manifest(tmp_path / "出")
    assert {(record.image, record.group) for record in records} == {
        ("病人 一/深/血管#1.png", "病人 一"),
        ("病人 二/血管#1.png", "病人 二"),
    }


def test_labels_of_the_rotated_image_are_stored_with_it_rotated(tmp_path: Path, write_label: WriteLabel) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_label(
        tmp_path / "s", "a", [polygon([[2, 3], [20, 3], [20, 30]])], size=(30, 40), picture=False, imagePath="a.jpg"
    )
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "s" / "a.jpg", exif=exif)
    report = run(tmp_path / "s", tmp_path / "o", fractions=(1, 0, 0))
    assert report["findings_by_code"] == {"turned": 1}
    assert Image.open(tmp_path / "o" / "images" / "a.png").size == (30, 40)


def test_page_shows_findings_and_overlays_and_is_self_contained(
    source: Path, tmp_path: Path, write_label: WriteLabel, square: Shape
) -> None:
    write_label(source, "z", [square, polygon([[1, 1]], "<b>odd</b>")])
    for number in range(6):
        write_label(source, f"w{number}", [square], imageWidth=80)
    run(source, tmp_path / "o")
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 12
    assert "a polygon needs 3 distinct points, found 1" in page
    assert page.count("labelled at 80x30") == 6
    assert "&lt;b&gt;odd&lt;/b&gt;" in page
    assert "<b>odd" not in page
    assert "every file is its own group" in page
    assert "http://" not in page
    assert "https://" not in page


def test_every_polygon_is_rasterised_once(
    tmp_path: Path, write_label: WriteLabel, square: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossing = polygon([[10, 2], [16, 2], [16, 20], [10, 20]])
    other = polygon([[20, 20], [39, 20], [39, 29], [20, 29]], label="catheter")
    write_label(tmp_path / "s", "a", [square, crossing, other])
    write_label(tmp_path / "s", "b", [square])
    drawn, fill = [], cv2.fillPoly

    def count(mask: np.ndarray, polygons: list[np.ndarray], value: int) -> np.ndarray:
        drawn.append(len(polygons))
        return fill(mask, polygons, value)

    monkeypatch.setattr(cv2, "fillPoly", count)
    labels = {"vessel": "blood vessel", "catheter": "catheter"}
    report = run(tmp_path / "s", tmp_path / "o", labels=labels, fractions=(1.0, 0.0, 0.0))
    monkeypatch.undo()
    assert sum(drawn) == 4  # masks of overlays and fractions in the report included
    assert (tmp_path / "o" / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") == 2
    for record in read_manifest(tmp_path / "o"):
        union = record_masks(record, 30, 40).any(axis=0)
        assert report["fractions"][record.image] == pytest.approx(union.mean(), abs=1e-6)


@pytest.mark.parametrize("fill", FILLS)
def test_the_fill_is_that_of_the_folder(tmp_path: Path, write_label: WriteLabel, square: Shape, fill: Fill) -> None:
    thin = polygon([[20, 20.1], [39, 20.1], [39, 20.4], [20, 20.4]])
    write_label(tmp_path / "s", "a", [square, thin])
    write_label(tmp_path / "s", "b", [thin])  # kept also where no pixel is half covered
    report = run(tmp_path / "s", tmp_path / "o", fill=fill)
    records = read_manifest(tmp_path / "o")
    assert report["options"]["fill"] == fill and [record.fill for record in records] == [fill] * 2
    assert report["counts"]["shapes"] == 3
    for record in records:
        expected = rasterise(record.regions[0], 30, 40, fill)
        np.testing.assert_array_equal(record_masks(record, 30, 40)[0], expected)
        assert report["fractions"][record.image] == pytest.approx(expected.mean(), abs=1e-6)
    assert (rasterise(records[1].regions[0], 30, 40, fill).sum() > 0) == (fill == "labelme")


@pytest.mark.parametrize("size", [(40, 30), (700, 520)])
def test_overlays_show_the_masks_of_the_dataset(
    tmp_path: Path, write_label: WriteLabel, square: Shape, size: tuple[int, int]
) -> None:
    path = write_label(tmp_path, "a", [square, polygon([[20, 20], [39, 20], [39, 29], [20, 29]])], size=size)
    (tmp_path / "images").mkdir()
    options = ImageOptions(tmp_path / "images", "blood vessel", per_shape=True)
    result = prepare_image(ImageTask("a.json", LabelmeLabels(path), search=True, stem="a"), options)
    assert result.record is not None and len(result.overlay_masks) == 2
    width, height = overlay_size(size)
    assert max(width, height) == 480
    for small, mask in zip(result.overlay_masks, record_masks(result.record, size[1], size[0])):
        expected = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(rasterise([small], height, width), expected)
