"""What the values of masks mean: decided for the whole source by what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.labelme_files import run
from tests.prepare.label_formats import HEIGHT, WIDTH, picture
from tests.shared_cases import case
from vesselseg.dataset.manifest import read_manifest
from vesselseg.dataset.record_masks import ignored_pixels, record_masks
from vesselseg.errors import UserError
from vesselseg.imaging.mask_option import MaskValues
from vesselseg.prepare.readers.masks import read_mask

ALL: dict[str, Any] = {"fractions": (1.0, 0.0, 0.0)}
VESSEL = np.zeros((HEIGHT, WIDTH), np.uint8)
VESSEL[5:9, 3:35] = 1
VESSEL[9:26, 18:22] = 1
SECOND = np.zeros_like(VESSEL)
SECOND[12:15, 4:14] = 1
RING = np.zeros_like(VESSEL)
RING[3:11, 1:37] = 1
RING &= 1 - VESSEL


def halved(mask: np.ndarray, full: int = 255) -> np.ndarray:
    """A mask halved with area averaging; its size is as before."""
    doubled = np.kron(np.roll(mask, 1, axis=(0, 1)), np.ones((2, 2), np.uint8))
    shifted = np.roll(doubled, 1, axis=(0, 1)).astype(np.float64) * full
    return np.floor(shifted.reshape(HEIGHT, 2, WIDTH, 2).mean(axis=(1, 3)) + 0.5)


def numbered(count: int) -> np.ndarray:
    """Squares numbered from 1, as an instance segmentation stores them."""
    values = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number in range(count):
        row, column = divmod(number, 10)
        values[row * 4 : row * 4 + 3, column * 4 : column * 4 + 3] = number + 1
    return values


STRAY = VESSEL * 255
STRAY[0, :4] = (1, 2, 4, 1)
CROSSED = VESSEL * np.uint8(170)
CROSSED[SECOND > 0] = 85
HALF = halved(VESSEL)
# name -> (values, code of the finding, or None, what is vessel)
MEANT: dict[str, tuple[np.ndarray, str | None, np.ndarray]] = {
    "0 and 1": (VESSEL, None, VESSEL),
    "0 and 200": (VESSEL * np.uint8(200), None, VESSEL),
    "class numbers": (VESSEL + 2 * SECOND, None, VESSEL | SECOND),
    "class numbers of 16 bits": ((VESSEL + 2 * SECOND).astype(np.uint16), None, VESSEL | SECOND),
    "255 is an ignore value": (VESSEL + RING * np.uint8(255), "mask_ignore", VESSEL),
    "65535 is one of 16 bits": (VESSEL + RING * np.uint16(65535), "mask_ignore", VESSEL),
    "255 beside two classes": (VESSEL + 2 * SECOND + RING * np.uint8(255), "mask_ignore", VESSEL | SECOND),
    "four stray pixels": (STRAY, "mask_stray", VESSEL),
    "halved": (HALF.astype(np.uint8), "mask_grey", HALF > 127.5),
    "halved, up to 200": (halved(VESSEL, 200).astype(np.uint8), "mask_grey", halved(VESSEL, 200) > 100),
    "halved, 16 bits": (halved(VESSEL, 65535).astype(np.uint16), "mask_grey", halved(VESSEL, 65535) > 32767),
    "evenly spread classes": (CROSSED, None, VESSEL | SECOND),
    "object numbers of 16 bits": (numbered(70), "mask_objects", numbered(70) > 0),
    "probabilities": (HALF.astype(np.float32) / 255, "mask_probability", HALF > 127.5),
    "logits": ((HALF.astype(np.float32) - 127.5) / 30, "mask_logits", HALF > 127.5),
    "0 to 255 as floats": (HALF.astype(np.float32) * 0.999, "mask_grey", HALF > 127.5),
}


def save(values: np.ndarray, folder: Path, stem: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.{'tif' if values.dtype == np.float32 else 'png'}"
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("name", MEANT)
def test_the_meaning_of_values(tmp_path: Path, name: str) -> None:
    values, code, vessel = MEANT[name]
    mask = read_mask(save(values, tmp_path, "m"))
    assert np.array_equal(mask.union, vessel > 0)
    assert [note.code for note in mask.notes if note.code != "mostly_labelled"] == ([code] if code else [])
    ignored = RING > 0 if "ignore" in (code or "") else np.zeros_like(mask.union)
    assert np.array_equal(mask.ignored, ignored)


def source(root: Path, *masks: np.ndarray) -> Path:
    for number, values in enumerate(masks):
        picture(root / "images" / f"{number}.png")
        save(values, root / "masks", str(number))
    return root


def prepared(tmp_path: Path, *masks: np.ndarray, **options: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    report = run(source(tmp_path / "s", *masks), tmp_path / "o", **ALL, **options)
    records = read_manifest(tmp_path / "o")
    return report, [record_masks(record, HEIGHT, WIDTH).max(axis=0) for record in records]


def test_all_masks_of_a_source_decide_together(tmp_path: Path) -> None:
    """The second mask has the ignore value alone, which only the first one shows."""
    report, masks = prepared(tmp_path, VESSEL + RING * np.uint8(255), RING * np.uint8(255))
    assert np.array_equal(masks[0], VESSEL) and not masks[1].any()
    assert report["findings_by_code"] == {"mask_ignore": 2, "only_ignored": 1}
    records = read_manifest(tmp_path / "o")
    for record in records:
        ignored = ignored_pixels(record, HEIGHT, WIDTH)
        assert ignored is not None and np.array_equal(ignored, RING)
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "not used: every value is a class" in page and "used: every value is a class, 255 ignored" in page


def test_masks_of_two_makers_are_both_read(tmp_path: Path) -> None:
    """0/1 beside 0/255, never in one mask: 255 is no ignore value."""
    report, masks = prepared(tmp_path, VESSEL, SECOND * np.uint8(255))
    assert np.array_equal(masks[0], VESSEL) and np.array_equal(masks[1], SECOND)
    assert report["findings_by_code"] == {"mask_mixed": 2}


def test_jpegs_do_not_decide_for_other_masks(tmp_path: Path) -> None:
    root = source(tmp_path / "s", VESSEL, VESSEL)
    (root / "masks" / "1.png").unlink()
    Image.fromarray(VESSEL * np.uint8(255)).save(root / "masks" / "1.jpg", quality=95)
    report = run(root, tmp_path / "o", **ALL)
    assert report["findings_by_code"] == {"mask_grey": 1}
    for record in read_manifest(tmp_path / "o"):
        assert np.array_equal(record_masks(record, HEIGHT, WIDTH)[0], VESSEL)


def test_a_mask_of_two_small_values_beside_grey_levels_is_kept(tmp_path: Path) -> None:
    report, masks = prepared(tmp_path, HALF.astype(np.uint8), SECOND)
    assert np.array_equal(masks[1], SECOND) and np.array_equal(masks[0], HALF > 127.5)
    assert report["findings_by_code"] == {"mask_grey": 1, "mask_mixed": 1}


def test_objects_beyond_memory_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vesselseg.imaging.mask_values._MOST_BYTES", 40 * WIDTH * HEIGHT)
    mask = read_mask(save(numbered(70), tmp_path, "m"))
    assert len(mask.classes) == 1 and np.array_equal(mask.union, numbered(70) > 0)
    assert any("too many objects" in note.message for note in mask.notes)


@pytest.mark.parametrize(
    ("text", "vessel"),
    [
        ("binary", RING),
        ("classes", VESSEL | RING),
        ("objects", VESSEL | RING),
        ("ignore=1", RING),
        ("classes,ignore=255", VESSEL),
    ],
)
def test_the_user_decides(tmp_path: Path, text: str, vessel: np.ndarray) -> None:
    report, masks = prepared(tmp_path, VESSEL + RING * np.uint8(255), mask_values=MaskValues.parse(text))
    assert np.array_equal(masks[0], vessel)
    assert report["options"]["mask_values"] == text
    assert set(report["findings_by_code"]) <= {"mask_ignore"}


def test_fractions_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--mask-values classes: the masks hold fractions"):
        prepared(tmp_path, HALF.astype(np.float32) / 255, mask_values=MaskValues.parse("classes"))


@pytest.mark.parametrize("text", ["", "vessel", "ignore=", "ignore=x", "binary,classes"])
def test_misspelt_decisions_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        MaskValues.parse(text)


def test_objects_are_objects(tmp_path: Path) -> None:
    prepared(tmp_path, numbered(70), per_shape=True)
    (record,) = read_manifest(tmp_path / "o")
    assert len(record.regions) == 70


@pytest.mark.parametrize(("fill", "code"), [(0, "no_vessel"), (1, "all_vessel")])
def test_a_source_with_nothing_or_everything_is_loud(tmp_path: Path, fill: int, code: str) -> None:
    report, _ = prepared(tmp_path, *[np.full_like(VESSEL, fill)] * 3)
    assert report["findings_by_code"][code] == 1


def test_red_with_smoothed_edges_is_one_class(tmp_path: Path) -> None:
    red = np.stack([HALF, 0 * HALF, 0 * HALF], axis=-1).astype(np.uint8)
    mask = read_mask(save(red, tmp_path, "m"))
    assert [label for label, _ in mask.classes] == ["#ff0000"]
    assert np.array_equal(mask.union, HALF > 127.5)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


CASES = {
    "mask_255_is_ignore": ("mask_ignore", lambda values: values == 1),
    "mask_float_probabilities": ("mask_probability", lambda values: values > 0.5),
    "mask_halftones_few_levels": ("mask_grey", lambda values: values > 127),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(tmp_path: Path, name: str) -> None:
    code, meant = CASES[name]
    report = run(case(name) / "source", tmp_path / "o", **ALL)
    records = read_manifest(tmp_path / "o")
    assert report["findings_by_code"] == {code: len(records)}
    for record in records:
        (path,) = (case(name) / "source" / "masks").glob(f"{Path(record.image).stem}.*")
        with Image.open(path) as image:
            values = np.asarray(image)
        assert dice(record_masks(record, *values.shape)[0] > 0, meant(values)) == 1
