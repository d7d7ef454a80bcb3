"""Grey DICOM frames are displayed by the rules of XA, and an unusable element of the header costs no pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    SecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
)

from tests.imaging.dicom_files import frames, write_dicom
from tests.imaging.drawn_cases import case_folder
from tests.labelme_files import run
from vesselseg.imaging.dicom import DicomFrame, read_frame
from vesselseg.imaging.eight_bits import scale_to_uint8

BIPLANE = "1.2.840.10008.5.1.4.1.1.12.3"
ALL = {"fractions": (1.0, 0.0, 0.0)}
PIXELS = frames(high=3500) + np.uint16(100)
OWN_RANGE = scale_to_uint8(PIXELS[0], PIXELS.min(), PIXELS.max())
WINDOWED = scale_to_uint8(PIXELS[0], 0, 4095)  # window 2048, 4096
UNUSABLE = {"WindowCenter": 2048, "WindowWidth": 0}


def table(entries: int = 4096, data: bytes | None = None, **fields: Any) -> Dataset:
    """A falling table of 16 bits."""
    item = Dataset()
    item.LUTDescriptor = [entries, 0, 16]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = (65535 - 16 * np.arange(entries)).astype("<u2").tobytes() if data is None else data
    item["LUTData"].VR = "OW"
    item.ModalityLUTType = "US"
    for name, value in fields.items():
        setattr(item, name, value)
    return item


def read(tmp_path: Path, pixels: np.ndarray = PIXELS, bits: int = 12, **fields: Any) -> DicomFrame:
    write_dicom(tmp_path / "a.dcm", pixels, bits=bits, **fields)
    return read_frame(tmp_path / "a.dcm")


def codes(frame: DicomFrame) -> list[str]:
    return [code for code, _ in frame.notes]


@pytest.mark.parametrize(
    "fields",
    [
        {"ModalityLUTSequence": Sequence([table()]), "PixelIntensityRelationship": "LOG"},
        {"RescaleSlope": -3, "RescaleIntercept": 9000},
        {"ModalityLUTSequence": Sequence([table()]), "SOPClassUID": BIPLANE},
    ],
)
@pytest.mark.parametrize("class_uid", [XRayAngiographicImageStorage, XRayRadiofluoroscopicImageStorage])
def test_the_modality_lut_of_x_ray_projections_is_not_for_display(
    tmp_path: Path, fields: dict[str, Any], class_uid: str
) -> None:
    fields = {"SOPClassUID": class_uid, "WindowCenter": 2048, "WindowWidth": 4096, **fields}
    frame = read(tmp_path, **fields)
    assert np.array_equal(np.asarray(frame.pixels), WINDOWED)
    assert "not for display" in frame.notes[0].message
    frame = read(tmp_path, **{**fields, "SOPClassUID": SecondaryCaptureImageStorage})
    assert not np.array_equal(np.asarray(frame.pixels), WINDOWED)
    assert "not for display" not in str(frame.notes)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (UNUSABLE, "window of width 0"),
        ({"WindowCenter": 2048, "WindowWidth": -5}, "window of width -5"),
        ({"WindowCenter": "2048"}, "window whose centre or width is no number"),
        ({"WindowCenter": 20000, "WindowWidth": 10}, "window that shows all pixels as one value"),
        ({"VOILUTSequence": Sequence([])}, "VOI LUT without an item"),
        ({"VOILUTSequence": Sequence([table(LUTDescriptor=[4096, 0])])}, "VOI LUT with an unusable table"),
        ({"VOILUTSequence": Sequence([table(data=b"\1\0" * 9)])}, "VOI LUT with an unusable table"),
        (
            {"RescaleSlope": 0, "RescaleIntercept": 7, "SOPClassUID": SecondaryCaptureImageStorage},
            "rescale slope of 0",
        ),
        ({"PhotometricInterpretation": ""}, "no photometric interpretation, read as MONOCHROME2"),
        ({"PhotometricInterpretation": "GREY"}, "photometric interpretation that does not fit the pixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric interpretation that does not fit the pixels"),
    ],
)
def test_an_unusable_element_is_skipped_and_named(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    frame = read(tmp_path, **fields)
    assert np.array_equal(np.asarray(frame.pixels), OWN_RANGE)
    (note,) = (note for note in frame.notes if note.code == "display_skipped")
    assert named in note.message


@pytest.mark.parametrize("spelling", [b"20,8", b"20;8", b"  - "])
def test_a_window_that_is_no_number_is_skipped_and_named(tmp_path: Path, spelling: bytes) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, PIXELS, bits=12, WindowCenter=20.8, WindowWidth=40.9)
    path.write_bytes(path.read_bytes().replace(b"20.8", spelling))
    frame = read_frame(path)
    assert np.array_equal(np.asarray(frame.pixels), OWN_RANGE)
    assert codes(frame) == ["windowed", "display_skipped"]


@pytest.mark.parametrize(
    "fields",
    [
        {"WindowCenter": ["", 2048], "WindowWidth": ["", 4096]},
        {"WindowCenter": [5, 2048], "WindowWidth": [-1, 4096]},
        {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTSequence": Sequence([])},
        {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LIN"},
    ],
)
def test_the_next_usable_element_is_taken(tmp_path: Path, fields: dict[str, Any]) -> None:
    frame = read(tmp_path, **fields)
    assert np.array_equal(np.asarray(frame.pixels), WINDOWED)
    assert codes(frame) == ["windowed", "display_skipped"]


@pytest.mark.parametrize(
    ("padding", "limit", "dtype", "vr"),
    [
        (0, None, "u2", b"US"),
        (65535, None, "u2", b"US"),
        (0, 40, "u2", b"US"),
        (-2000, None, "i2", b"SS"),
        (-2000, None, "i2", b"US"),  # 63536 by its own VR
    ],
)
def test_padding_leaves_the_range(tmp_path: Path, padding: int, limit: int | None, dtype: str, vr: bytes) -> None:
    pixels = PIXELS.copy().view(dtype)
    pixels[0, :5] = padding if limit is None else 33
    fields = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    path = tmp_path / "a.dcm"
    write_dicom(path, pixels, bits=16, PixelPaddingValue=padding, **fields)
    path.write_bytes(path.read_bytes().replace(b"\x28\x00\x20\x01SS", b"\x28\x00\x20\x01" + vr))
    frame = read_frame(path)
    low, high = PIXELS[0, 5:].min(), PIXELS[0, 5:].max()
    assert np.array_equal(np.asarray(frame.pixels)[5:], scale_to_uint8(PIXELS[0, 5:], low, high))
    assert not np.asarray(frame.pixels)[:5].any()
    assert "padding excluded" in frame.notes[0].message


def test_a_table_of_the_case_is_not_applied(tmp_path: Path) -> None:
    frame = read_frame(case_folder("xa_modality_lut_log") / "source" / "a.dcm")
    values = np.asarray(frame.pixels)
    assert abs(float(np.median(values)) - 170) < 12
    assert abs(float(np.percentile(values, 1)) - 80) < 25


@pytest.mark.parametrize(
    "name",
    [
        "d10_negative_width",
        "d11_no_photometric",
        "d30_empty_voilut",
        "d34_blank_first",
        "d3_window_width_0",
        "d7_comma",
    ],
)
def test_the_cases_of_unusable_windows_are_prepared(tmp_path: Path, name: str) -> None:
    report = run(case_folder("dicom_unusable_window") / name, tmp_path / "o", **ALL)
    assert report["counts"]["images"] == 1
    assert report["findings_by_code"]["display_skipped"] == 1
