"""Mask images: meaning of pixel values, pairing with images, observers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.labelme_files import found, run
from tests.prepare.label_formats import HEIGHT, WIDTH, picture, truth
from vesselseg.dataset.manifest import Record, read_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.errors import UserError
from vesselseg.imaging.label_shapes import LabelFileError
from vesselseg.prepare.readers.masks import read_mask

ALL = {"fractions": (1.0, 0.0, 0.0)}
MASK = truth("p1_a")
OTHER = np.roll(MASK, 2, axis=1)


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(MASK).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    image.frombytes(MASK.tobytes())
    return image


def rgb(*channels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


ZERO, FULL = np.zeros_like(MASK), MASK * np.uint8(255)
# encoding of a mask -> (file, label of its pixels)
WAYS: dict[str, tuple[Image.Image, str]] = {
    "1 bit": (Image.fromarray(MASK > 0), "1"),
    "0 and 1": (Image.fromarray(MASK), "1"),
    "0 and 255": (Image.fromarray(FULL), "255"),
    "16 bits": (Image.fromarray(MASK.astype(np.uint16) * np.uint16(65535)), "65535"),
    "float": (Image.fromarray(MASK.astype(np.float32)), "1"),
    "grey as RGB": (rgb(FULL, FULL, FULL), "255"),
    "red": (rgb(FULL, ZERO, ZERO), "#ff0000"),
    "red on transparent": (rgb(FULL, ZERO, ZERO, FULL), "#ff0000"),
    "black on transparent": (rgb(ZERO, ZERO, ZERO, FULL), "1"),
    "opaque RGBA": (rgb(FULL, FULL, FULL, ZERO + 255), "255"),
    "palette of classes": (palette((0, 0, 0), (128, 0, 0)), "1"),
    "palette of colours": (palette((255, 255, 255), (0, 0, 0)), "255"),
}


@pytest.mark.parametrize("name", WAYS)
def test_masks_in_every_encoding_are_read_exactly(tmp_path: Path, name: str) -> None:
    image, label = WAYS[name]
    expected = MASK == 0 if name == "palette of colours" else MASK > 0
    ending = "tif" if name == "float" else "png"
    image.save(tmp_path / f"m.{ending}")
    mask = read_mask(tmp_path / f"m.{ending}")
    ((found_label, bitmap),) = mask.classes
    assert found_label == label
    assert np.array_equal(bitmap, expected)
    assert mask.size == (WIDTH, HEIGHT)
    assert [code for code, _ in mask.notes] == (["mostly_labelled"] if name == "palette of colours" else [])


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "tif", "pgm"])
def test_preparation_preserves_masks_exactly(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "s" / "a.png")
    Image.fromarray(FULL).save(tmp_path / "s" / f"a_mask.{kind}")
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    record = read_manifest(tmp_path / "o")[0]
    assert (record.image, report["findings"]) == ("a.png", [])
    assert np.array_equal(record_masks(record, HEIGHT, WIDTH)[0], MASK)


def test_classes_are_labels(tmp_path: Path) -> None:
    values = MASK.copy()
    values[20:] *= 2
    picture(tmp_path / "s" / "images" / "a.png")
    (tmp_path / "s" / "labels").mkdir()
    Image.fromarray(values).save(tmp_path / "s" / "labels" / "a.png")
    run(tmp_path / "s", tmp_path / "o", labels={"1": "artery", "2": "vein"}, **ALL)
    record = read_manifest(tmp_path / "o")[0]
    assert record.phrases == ("artery", "vein")
    masks = record_masks(record, HEIGHT, WIDTH)
    assert np.array_equal(masks[0], values == 1) and np.array_equal(masks[1], values == 2)


def test_grey_levels_are_thresholded_and_reported(tmp_path: Path) -> None:
    smooth = Image.fromarray(FULL).resize((4 * WIDTH, 4 * HEIGHT), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "m.jpg", quality=80)
    mask = read_mask(tmp_path / "m.jpg")
    ((label, bitmap),) = mask.classes
    assert label == "255"
    assert [code for code, _ in mask.notes] == ["mask_grey"]
    assert bitmap.mean() == pytest.approx(MASK.mean(), rel=0.1)
    noise = np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "empty.jpg")
    assert read_mask(tmp_path / "empty.jpg").classes == ()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_masks(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(LabelFileError, match="mask "):
        read_mask(tmp_path / "m.png")


def test_a_photograph_is_rejected_as_a_mask(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "m.png")
    with pytest.raises(LabelFileError, match="colours"):
        read_mask(tmp_path / "m.png")


# (image, masks of the first and second observer, other files), named as in public datasets
LAYOUTS: dict[str, tuple[str, list[str], list[str]]] = {
    "DRIVE": (
        "DRIVE/test/images/01_test.tif",
        ["DRIVE/test/1st_manual/01_manual1.gif", "DRIVE/test/2nd_manual/01_manual2.gif"],
        ["DRIVE/test/mask/01_test_mask.gif"],
    ),
    "DRIVE, training": (
        "DRIVE/training/images/21_training.tif",
        ["DRIVE/training/1st_manual/21_manual1.gif"],
        ["DRIVE/training/mask/21_training_mask.gif"],
    ),
    "CHASE_DB1": ("c/Image_01L.jpg", ["c/Image_01L_1stHO.png", "c/Image_01L_2ndHO.png"], []),
    "STARE": ("stare/im0001.ppm", ["labels-ah/im0001.ah.ppm", "labels-vk/im0001.vk.ppm"], []),
    "HRF": ("images/01_dr.JPG", ["manual1/01_dr.tif"], ["mask/01_dr_mask.tif"]),
    "FIVES": ("train/Original/1_A.png", ["train/Ground truth/1_A.png"], []),
    "DCA1": ("db/1.pgm", ["db/1_gt.pgm"], []),
    "same name": ("images/a.png", ["masks/a.png"], []),
    "suffix": ("vessels/a-1.png", ["vessels/a-1_mask.png"], []),
    "first word": ("data/image_007.png", ["data/mask_007.png"], []),
    "field of view": ("images/a.png", ["seg/a_seg.png"], ["fov/a.png"]),
    "numbered": ("images/a.png", ["manual 1/a.png", "manual 2/a.png"], []),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_masks_are_paired_by_common_naming_schemes(tmp_path: Path, name: str) -> None:
    pictured, masks, others = LAYOUTS[name]
    picture(tmp_path / "s" / pictured)
    for path, values in [*zip(masks, (FULL, OTHER * np.uint8(255))), *((other, FULL | 255) for other in others)]:
        (tmp_path / "s" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / "s" / path)
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    (record,) = read_manifest(tmp_path / "o")
    assert np.array_equal(record_masks(record, HEIGHT, WIDTH)[0], MASK)
    assert list(record.observers) == ["2"][: len(masks) - 1]
    if record.observers:
        assert np.array_equal(record_masks(record.with_observer("2"), HEIGHT, WIDTH)[0], OTHER)
    assert set(report["findings_by_code"]) == ({"other_mask"} if any("mask" in other for other in others) else set())
    assert report["unlabelled"] == []
    assert report["counts"]["observers"] == len(masks) - 1


def write_pair(root: Path, stem: str, *masks: str) -> None:
    picture(root / f"{stem}.png")
    for path in masks:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FULL).save(root / path)


def test_ambiguous_and_unpaired_masks_are_listed(tmp_path: Path) -> None:
    root = tmp_path / "s"
    write_pair(root, "good", "good_gt.png")
    write_pair(root, "two", "two_gt.png", "two_seg.png")
    write_pair(root, "both", "both_gt.png")
    picture(root / "both.jpg")
    write_pair(root, "plain")
    Image.fromarray(FULL).save(root / "gone_gt.png")
    report = run(root, tmp_path / "o", **ALL)
    assert found(report) == {
        ("two.png", None, "ambiguous_mask"),
        ("both_gt.png", None, "ambiguous_image"),
        ("gone_gt.png", None, "no_image"),
    }
    assert set(report["unlabelled"]) == {"plain.png", "two.png", "both.png", "both.jpg"}
    assert [record.image for record in read_manifest(tmp_path / "o")] == ["good.png"]


def test_folders_of_masks_can_be_given(tmp_path: Path) -> None:
    write_pair(tmp_path / "s" / "raw", "a", "../by_anna/a.png", "../by_bert/a.png", "../seg/a.png")
    report = run(tmp_path / "s", tmp_path / "o", masks=("by_anna", "by_bert"), **ALL)
    assert [(f["file"], f["code"]) for f in report["findings"]] == []
    assert report["unlabelled"] == ["seg/a.png"]
    assert list(read_manifest(tmp_path / "o")[0].observers) == ["2"]
    with pytest.raises(UserError, match=r"--masks by_carl: no such folder .* by_anna, by_bert, raw, seg"):
        run(tmp_path / "s", tmp_path / "p", masks=("by_carl",))
    with pytest.raises(UserError, match="--masks: goes with"):
        run(tmp_path / "s", tmp_path / "p", masks=("by_anna",), format="coco")


def test_observers_who_drew_nothing_and_unreadable_ones(tmp_path: Path) -> None:
    root = tmp_path / "s"
    for stem in ("a", "b", "c"):
        write_pair(root, stem, f"{stem}_manual1.png", f"{stem}_manual2.png")
    Image.fromarray(ZERO).save(root / "a_manual2.png")
    Image.fromarray(ZERO).save(root / "b_manual1.png")
    Image.fromarray(FULL[:-1]).save(root / "c_manual2.png")
    report = run(root, tmp_path / "o", **ALL)
    assert found(report) == {("c.png", 0, "bad_mask")}
    assert "observer 2: 40x29, the first observer's is 40x30" in report["findings"][0]["reason"]
    a, b, c = read_manifest(tmp_path / "o")
    assert (len(a.regions[0]), a.observers) == (1, {"2": ((),)})
    assert (b.regions, len(b.observers["2"][0])) == (((),), 1)
    assert c.observers == {}


def test_observers_with_classes_have_separate_objects(tmp_path: Path) -> None:
    root = tmp_path / "s"
    write_pair(root, "a", "a_1stHO.png", "a_2ndHO.png")
    Image.fromarray(MASK * np.uint8(2)).save(root / "a_1stHO.png")
    both = MASK * np.uint8(2)
    both[0, 0] = 1
    Image.fromarray(both).save(root / "a_2ndHO.png")
    for options in ({}, {"per_shape": True}):
        labels: dict[str, Any] = {"1": "vein", "2": "artery"}
        run(root, tmp_path / "o", labels=labels, force=True, **ALL, **options)
        (record,) = read_manifest(tmp_path / "o")
        assert record.phrases == ("artery", "vein")
        seen: Record = record.with_observer("2")
        assert record_masks(record, HEIGHT, WIDTH).sum(axis=(1, 2)).tolist() == [MASK.sum(), 0]
        assert record_masks(seen, HEIGHT, WIDTH).sum(axis=(1, 2)).tolist() == [MASK.sum(), 1]


def test_the_page_counts_images_with_further_observers(tmp_path: Path) -> None:
    write_pair(tmp_path / "s", "a", "a_manual1.png", "a_manual2.png")
    run(tmp_path / "s", tmp_path / "o", **ALL)
    assert "Further observers" in (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
