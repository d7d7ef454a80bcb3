"""Images, DICOM files and videos as frames: all supported variants, and one message for each unsupported one."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from tests.imaging.dicom_files import frames, write_dicom
from tests.tiny import picture
from vesselseg.imaging.codec_process import UncheckedFile
from vesselseg.imaging.frames import UnreadableInputError, open_frames


def write_video(
    path: Path, count: int, code: str = "MJPG", rate: float = 12.5, size: tuple[int, int] = (96, 64)
) -> Path:
    """Frame n is a bar at column 2 n on grey."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), rate, size)
    assert writer.isOpened()
    for number in range(count):
        pixels = np.full((size[1], size[0], 3), 90, np.uint8)
        pixels[:, 2 * number : 2 * number + 6] = (20, 60, 250)  # blue, green, red
        writer.write(pixels)
    writer.release()
    return path


def bar_of(image: Image.Image) -> int:
    """First column of the bar of `write_video`."""
    red = np.asarray(image).astype(int)[..., 0].mean(axis=0)
    return int(np.argmax(red > 170))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("1", "BMP"), ("I;16", "PNG")]
)
def test_every_mode_becomes_rgb(mode: str, form: str) -> None:
    grey = picture(1, 40, 30).convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200) if mode == "I;16" else grey.convert(mode)
    found = open_frames("a", encoded(image, form))
    assert (found.kind, found.frames, found.size, found.frame_times) == ("image", 1, (40, 30), None)
    shown = found.frame(0)
    assert shown.mode == "RGB" and shown.size == (40, 30)
    if mode in ("L", "RGBA", "P"):
        np.testing.assert_array_equal(np.asarray(shown)[..., 0], np.asarray(grey))
    assert bool(found.notes) == (mode in ("RGBA", "I;16"))
    assert found.labelme_opens == (mode not in ("CMYK", "I;16"))


@pytest.mark.parametrize("name", ["a.mp4", "a.dcm", "a.png", "a"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
def test_the_type_is_detected_from_content(name: str, form: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(encoded(picture(1, 40, 30), form))
    for given in (tmp_path / name, (tmp_path / name).read_bytes()):
        assert open_frames(name, given).kind == "image"


@pytest.mark.parametrize("name", ["a.mp4", "a.dcm", "a.png", "a"])
def test_clips_are_detected_from_content(name: str, tmp_path: Path) -> None:
    write_dicom(tmp_path / "clip", frames(2))
    assert open_frames(name, (tmp_path / "clip").read_bytes()).kind == "dicom"
    assert open_frames(name, write_video(tmp_path / "clip.avi", 3).read_bytes()).kind == "video"


def test_exif_orientation_is_applied() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    found = open_frames("a.jpg", encoded(picture(1, 40, 30), "JPEG", exif=turned))
    assert found.size == found.frame(0).size == (30, 40) and "orientation" in found.notes[0]


def huge_png(side: int = 20_000) -> bytes:
    """A PNG whose header declares far more pixels than it has."""
    header = bytearray(encoded(picture(1), "PNG"))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"", "the file is empty (0 bytes)"),
        ("a.mp4", b"", "the file is empty (0 bytes)"),
        ("a.dcm", b"", "the file is empty (0 bytes)"),
        ("a.png", encoded(picture(1), "PNG")[:900], "damaged or truncated"),
        ("a.jpg", encoded(picture(1), "JPEG")[:900], "damaged or truncated"),
        ("a.png", encoded(Image.new("L", (1, 1)), "PNG"), "1x1 pixels; expected at least 8 per side"),
        ("a.png", huge_png(), "too large: more than 178 million pixels"),
        ("a.png", b"no picture", "not an image that Pillow can read"),
        ("a.dcm", b"no picture", "not a DICOM file: expected an image"),
        ("a.mp4", b"no picture", "damaged, or not a supported video"),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "damaged, or not a supported video"),
        ("a.mp4", b"\0\0\0\x18ftypmp42" + bytes(100), "a damaged or truncated video"),
    ],
)
def test_unreadable_files_have_a_reason(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for given in (content, tmp_path / name):
        with pytest.raises(UnreadableInputError) as caught:
            open_frames(name, given)
        assert str(caught.value).startswith(reason)


def refuse(size: tuple[int, int]) -> None:
    raise LookupError(size)


@pytest.mark.parametrize(("name", "size"), [("a.png", (13_000, 13_000)), ("a.dcm", (9000, 7000))])
def test_a_size_is_rejected_before_a_pixel_is_decoded(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Decoding would fail, since the file has fewer pixels than its header declares."""
    if name == "a.png":
        (tmp_path / name).write_bytes(huge_png(13_000))
    else:
        header = write_dicom(tmp_path / name, frames(1))
        header.Columns, header.Rows = size
        header.save_as(tmp_path / name)
    for given in ((tmp_path / name).read_bytes(), tmp_path / name):
        with pytest.raises(UnreadableInputError, match="damaged"):
            open_frames(name, given)
        with pytest.raises(LookupError) as caught:
            open_frames(name, given, refuse)
        assert caught.value.args == (size,)


def test_a_video_is_rejected_before_its_frames_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.avi", 3)
    looked, video = [], UncheckedFile.video

    def noted(self: UncheckedFile, whole: bool) -> Any:
        looked.append(whole)
        return video(self, whole)

    monkeypatch.setattr(UncheckedFile, "video", noted)
    with pytest.raises(LookupError, match="96, 64"):
        open_frames(path.name, path, refuse)
    assert looked == [False]


def test_dicom_clips(tmp_path: Path) -> None:
    values = frames(4)
    write_dicom(tmp_path / "a.dcm", values, FrameTime="40")
    for given in (tmp_path / "a.dcm", (tmp_path / "a.dcm").read_bytes()):
        found = open_frames("upload", given)
        assert (found.kind, found.frames, found.notes) == ("dicom", 4, ())
        assert found.frame_times == pytest.approx((0, 0.04, 0.08, 0.12))
        for number in (3, 0, 2):
            np.testing.assert_array_equal(np.asarray(found.frame(number)), values[number][..., None].repeat(3, 2))
        with pytest.raises(IndexError):
            found.frame(4)


def test_invalid_dicom_files(tmp_path: Path) -> None:
    header = write_dicom(tmp_path / "a.dcm", frames(3))
    content = (tmp_path / "a.dcm").read_bytes()
    for whole in (2, 1):
        cut = open_frames("a.dcm", content[: len(content) - (3 - whole) * frames(1).size + 10])
        assert cut.frames == whole and f"holds {whole} frames, the header says 3" in cut.notes[0]
    for kept in (len(content) - 2 * frames(1).size - 10, 400, 200):
        with pytest.raises(UnreadableInputError, match=r"damaged, truncated|without PixelData|not a DICOM file"):
            open_frames("a.dcm", content[:kept])
    del header.PixelData
    header.save_as(tmp_path / "report.dcm")
    with pytest.raises(UnreadableInputError, match="a DICOM file without PixelData: expected an image"):
        open_frames("report.dcm", tmp_path / "report.dcm")
    huge = dcmread(tmp_path / "a.dcm")
    huge.Rows = huge.Columns = 20_000
    huge.save_as(tmp_path / "huge.dcm")
    with pytest.raises(UnreadableInputError, match="too large"):
        open_frames("huge.dcm", tmp_path / "huge.dcm")


@pytest.mark.parametrize(("code", "name"), [("MJPG", "a.avi"), ("mp4v", "a.mp4"), ("VP80", "a.webm")])
def test_videos(code: str, name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, 40, code)
    for given in (path, path.read_bytes()):
        found = open_frames(name, given)
        assert (found.kind, found.frames, found.size) == ("video", 40, (96, 64))
        assert found.frame_times == pytest.approx([number / 12.5 for number in range(40)], abs=0.002)
        order = [*range(40), 39, 38, 2, 1, 35, 0]
        assert [bar_of(found.frame(number)) for number in order] == pytest.approx([2 * n for n in order], abs=1)


def test_a_video_of_one_frame_and_a_truncated_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert open_frames("a.avi", write_video(tmp_path / "one.avi", 1)).frames == 1
    content = write_video(tmp_path / "a.avi", 40).read_bytes()
    cut = open_frames("a.avi", content[: len(content) // 2])
    assert 5 < cut.frames < 35 and "of 40 frames can be decoded" in cut.notes[0]
    assert bar_of(cut.frame(cut.frames - 1)) == pytest.approx(2 * cut.frames - 2, abs=1)
    with pytest.raises(UnreadableInputError, match=r"without a frame|truncated video"):
        open_frames("a.avi", content[:5000])
    mp4 = write_video(tmp_path / "a.mp4", 40, "mp4v").read_bytes()
    with pytest.raises(UnreadableInputError, match="truncated video"):
        open_frames("a.mp4", mp4[: len(mp4) // 2])
    assert "WARN" not in capfd.readouterr().err  # a warning of OpenCV
