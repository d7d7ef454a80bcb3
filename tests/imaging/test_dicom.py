"""DICOM files written with pydicom are decoded and windowed as their headers specify."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.pixels.processing import apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless, SecondaryCaptureImageStorage

from tests.imaging.dicom_files import frames, write_dicom
from tests.labelme_files import found, polygon, run
from tests.prepare.label_formats import HEIGHT, WIDTH, picture, truth
from vesselseg.dataset.manifest import read_manifest, read_splits
from vesselseg.dataset.record_masks import record_masks
from vesselseg.errors import UserError
from vesselseg.imaging import dicom
from vesselseg.imaging.decode import ImageError, is_dicom
from vesselseg.imaging.dicom import DicomFile, count_frames, read_frame, read_patient
from vesselseg.imaging.dicom_series import read_series_position

ALL = {"fractions": (1.0, 0.0, 0.0)}
MASK = truth("p1_a")


def shown(path: Path, frame: int | None = None) -> np.ndarray:
    return np.asarray(read_frame(path, frame).pixels)


def test_8_bit_values_without_a_window_are_unchanged(tmp_path: Path) -> None:
    pixels = frames() // 2
    write_dicom(tmp_path / "a.dcm", pixels)
    frame = read_frame(tmp_path / "a.dcm")
    assert np.array_equal(np.asarray(frame.pixels), pixels[0])
    assert (frame.notes, frame.spacing, frame.patient) == ((), None, "")


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_follows_the_standard(tmp_path: Path, function: str) -> None:
    pixels = frames(high=4095)
    window = {"WindowCenter": [1500, 9], "WindowWidth": [800, 9], "VOILUTFunction": function}
    header = write_dicom(tmp_path / "a.dcm", pixels, bits=12, **window)
    reference = apply_voi_lut(pixels[0], header) * 255 / 4095
    frame = read_frame(tmp_path / "a.dcm")
    assert np.abs(np.asarray(frame.pixels) - reference).max() <= 0.5 + 1e-6
    assert frame.notes == (("windowed", "window of the header: centre 1500, width 800"),)


def test_rescaled_and_signed_values_are_windowed_after_rescaling(tmp_path: Path) -> None:
    pixels = (frames(high=2000).astype(np.int16) - 1000).astype(np.int16)
    fields = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 0.5, "WindowWidth": 1001}
    fields["SOPClassUID"] = SecondaryCaptureImageStorage  # in XA, rescaled values are not for display
    write_dicom(tmp_path / "a.dcm", pixels, bits=16, **fields)
    reference = np.clip((pixels[0] * 2.0 - 100) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(shown(tmp_path / "a.dcm") - reference).max() <= 0.5 + 1e-6


def test_values_above_8_bits_without_a_window_are_scaled_from_their_own_range(tmp_path: Path) -> None:
    pixels = frames(high=900) + np.uint16(100)
    write_dicom(tmp_path / "a.dcm", pixels, bits=16)
    frame = read_frame(tmp_path / "a.dcm")
    values = np.asarray(frame.pixels)
    assert (values.min(), values.max()) == (0, 255)
    assert frame.notes[0][1] == "no window in the header: values 100 to 1000 are scaled to 0 to 255"


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 128, "WindowWidth": 256}])
def test_monochrome1_is_inverted(tmp_path: Path, window: dict[str, Any]) -> None:
    pixels = frames()
    write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **window)
    frame = read_frame(tmp_path / "a.dcm")
    assert np.array_equal(np.asarray(frame.pixels), 255 - pixels[0])
    assert "inverted (MONOCHROME1)" in frame.notes[0][1]


def test_table_of_more_entries_than_its_bits(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [1024, 100, 8], list(range(256)) * 4
    table["LUTData"].VR = "US"
    table["LUTDescriptor"].VR = "US"
    pixels = frames(high=1300)
    write_dicom(tmp_path / "a.dcm", pixels, bits=12, VOILUTSequence=Sequence([table]))
    assert np.array_equal(shown(tmp_path / "a.dcm"), np.clip(pixels[0].astype(int) - 100, 0, 1023) % 256)


def test_colour_and_palette(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_dicom(tmp_path / "a.dcm", values, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert np.array_equal(shown(tmp_path / "a.dcm"), values[0])
    ramp = {
        f"{c}PaletteColorLookupTableData": np.arange(256, dtype=np.uint16).tobytes() for c in ("Red", "Green", "Blue")
    }
    ramp = {**ramp, "RedPaletteColorLookupTableData": (np.arange(256, dtype=np.uint16) * 257).tobytes()}
    describe = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    write_dicom(tmp_path / "b.dcm", frames(), PhotometricInterpretation="PALETTE COLOR", **ramp, **describe)
    assert np.array_equal(shown(tmp_path / "b.dcm")[..., 0], frames()[0])


def test_frames_of_a_clip(tmp_path: Path) -> None:
    pixels = frames(5)
    write_dicom(tmp_path / "clip.dcm", pixels)
    assert count_frames(tmp_path / "clip.dcm") == 5
    assert np.array_equal(shown(tmp_path / "clip.dcm", 3), pixels[3])
    for frame, words in ((None, "a clip of 5 frames"), (5, "frame 6 of 5"), (-1, "frame 0 of 5")):
        with pytest.raises(ImageError, match=words) as caught:
            read_frame(tmp_path / "clip.dcm", frame)
        assert caught.value.code == "which_frame"


@pytest.mark.parametrize("syntax", [RLELossless, pytest.param(JPEGLSLossless, marks=pytest.mark.process)])
def test_compressed_files(tmp_path: Path, syntax: Any) -> None:
    pixels = frames(3)
    header = write_dicom(tmp_path / "a.dcm", pixels)
    if syntax == RLELossless:
        header.compress(RLELossless)
    else:
        gdcm = pytest.importorskip("gdcm", reason="the extra dicom is not installed")
        _compress_with_gdcm(gdcm, tmp_path / "a.dcm")
    if syntax == RLELossless:
        header.save_as(tmp_path / "a.dcm")
    assert np.array_equal(shown(tmp_path / "a.dcm", 2), pixels[2])


def _compress_with_gdcm(gdcm: Any, path: Path) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLSLossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize(
    ("syntax", "words"),
    [("201", r"High-Throughput JPEG 2000.*vesselseg\[dicom\]"), ("100", "MPEG2.*convert it to an uncompressed file")],
)
def test_a_missing_decoder_is_named(tmp_path: Path, syntax: str, words: str) -> None:
    header = write_dicom(tmp_path / "a.dcm", frames())
    header.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{syntax}"
    header.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\2\0\0\0ab\xfe\xff\xdd\xe0\0\0\0\0"
    header["PixelData"].is_undefined_length = True
    header.save_as(tmp_path / "a.dcm")
    with pytest.raises(ImageError, match=words) as caught:
        read_frame(tmp_path / "a.dcm")
    assert caught.value.code == "no_decoder"


def test_window_and_spacing_of_functional_groups(tmp_path: Path) -> None:
    def group(**fields: Any) -> Dataset:
        item = Dataset()
        for name, value in fields.items():
            setattr(item, name, value)
        return item

    shared = group(PixelMeasuresSequence=[group(PixelSpacing=[0.1, 0.2])])
    each = [group(FrameVOILUTSequence=[group(WindowCenter=c, WindowWidth=100)]) for c in (50, 150)]
    fields = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": each}
    pixels = frames(2)
    write_dicom(tmp_path / "a.dcm", pixels, **fields)
    frame = read_frame(tmp_path / "a.dcm", 1)
    assert frame.spacing == (0.1, 0.2)
    reference = np.clip((pixels[1] - 149.5) / 99 + 0.5, 0, 1) * 255
    assert np.abs(np.asarray(frame.pixels) - reference).max() <= 0.5 + 1e-6


def broken(path: Path, kind: str) -> None:
    header = write_dicom(path, frames(), PatientName="Doe^Jane")
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "header only":
        del header.PixelData
        header.save_as(path)
    elif kind == "no rows":
        del header.Rows
        header.save_as(path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"Doe^Jane " * 99)
    elif kind == "cut in the header":
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "odd bytes":
        path.write_bytes(
            path.read_bytes().replace(b"(\x00\x08\x00US", b"(\x00\x08\x00\x49\x9e").replace(b"US", b"I\x9e")
        )


@pytest.mark.parametrize(
    "kind",
    [
        "cut off",
        "header only",
        "no rows",
        "empty",
        "text",
        "cut in the header",
        "odd bytes",
    ],
)
def test_damaged_files_are_findings_that_do_not_quote_the_header(tmp_path: Path, kind: str) -> None:
    broken(tmp_path / "a.dcm", kind)
    with pytest.raises(ImageError) as caught:
        read_frame(tmp_path / "a.dcm")
    assert caught.value.code == "bad_dicom"
    assert "Doe" not in str(caught.value)


def test_files_are_identified_by_suffix_or_prefix(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.IMA", "IM0001", "1.2.840.113"):
        write_dicom(tmp_path / name, frames())
        assert is_dicom(tmp_path / name)
    (tmp_path / "README").write_text("x" * 200)
    assert not any(is_dicom(tmp_path / name) for name in ("README", "gone", "a.png"))
    write_dicom(tmp_path / "DICOMDIR", frames())
    assert not is_dicom(tmp_path / "DICOMDIR")


def test_file_without_preamble(tmp_path: Path) -> None:
    header = write_dicom(tmp_path / "a.dcm", frames())
    body = Dataset({e.tag: e for e in header})
    body.save_as(tmp_path / "a.dcm", implicit_vr=True, little_endian=True)
    assert np.array_equal(shown(tmp_path / "a.dcm"), frames()[0])


def write_clip(root: Path, labels: dict[str, str]) -> np.ndarray:
    """A clip of 6 frames and labels of some: name -> "json" or "mask"."""
    pixels = frames(6)
    write_dicom(root / "clip.dcm", pixels, PatientID="77", ImagerPixelSpacing=[0.3, 0.3])
    for name, kind in labels.items():
        if kind == "mask":
            Image.fromarray(MASK * np.uint8(255)).save(root / f"{name}_mask.png")
        else:
            shapes = [polygon([[4, 6], [14, 6], [14, 16], [4, 16]])]
            content = {"shapes": shapes, "imagePath": f"{name}.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
            (root / f"{name}.json").write_text(json.dumps(content))
    return pixels


@pytest.mark.parametrize("kind", ["json", "mask"])
@pytest.mark.parametrize(
    ("names", "expected", "options"),
    [
        (("clip_2", "clip_6"), [1, 5], {}),
        (("clip_0000", "clip_0005"), [0, 5], {}),
        (("clip frame 3",), [2], {}),
        (("clip-f3",), [3], {"first_frame": 0}),
    ],
)
def test_labelled_frames_of_a_clip_become_images(
    tmp_path: Path, kind: str, names: tuple[str, ...], expected: list[int], options: dict[str, Any]
) -> None:
    pixels = write_clip(tmp_path / "s", dict.fromkeys(names, kind))
    report = run(tmp_path / "s", tmp_path / "o", **ALL, **options)
    records = read_manifest(tmp_path / "o")
    stored = [np.asarray(Image.open(tmp_path / "o" / "images" / record.image)) for record in records]
    assert sorted(values.tobytes() for values in stored) == sorted(pixels[n].tobytes() for n in expected)
    assert {(record.spacing, record.spacing_at) for record in records} == {((0.3, 0.3), "detector")}
    assert len({record.group for record in records}) == 1 and records[0].group
    assert report["findings_by_code"] == {"clip": 1, "detector_spacing": len(names)}
    assert f"{len(names)} of 6 frames have labels" in report["findings"][0]["reason"]
    assert report["unlabelled"] == []
    drawn = MASK.sum() if kind == "mask" else 121
    assert record_masks(records[0], HEIGHT, WIDTH).sum() == drawn


def test_labels_without_a_valid_frame_number_are_left_out(tmp_path: Path) -> None:
    write_clip(tmp_path / "s", {"clip": "json", "clip_7": "json", "clip_1": "json"})
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert report["findings_by_code"]["which_frame"] == 2
    assert len(read_manifest(tmp_path / "o")) == 1


def test_image_next_to_the_label_is_used_unless_dicom_is_requested(tmp_path: Path) -> None:
    write_clip(tmp_path / "s", {"clip_2": "json"})
    picture(tmp_path / "s" / "clip_2.png")
    assert run(tmp_path / "s", tmp_path / "o", salt=tmp_path / "salt", **ALL)["findings_by_code"] == {"clip": 1}
    (record,) = read_manifest(tmp_path / "o")
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "o" / "images" / record.image)),
        np.asarray(Image.open(tmp_path / "s" / "clip_2.png")),
    )
    report = run(tmp_path / "s", tmp_path / "p", format="dicom", salt=tmp_path / "salt", **ALL)
    assert report["findings_by_code"] == {"clip": 1, "detector_spacing": 1}
    assert read_manifest(tmp_path / "p")[0].group == record.group != ""


def test_image_path_may_name_the_clip(tmp_path: Path) -> None:
    pixels = write_clip(tmp_path / "s", {"clip_2": "json"})
    path = tmp_path / "s" / "clip_2.json"
    path.write_text(path.read_text().replace("clip_2.png", "clip.dcm"))
    assert run(tmp_path / "s", tmp_path / "o", **ALL)["findings_by_code"] == {"clip": 1, "detector_spacing": 1}
    (record,) = read_manifest(tmp_path / "o")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o" / "images" / record.image)), pixels[1])


def test_every_label_format_may_name_dicom(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        write_dicom(tmp_path / "s" / f"{stem}.dcm", frames(seed=ord(stem)), PatientID=stem)
    images = [{"id": 1, "file_name": "a.dcm"}, {"id": 2, "file_name": "b.dcm"}]
    (tmp_path / "s" / "c.json").write_text(json.dumps({"images": images, "annotations": []}))
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert (report["format"], report["counts"]["images"], report["counts"]["groups"]) == ("coco", 2, 2)


def test_patients_stay_in_one_split(tmp_path: Path) -> None:
    for number in range(12):
        root = tmp_path / "s" / f"study{number}"
        write_dicom(root / "a.dcm", frames(seed=number), PatientID=str(number // 4))
        Image.fromarray(MASK * np.uint8(255)).save(root / "a_mask.png")
    report = run(tmp_path / "s", tmp_path / "o", fractions=(0.4, 0.3, 0.3))
    groups = {record.image: record.group for record in read_manifest(tmp_path / "o")}
    sides = [{groups[name] for name in names} for names in read_splits(tmp_path / "o").values()]
    assert [len(side) for side in sides] == [1, 1, 1]
    assert len(set.union(*sides)) == 3
    assert report["group_rule"] == "patients of the DICOM headers"


def test_without_a_patient_a_file_is_its_own_group_and_listed(tmp_path: Path) -> None:
    write_dicom(tmp_path / "s" / "a.dcm", frames())
    Image.fromarray(MASK).save(tmp_path / "s" / "a_mask.png")
    report = run(tmp_path / "s", tmp_path / "o", **ALL)
    assert {code for _, _, code in found(report)} == {"no_group"}
    assert report["group_rule"] is None


def test_dicom_without_labels_is_one_message(tmp_path: Path) -> None:
    write_dicom(tmp_path / "s" / "a.dcm", frames())
    with pytest.raises(UserError, match=r"no labels: found .* 1 DICOM file"):
        run(tmp_path / "s", tmp_path / "o")
    assert not (tmp_path / "o.salt").exists()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"NumberOfFrames": -5, "Rows": 65535, "Columns": 65535}, "too large: more than 178 million pixels"),
        ({"Rows": 0}, "expected at least one"),
    ],
)
def test_a_header_takes_no_memory_for_what_the_file_cannot_hold(tmp_path: Path, fields: Any, reason: str) -> None:
    write_dicom(tmp_path / "a.dcm", frames(2), **fields)
    for source in (tmp_path / "a.dcm", (tmp_path / "a.dcm").read_bytes()):
        with least_memory(), pytest.raises(ImageError, match=reason) as caught:
            DicomFile(source)
        assert caught.value.code == "bad_dicom"


def test_promised_frames_take_no_memory(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", frames(2), NumberOfFrames=2**31 - 1, FrameTime=33)
    for source in (tmp_path / "a.dcm", (tmp_path / "a.dcm").read_bytes()):
        with least_memory():
            found = DicomFile(source)
            assert (found.frames, found.times()) == (2, (0, 0.033))
        assert "holds 2 frames, the header says 2147483647" in str(found.frame(1).notes)


def test_a_deflated_file_is_inflated_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "LARGEST_INFLATED", 3 << 20)
    for name, pixels in (("good", frames()), ("bomb", np.zeros((1, 4 << 10, 4 << 10), np.uint8))):
        header = write_dicom(tmp_path / f"{name}.dcm", pixels)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    for source in (tmp_path / "good.dcm", (tmp_path / "good.dcm").read_bytes()):
        assert np.array_equal(np.asarray(DicomFile(source).frame(0).pixels), frames()[0])
    del header, pixels
    bomb = tmp_path / "bomb.dcm"
    assert bomb.stat().st_size < 40_000
    for source in (bomb, bomb.read_bytes()):
        with least_memory(), pytest.raises(ImageError, match="inflates to more than 3 MiB"):
            DicomFile(source)
    with least_memory():
        assert count_frames(bomb) == 1 and read_patient(bomb) == "" and read_series_position(bomb) is None


@contextmanager
def least_memory(most: int = 8_000_000) -> Iterator[None]:
    """Fails where more bytes are taken at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
