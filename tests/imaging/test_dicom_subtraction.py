"""Masks are subtracted where a DICOM header recommends it, and what cannot be subtracted is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.sequence import Sequence

from tests.imaging.dicom_files import write_dicom
from tests.imaging.drawn_cases import case_folder
from tests.labelme_files import run
from tests.prepare.label_formats import HEIGHT, WIDTH
from vesselseg.imaging.dicom import DicomFrame, read_frame
from vesselseg.imaging.eight_bits import scale_to_uint8

ALL = {"fractions": (1.0, 0.0, 0.0)}
VESSEL = np.zeros((HEIGHT, WIDTH), bool)
VESSEL[10:14] = True


def run_of_frames(count: int = 4) -> np.ndarray:
    """(count, height, width): bones that stay, and from frame 2 on a vessel that halves the intensity, ever deeper."""
    bones = 3000 - 60 * np.abs(np.arange(WIDTH) - WIDTH // 2)
    clip = np.repeat(np.broadcast_to(bones, (HEIGHT, WIDTH))[None], count, 0).astype(np.float64)
    for number in range(1, count):
        clip[number][VESSEL] *= 0.5**number
    return np.round(clip).astype(np.uint16)


def operation(**fields: Any) -> Dataset:
    item = Dataset()
    for name, value in {"MaskOperation": "AVG_SUB", "MaskFrameNumbers": [1], **fields}.items():
        setattr(item, name, value)
    return item


def read(tmp_path: Path, frame: int, mode: str = "SUB", relation: str = "LOG", **fields: Any) -> DicomFrame:
    steps = {"RecommendedViewingMode": mode, "PixelIntensityRelationship": relation}
    sequence = {"MaskSubtractionSequence": Sequence([operation(**fields)])}
    write_dicom(tmp_path / "a.dcm", run_of_frames(), bits=12, **steps, **sequence)
    return read_frame(tmp_path / "a.dcm", frame)


def difference(frame: int, mask: int, relation: str = "LOG") -> np.ndarray:
    clip = run_of_frames().astype(np.float64)
    clip = np.log(np.maximum(clip, 1)) if relation == "LIN" else clip
    values = clip[frame] - clip[mask]
    return scale_to_uint8(values, values.min(), values.max())


@pytest.mark.parametrize("relation", ["LOG", "LIN", "DISP"])
@pytest.mark.parametrize(
    ("fields", "frame", "mask"),
    [
        ({}, 2, 0),
        ({"ApplicableFrameRange": [2, 3]}, 1, 0),
        ({"MaskFrameNumbers": [1, 1]}, 3, 0),
        ({"MaskOperation": "TID", "TIDOffset": 2}, 3, 1),
        ({"MaskOperation": "REV_TID", "TIDOffset": 1, "ApplicableFrameRange": [3, 4]}, 2, 1),
    ],
)
def test_the_mask_is_subtracted(tmp_path: Path, relation: str, fields: dict[str, Any], frame: int, mask: int) -> None:
    drawn = read(tmp_path, frame, relation=relation, **fields)
    assert np.array_equal(np.asarray(drawn.pixels), difference(frame, mask, relation))
    assert "is subtracted from" in dict(drawn.notes)["mask_subtraction"]


def test_linear_intensities_lose_the_bones(tmp_path: Path) -> None:
    values = np.asarray(read(tmp_path, 1, relation="LIN").pixels)
    assert values[VESSEL].max() <= 1 and values[~VESSEL].min() >= 254


def test_the_mask_is_shifted(tmp_path: Path) -> None:
    drawn = np.asarray(read(tmp_path, 1, MaskSubPixelShift=[4.0, 0.0]).pixels)  # bones do not change along rows
    assert np.array_equal(drawn, difference(1, 0))
    shifted = np.asarray(read(tmp_path, 2, MaskFrameNumbers=[2], MaskSubPixelShift=[4.0, 0.0]).pixels)
    assert shifted[14:18].min() > shifted[:10].max()  # where the mask's vessel was moved to, below


def test_several_frames_are_averaged(tmp_path: Path) -> None:
    clip = run_of_frames().astype(np.float64)
    values = clip[2:4].mean(axis=0) - clip[:2].mean(axis=0)
    drawn = read(tmp_path, 2, MaskFrameNumbers=[1, 2], ContrastFrameAveraging=2)
    assert np.array_equal(np.asarray(drawn.pixels), scale_to_uint8(values, values.min(), values.max()))


@pytest.mark.parametrize(
    ("fields", "frame", "words"),
    [
        ({"mode": ""}, 2, "without recommending it"),
        ({"MaskFrameNumbers": [9]}, 2, "names no usable mask"),
        ({"MaskOperation": "NONE"}, 2, "names no usable mask"),
        ({"MaskFrameNumbers": []}, 2, "names no usable mask"),
        ({}, 0, "subtracted from 3 of 4 frames"),
        ({"mode": "NAT"}, 2, None),
    ],
)
def test_what_is_not_subtracted_is_named(tmp_path: Path, fields: dict[str, Any], frame: int, words: str | None) -> None:
    drawn = read(tmp_path, frame, **fields)
    plain = run_of_frames()[frame]
    assert np.array_equal(np.asarray(drawn.pixels), scale_to_uint8(plain, plain.min(), plain.max()))
    assert (words is None) == ("mask_subtraction" not in dict(drawn.notes))
    assert words is None or words in dict(drawn.notes)["mask_subtraction"]


def test_the_case_is_subtracted_and_listed(tmp_path: Path) -> None:
    report = run(case_folder("dicom_dsa_mask_subtraction") / "source", tmp_path / "o", **ALL)
    assert report["findings_by_code"]["mask_subtraction"] == 1
    drawn = np.asarray(Image.open(next((tmp_path / "o" / "images").rglob("*.png"))))
    mask = np.asarray(Image.open(case_folder("dicom_dsa_mask_subtraction") / "source" / "a_002_mask.png")) > 0
    assert drawn[mask].mean() + 60 < drawn[~mask].mean()
