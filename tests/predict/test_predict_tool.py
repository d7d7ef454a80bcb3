"""vesselseg predict as the user runs it: files, resuming, broken input, exit status."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.labelme_files import run as prepare_labels
from tests.predict.predict_calls import ALL, NAMES, call, entries, pixels, summary
from tests.tiny import picture
from vesselseg.dataset.manifest import read_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.evaluation.prediction_folder import PredictionFolder
from vesselseg.inference.predictor import Predictor


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))


@pytest.mark.slow
def test_everything_is_written(
    model: Path, predictor: Predictor, middle: float, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, phrases = tmp_path / "out", ["blood vessel", "left artery"]
    arguments = [argument for phrase in phrases for argument in ("--phrase", phrase)]
    assert call(model, images, out, *arguments, "--threshold", middle, "--save", ALL, "--batch", 4) == 0
    assert "6 predicted, 0 failed" in capsys.readouterr().out
    found = entries(out)
    assert sorted(found) == sorted(NAMES)
    assert len({entry["name"].casefold() for entry in found.values()}) == len(NAMES)
    assert found["patient ä/x.tif"]["name"] == "patient ä/x" and found["二/x.tif"]["name"] == "二/x"
    coco = COCO(out / "coco.json")
    for name, entry in found.items():
        with Image.open(images / name) as image:
            alone = predictor.predict([image.copy()], [phrases], middle)[0]
        assert entry["bytes"] == (images / name).stat().st_size and len(entry["sha256"]) == 64
        assert entry["threshold"] == middle and entry["seconds"] > 0
        for number, tag in enumerate(("_blood_vessel", "_left_artery")):
            stored = pixels(out / f"probabilities/{entry['name']}{tag}.png")
            assert stored.dtype == np.uint16
            np.testing.assert_allclose(stored / 65535, alone.probabilities[number], atol=1e-4)
            mask = pixels(out / f"masks/{entry['name']}{tag}.png")
            assert set(np.unique(mask)) <= {0, 255} and mask.shape == alone.masks.shape[1:]
            assert ((mask > 0) != alone.masks[number]).mean() < 1e-3
            assert entry["objects"][number]["share"] == pytest.approx((mask > 0).mean(), abs=1e-6)
            _check_coco(coco, name, phrases[number], mask > 0)
        drawn = pixels(out / f"overlays/{entry['name']}.png")
        assert drawn.shape == (*alone.masks.shape[1:], 3)
        assert 0 < entry["share"] <= 1
    assert 0.05 < np.mean([entry["share"] for entry in found.values()]) < 0.98


def _check_coco(coco: COCO, file: str, phrase: str, mask: np.ndarray) -> None:
    [image] = [item for item in coco.imgs.values() if item["file_name"] == file]
    [category] = coco.getCatIds(catNms=[phrase])
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"], catIds=category))
    assert len(annotations) == int(mask.any())
    for annotation in annotations:
        np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum() and 0 < annotation["score"] <= 1


def test_labels_prepare_again(model: Path, middle: float, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(20, 120, 80).save(images / "turned.jpg", exif=turned)
    Image.fromarray(np.asarray(picture(21).convert("L")).astype(np.uint16) * 200).save(images / "deep.png")
    picture(22, 100, 60).save(images / "named.mp4", format="PNG")
    assert call(model, images, out, "--threshold", middle, "--save", "masks,labelme") == 0
    # LabelMe 6 opens no 16-bit images and no image named like a video, so the segmented image is next to the labels.
    assert sorted(path.name for path in (out / "labelme").rglob("*.png")) == ["deep.png", "named.png"]
    report = prepare_labels(out / "labelme", tmp_path / "data")
    assert {finding["code"] for finding in report["findings"]} <= {"turned"}
    records = {record.image.rsplit(".", 1)[0]: record for record in read_manifest(tmp_path / "data")}
    found = entries(out)
    assert len(records) == len(found) == len(NAMES) + 3
    assert (found["turned.jpg"]["width"], found["turned.jpg"]["height"]) == (80, 120)
    for entry in found.values():
        mask = pixels(out / f"masks/{entry['name']}.png") > 0
        again = record_masks(records[entry["name"]], *mask.shape).astype(bool).max(axis=0)
        assert iou(again, mask) >= 0.98, entry["file"]


def test_probabilities_can_be_evaluated(model: Path, images: Path, tmp_path: Path) -> None:
    """With one phrase files are named like the images, as vesselseg eval requires."""
    (images / "x.jpg").unlink()
    names = [name for name in NAMES if name != "x.jpg"]
    assert call(model, images, tmp_path / "out", "--save", "probs") == 0
    folder = PredictionFolder(tmp_path / "out/probabilities", names)
    sizes = {name: pixels(images / name).shape[:2] for name in names}
    folder.check(sizes)
    assert folder.holds_probabilities
    assert not (tmp_path / "out/masks").exists() and not (tmp_path / "out/coco.json").exists()
    assert summary(tmp_path / "out")["threshold"] == 0.4
    assert summary(tmp_path / "out")["threshold_origin"] == "stored with the model"


def write_odd_files(folder: Path) -> None:
    """Images in every unusual form that is accepted, and files that are no images."""
    folder.mkdir()
    grey = picture(1, 100, 60).convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 200).save(folder / "deep.tif")
    for mode, name in (("RGBA", "alpha.png"), ("P", "palette.gif"), ("CMYK", "print.jpg"), ("1", "bits.bmp")):
        grey.convert("RGB").convert(mode).save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    grey.save(folder / "turned.JPG", exif=turned)
    Image.new("L", (1, 1)).save(folder / "dot.png")
    (folder / "empty.png").touch()
    grey.save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:1000])
    (folder / "text.png").write_text("no picture")
    (folder / "run.MP4").write_bytes(b"0000")
    (folder / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    shutil.copy(folder / "scan.dcm", folder / "hidden.png")
    header = bytearray((folder / "whole.png").read_bytes())
    header[16:24] = (20_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(header)


def test_broken_files_are_listed_and_the_others_predicted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_odd_files(tmp_path / "odd")
    assert call(model, tmp_path / "odd", tmp_path / "out", "--batch", 3) == 1
    reasons = {
        "cut.png": "damaged or truncated",
        "dot.png": "1x1 pixels; expected at least 8 per side",
        "empty.png": "the file is empty (0 bytes)",
        "hidden.png": "not a DICOM file: expected an image",
        "huge.png": "too large: more than 178 million pixels",
        "run.MP4": "damaged, or not a supported video",
        "scan.dcm": "not a DICOM file: expected an image",
        "text.png": "not an image that Pillow can read",
    }
    found = entries(tmp_path / "out")
    shown = capsys.readouterr()
    assert {name for name, entry in found.items() if "error" in entry} == set(reasons)
    for name, reason in reasons.items():
        assert reason in found[name]["error"] and f"{name}: {found[name]['error']}" in shown.err
    done = {name: entry for name, entry in found.items() if "error" not in entry}
    assert set(done) == {"deep.tif", "alpha.png", "palette.gif", "print.jpg", "bits.bmp", "turned.JPG", "whole.png"}
    assert summary(tmp_path / "out")["counts"] == {"done": 7, "failed": 8}
    for name, entry in done.items():
        size = (100, 60) if name == "turned.JPG" else (60, 100)
        assert pixels(tmp_path / f"out/masks/{entry['name']}.png").shape == size
    assert "8 bits per pixel" in done["deep.tif"]["notes"][0]
    assert "EXIF orientation is applied" in done["turned.JPG"]["notes"][0]
    assert done["alpha.png"]["notes"] == ["transparent pixels are rendered as black"]


def test_a_list_of_paths(model: Path, images: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    lines = ["images/x.jpg", "", str(images / "二/x.tif"), "images/../images/x.jpg", "images/gone.png", "images"]
    listing.write_text("\n".join(lines), encoding="utf-8")
    assert call(model, listing, tmp_path / "out") == 1
    found = entries(tmp_path / "out")
    assert sorted(found) == ["images", "images/gone.png", "images/x.jpg", "images/二/x.tif"]
    assert found["images/gone.png"]["error"] == "no such file"
    assert "directory" in found["images"]["error"]
    assert (tmp_path / "out/masks/images/二/x.png").exists()


@pytest.mark.parametrize(
    ("source", "arguments", "expected"),
    [
        ("gone", [], "does not exist"),
        ("notes.pdf", [], "expected an image"),
        ("empty.txt", [], "contains no path"),
        ("foreign", [], "found 1 .doc; expected an image"),
        ("images", ["--keyframes", "0"], "expected a whole number from 1, or frames"),
        ("images", ["--keyframes", "4,x"], "expected a whole number from 1, or frames"),
        ("images", ["--keyframes", "4,400"], "add --cine memory, or omit --keyframes"),
        ("images", ["--cine", "memory", "--tta", "flips"], "omit --tta"),
        ("images", ["--out", "{images}/out"], "which is input"),
        ("images/x.jpg", ["--out", "{images}"], "so it is no output of this tool|holds the input"),
        ("images", ["--out", "{foreign}"], "so it is no output of this tool"),
        ("images", ["--phrase", "a [SEG]"], "a control token of the model"),
        ("images", ["--phrase", "the <img> vessel"], "a control token of the model"),
        ("images", ["--phrase", " "], "the phrase is empty"),
        ("images", ["--phrase", "x" * 10_000], "at most 500"),
        ("images", ["--threshold", "1.5"], "between 0 and 1"),
        ("images", ["--save", "masks,movie"], "found movie"),
        ("images", ["--batch", "0"], "whole number"),
        ("images", ["--device", "abacus"], "cannot be used"),
    ],
)
def test_bad_input_ends_in_one_message(
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    arguments: list[str],
    expected: str,
) -> None:
    (tmp_path / "foreign").mkdir()
    for name in ("notes.pdf", "empty.txt", "foreign/thesis.doc"):
        (tmp_path / name).touch()
    filled = [text.format(images=images, foreign=tmp_path / "foreign") for text in arguments]
    assert call(model, tmp_path / source, tmp_path / "out", *filled) == 2
    message = capsys.readouterr().err
    assert any(words in message for words in expected.split("|")) and "Traceback" not in message
    assert not (tmp_path / "out").exists() and not (images / "out").exists()
    assert sorted(path.name for path in (tmp_path / "foreign").iterdir()) == ["thesis.doc"]


def test_a_path_that_is_no_model(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(images, images, tmp_path / "out") == 2
    assert "is neither an exported model folder" in capsys.readouterr().err
    assert call(tmp_path / "mistyped", images, tmp_path / "out") == 2
    assert "mistyped does not exist" in capsys.readouterr().err


def test_a_base_is_for_checkpoints(
    tiny_base: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tiny_base, images, tmp_path / "out", "--base", "elsewhere") == 2
    message = capsys.readouterr().err
    assert "--base elsewhere" in message and f"{tiny_base} is not a checkpoint" in message and "omit --base" in message
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer(
    tiny_base: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_base, tmp_path / "model", ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*"))
    assert call(tmp_path / "model", images, tmp_path / "out") == 2
    assert "holds no tokenizer" in capsys.readouterr().err and not (tmp_path / "out").exists()
