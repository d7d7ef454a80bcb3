"""What a DICOM file holds counts, whatever its header says; the difference is a note, from a path as from its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from tests.imaging.dicom_files import frames, write_dicom, write_jpeg_dicom
from tests.imaging.drawn_cases import case_folder
from tests.labelme_files import run
from tests.prepare.label_formats import HEIGHT, WIDTH
from vesselseg.imaging.decode import ImageError
from vesselseg.imaging.dicom import DicomFile, DicomFrame, count_frames
from vesselseg.imaging.dicom_series import read_series_position
from vesselseg.imaging.eight_bits import scale_to_uint8

PIXELS = frames(4, high=255)
PROCESS = pytest.mark.process  # JPEG is decoded in another one


def read_both(path: Path) -> list[DicomFrame]:
    """All frames, which are the same from the path and from the bytes, in either order."""
    opened, of_bytes = DicomFile(path), DicomFile(path.read_bytes())
    assert opened.frames == of_bytes.frames == count_frames(path)
    found = [opened.frame(number) for number in range(opened.frames)]
    for number in reversed(range(opened.frames)):
        same = of_bytes.frame(number)
        assert np.array_equal(np.asarray(same.pixels), np.asarray(found[number].pixels))
        assert (same.notes, same.spacing) == (found[number].notes, found[number].spacing)
    return found


def differences(found: list[DicomFrame]) -> str:
    return "; ".join(message for code, message in found[0].notes if code == "dicom_header")


def stack(found: list[DicomFrame]) -> np.ndarray:
    return np.stack([np.asarray(frame.pixels) for frame in found])


def change(path: Path, **fields: Any) -> None:
    """Set elements of a file, or delete those that are None."""
    header = dcmread(path, force=True)
    for name, value in fields.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(path)


@pytest.mark.parametrize("said", [None, 0, 1, 2, 9, -3])
@pytest.mark.parametrize("kind", ["native", pytest.param("jpeg", marks=PROCESS), "rle"])
def test_all_stored_frames_are_used(tmp_path: Path, kind: str, said: int | None) -> None:
    path, expected = tmp_path / "a.dcm", PIXELS
    if kind == "jpeg":
        expected = write_jpeg_dicom(path, PIXELS)
    else:
        header = write_dicom(path, PIXELS)
        if kind == "rle":
            header.compress(RLELossless)
            header.save_as(path)
    change(path, NumberOfFrames=said, SeriesInstanceUID="1.2.3")
    found = read_both(path)
    assert np.array_equal(stack(found), expected)
    assert "holds 4 frames, the header says" in differences(found)
    assert read_series_position(path) is None


@PROCESS
def test_a_file_that_agrees_has_no_note(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", PIXELS)
    assert differences(read_both(tmp_path / "a.dcm")) == ""
    write_jpeg_dicom(tmp_path / "b.dcm", PIXELS)
    assert differences(read_both(tmp_path / "b.dcm")) == ""


def test_an_unreadable_number_of_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, PIXELS[:2])
    path.write_bytes(path.read_bytes().replace(b"IS\x02\x002 ", b"IS\x02\x002\xda"))
    assert np.array_equal(stack(read_both(path)), PIXELS[:2])


@pytest.mark.parametrize("left", [1, 2, 3])
def test_frames_before_the_cut_are_used(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, PIXELS)
    path.write_bytes(path.read_bytes()[: -(4 - left) * HEIGHT * WIDTH + 5])
    found = read_both(path)
    assert np.array_equal(stack(found), PIXELS[:left])
    assert f"holds {left} frames, the header says 4; the file is truncated" in differences(found)


@PROCESS
def test_jpeg_frames_before_the_cut_are_used(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    expected = write_jpeg_dicom(path, PIXELS)
    path.write_bytes(path.read_bytes()[:-300])
    found = read_both(path)
    assert np.array_equal(stack(found), expected[:3])
    assert "truncated" in differences(found)


@PROCESS
@pytest.mark.parametrize("fields", [{"Rows": HEIGHT * 2}, {"Columns": WIDTH - 4}, {"Rows": 8, "Columns": 8}])
def test_the_size_of_a_compressed_frame_counts(tmp_path: Path, fields: dict[str, int]) -> None:
    path = tmp_path / "a.dcm"
    expected = write_jpeg_dicom(path, PIXELS)
    change(path, **fields)
    found = read_both(path)
    assert np.array_equal(stack(found), expected)
    assert DicomFile(path).size == (WIDTH, HEIGHT)
    assert ("rows: 30" in differences(found)) == ("Rows" in fields)


def test_bytes_after_the_last_whole_frame_are_named(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", PIXELS[:1])
    change(tmp_path / "a.dcm", Rows=HEIGHT - 10)
    assert "400 bytes follow the last whole frame" in differences(read_both(tmp_path / "a.dcm"))


@pytest.mark.parametrize(
    "fields",
    [
        {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11},
        {"BitsAllocated": None},
        {"BitsStored": None},
        {"BitsStored": 0},
        {"BitsStored": 99},
        {"PixelRepresentation": None},
        {"SamplesPerPixel": None},
    ],
)
def test_bits_are_those_of_the_pixels(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_dicom(tmp_path / "a.dcm", PIXELS)
    change(tmp_path / "a.dcm", **fields)
    assert np.array_equal(stack(read_both(tmp_path / "a.dcm")), PIXELS)


def test_16_bits_that_the_header_calls_8(tmp_path: Path) -> None:
    pixels = frames(1, high=4095)
    write_dicom(tmp_path / "a.dcm", pixels, bits=12)
    change(tmp_path / "a.dcm", BitsAllocated=8)
    found = read_both(tmp_path / "a.dcm")
    assert np.array_equal(stack(found), [scale_to_uint8(pixels[0], pixels.min(), pixels.max())])
    assert "bits allocated: 16" in differences(found)


def test_more_bits_than_the_header_says(tmp_path: Path) -> None:
    pixels = frames(1, high=4095)
    write_dicom(tmp_path / "a.dcm", pixels, bits=8)
    found = read_both(tmp_path / "a.dcm")
    assert np.array_equal(stack(found), [scale_to_uint8(pixels[0], pixels.min(), pixels.max())])
    assert "the values have 12 bits, the header says 8" in differences(found)


@pytest.mark.parametrize(
    ("stored", "fields"),
    [
        (lambda plain: plain << 4, {"HighBit": 15}),  # left-justified
        (lambda plain: plain | 0x5000, {"OverlayBitPosition": 12}),  # with an overlay in an unused bit
        (lambda plain: plain, {"HighBit": 15}),  # which says left-justified, and is not
    ],
)
def test_bits_around_the_pixels(tmp_path: Path, stored: Any, fields: dict[str, int]) -> None:
    pixels = frames(1, high=4095)
    header = write_dicom(tmp_path / "a.dcm", stored(pixels).astype(np.uint16), bits=12)
    header.WindowCenter, header.WindowWidth = 2048, 4096
    for name, value in fields.items():
        if name == "HighBit":
            header.HighBit = value
        else:
            header.add_new(0x60000102, "US", value)
    header.save_as(tmp_path / "a.dcm")
    assert np.array_equal(stack(read_both(tmp_path / "a.dcm")), [scale_to_uint8(pixels[0], 0, 4095)])


def test_signed_values_without_their_sign_extended(tmp_path: Path) -> None:
    values = frames(1, high=4095).astype(np.int16) - np.int16(2048)
    write_dicom(tmp_path / "a.dcm", values & np.int16(0x0FFF), bits=12)
    expected = scale_to_uint8(values[0], values.min(), values.max())
    assert np.array_equal(stack(read_both(tmp_path / "a.dcm")), [expected])


def save_as_syntax(header: FileDataset, path: Path, said: Any) -> None:
    """Write a file whose meta information names another transfer syntax than its own."""
    header.save_as(path)
    own = header.file_meta.TransferSyntaxUID
    content = path.read_bytes()
    old, new = (f"{uid}\0"[: len(uid) + len(uid) % 2].encode() for uid in (own, said))
    # The element's length changes with the UID; the group's length is not relied on by readers.
    content = content.replace(
        b"\x02\x00\x10\x00UI" + len(old).to_bytes(2, "little") + old,
        b"\x02\x00\x10\x00UI" + len(new).to_bytes(2, "little") + new,
    )
    path.write_bytes(content)


@PROCESS
@pytest.mark.parametrize("said", [JPEG2000Lossless, JPEGLSLossless, RLELossless, ExplicitVRLittleEndian])
def test_jpeg_under_another_transfer_syntax(tmp_path: Path, said: Any) -> None:
    expected = write_jpeg_dicom(tmp_path / "a.dcm", PIXELS)
    save_as_syntax(dcmread(tmp_path / "a.dcm"), tmp_path / "a.dcm", said)
    found = read_both(tmp_path / "a.dcm")
    assert np.array_equal(stack(found), expected)
    assert "stored as JPEG Baseline (Process 1)" in differences(found)


@pytest.mark.parametrize("said", [JPEGBaseline8Bit, RLELossless, ImplicitVRLittleEndian])
def test_uncompressed_pixels_under_another_transfer_syntax(tmp_path: Path, said: Any) -> None:
    save_as_syntax(write_dicom(tmp_path / "a.dcm", PIXELS), tmp_path / "a.dcm", said)
    assert np.array_equal(stack(read_both(tmp_path / "a.dcm")), PIXELS)


@pytest.mark.parametrize("fields", [{"FrameTime": "33"}, {"FrameTimeVector": ["0", "33", "33", "33"]}])
def test_a_time_that_is_no_number_costs_no_frame(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_dicom(tmp_path / "a.dcm", PIXELS, **fields)
    assert DicomFile(tmp_path / "a.dcm").times() == pytest.approx((0, 0.033, 0.066, 0.099))
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes().replace(b"33", b"x3"))
    assert DicomFile(tmp_path / "a.dcm").times() is None
    assert np.array_equal(stack(read_both(tmp_path / "a.dcm")), PIXELS)


def test_deflated_clip(tmp_path: Path) -> None:
    header = write_dicom(tmp_path / "a.dcm", PIXELS)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(tmp_path / "a.dcm")
    assert np.array_equal(stack(read_both(tmp_path / "a.dcm")), PIXELS)


@PROCESS
def test_a_wrong_table_of_offsets(tmp_path: Path) -> None:
    expected = write_jpeg_dicom(tmp_path / "a.dcm", PIXELS)
    header = dcmread(tmp_path / "a.dcm")
    right = header.PixelData
    streams = [right[8:]] if right[4:8] == b"\0\0\0\0" else [right[8 + 16 :]]
    header.PixelData = right[:4] + (16).to_bytes(4, "little") + bytes(16) + streams[0]
    header["PixelData"].is_undefined_length = True
    header.save_as(tmp_path / "a.dcm")
    found = read_both(tmp_path / "a.dcm")
    assert np.array_equal(stack(found), expected)
    assert "the table of frame offsets is wrong" in differences(found)


def test_a_clip_without_file_meta_information(tmp_path: Path) -> None:
    header = write_dicom(tmp_path / "a.dcm", PIXELS)
    FileDataset(None, dict(header.items())).save_as(tmp_path / "a.dcm", implicit_vr=True, little_endian=True)
    assert np.array_equal(stack(read_both(tmp_path / "a.dcm")), PIXELS)


@PROCESS
def test_fragments_of_no_known_format_are_refused(tmp_path: Path) -> None:
    write_jpeg_dicom(tmp_path / "a.dcm", PIXELS[:1])
    header = dcmread(tmp_path / "a.dcm")
    header.PixelData = encapsulate([b"no frame " * 20])
    header["PixelData"].is_undefined_length = True
    header.save_as(tmp_path / "a.dcm")
    with pytest.raises(ImageError):
        DicomFile(tmp_path / "a.dcm").frame(0)


@PROCESS
@pytest.mark.parametrize("name", ["no_number", "enc_none_has4", "enc_says2_has4"])
def test_the_case_of_frames_unlike_the_header(name: str) -> None:
    found = read_both(case_folder("dicom_frames_unlike_header") / "source" / f"{name}.dcm")
    assert len(found) == 4 and "holds 4 frames, the header says" in differences(found)


def test_the_case_is_prepared(tmp_path: Path) -> None:
    report = run(case_folder("dicom_frames_unlike_header") / "source", tmp_path / "o", fractions=(1.0, 0.0, 0.0))
    assert report["counts"]["images"] == 1
    assert "1 of 4 frames have labels" in str(report["findings"])
    assert report["findings_by_code"]["dicom_header"] == 1
