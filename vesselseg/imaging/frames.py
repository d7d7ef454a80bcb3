"""Open an image, DICOM file or video as a sequence of upright 8-bit RGB frames, the input of prediction.

The type of a file is detected from its first bytes. Its suffix matters only if these are inconclusive: for a DICOM file
without a preamble or a damaged file. Frames are decoded on demand.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from PIL import Image

from vesselseg.errors import UserError
from vesselseg.imaging.codec_process import UncheckedFile
from vesselseg.imaging.decode import (
    DECODE_ERRORS,
    DICOM_MAGIC,
    DICOM_SUFFIXES,
    FORMATS,
    ImageError,
    decode_image,
    describe_decode_error,
)
from vesselseg.imaging.dicom import DicomFile
from vesselseg.imaging.eight_bits import HIGH_DEPTH_MODES, describe_depth
from vesselseg.imaging.rgb import has_transparency, to_rgb
from vesselseg.imaging.source_files import printable
from vesselseg.imaging.warning_filters import suppress_warnings

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".wmv", ".m4v", ".mpg", ".mpeg", ".webm")
LEAST_SIDE = 8  # pixels; anything smaller is a placeholder image
_LARGEST_IMAGE = 2 << 30  # bytes; an image file is read into memory
_ABOUT_LENGTHS = ("detector_spacing", "magnified_spacing")  # prediction measures no lengths
_NO_VIDEO = "a damaged or truncated video, or one with a codec that OpenCV does not support"
_RECENT = 32  # cached video frames: going back by a few does not decode from the start again
# (offset, magic bytes) of the containers passed to FFmpeg. Playlists are excluded: FFmpeg would open other files or the
# network.
_CONTAINERS = (
    *((4, kind) for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),  # MP4, QuickTime
    (8, b"AVI "),
    (0, b"\x1aE\xdf\xa3"),  # Matroska, WebM
    (0, b"0&\xb2u\x8ef\xcf\x11"),  # ASF: WMV
    (0, b"\0\0\x01\xba"),  # MPEG program stream
    (0, b"\0\0\x01\xb3"),  # MPEG video
)
_IMAGES = (
    (0, b"\x89PNG"),
    (0, b"\xff\xd8\xff"),  # JPEG
    (0, b"GIF8"),
    (0, b"BM"),
    *((0, start) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),  # TIFF
    (8, b"WEBP"),
    *((0, b"P%d" % number) for number in range(1, 7)),  # PGM, PPM
)

Kind = Literal["image", "dicom", "video"]
SizeCheck = Callable[[tuple[int, int]], None]  # receives (width, height) and raises an error of its caller


class UnreadableInputError(UserError):
    """A file that cannot be opened as an image or clip; the message is the reason, without the file's name."""


_LABELME_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA")  # LabelMe 6 rejects others, e.g. CMYK and 16 bits


class FrameSource(Protocol):
    """An image (one frame) or a clip.

    kind: type of the file.
    labelme_opens: whether LabelMe can display the file unchanged.
    frames: number of frames, at least 1.
    size: (width, height) of a frame.
    notes: messages on what was changed or guessed.
    frame_times: per frame, seconds from the start; None if unknown.
    """

    kind: Kind
    labelme_opens: bool
    frames: int
    size: tuple[int, int]
    notes: tuple[str, ...]
    frame_times: tuple[float, ...] | None

    def frame(self, number: int) -> Image.Image:
        """A frame, counted from 0, as 8-bit RGB. Raises UnreadableInputError, IndexError for a number out of range."""
        ...


def _any_size(size: tuple[int, int]) -> None:
    """No limit in addition to `_check_size`."""


def open_frames(name: str, content: bytes | Path, check_size: SizeCheck = _any_size) -> FrameSource:
    """Open an image, a DICOM file or a video.

    name: file name; its suffix identifies DICOM files without a preamble and damaged videos. content: the bytes, or the
    path, then the frames of a clip stay on disk. check_size: rejects a size by raising, before any pixel is decoded.
    Raises UnreadableInputError.
    """
    start = _start_of(content)
    if not start:
        raise UnreadableInputError("the file is empty (0 bytes)")
    suffix = Path(name).suffix.lower()
    if _starts_as(start, (DICOM_MAGIC,)):
        return DicomFrames(content, check_size)
    if _starts_as(start, _CONTAINERS):
        return VideoFrames(content, suffix, check_size)
    if not _starts_as(start, _IMAGES) and suffix in DICOM_SUFFIXES:
        return DicomFrames(content, check_size)
    if not _starts_as(start, _IMAGES) and suffix in VIDEO_SUFFIXES:
        raise UnreadableInputError("damaged, or not a supported video (MP4, MOV, AVI, MKV, WebM, WMV, MPEG)")
    return ImageFrames(content, check_size)


def _starts_as(start: bytes, kinds: Iterable[tuple[int, bytes]]) -> bool:
    return any(start[offset:].startswith(magic) for offset, magic in kinds)


def _start_of(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:132]
    with content.open("rb") as opened:
        return opened.read(132)


class ImageFrames:
    """An image that Pillow reads; decoded completely at once, so that a truncated file raises here."""

    kind: Kind = "image"
    frames = 1
    frame_times: tuple[float, ...] | None = None

    def __init__(self, content: bytes | Path, check_size: SizeCheck = _any_size) -> None:
        if isinstance(content, Path) and content.stat().st_size > _LARGEST_IMAGE:
            raise UnreadableInputError(f"{content.stat().st_size >> 20} MiB; expected an image of at most 2 GiB")
        data = content if isinstance(content, bytes) else content.read_bytes()
        with _decode_errors(data):
            size = _image_size(data)
        check_size(size)
        with _decode_errors(data):
            image, changes = decode_image(data, None)
        _check_size(image.size)
        notes = [reason for _, reason in changes]
        if image.mode in HIGH_DEPTH_MODES:
            notes.append(describe_depth(image))
        if has_transparency(image):
            notes.append("transparent pixels are rendered as black")
        self.notes = tuple(notes)
        self.size = image.size
        self.labelme_opens = image.mode in _LABELME_MODES
        self._image = to_rgb(image)

    def frame(self, number: int) -> Image.Image:
        """The image itself, for frame 0."""
        _check_number(number, 1)
        return self._image


class DicomFrames:
    """A DICOM image or clip. The first frame is decoded at once, to detect a missing decoder early."""

    kind: Kind = "dicom"
    labelme_opens = False

    def __init__(self, content: bytes | Path, check_size: SizeCheck = _any_size) -> None:
        try:
            self.file = DicomFile(content)
            check_size(self.file.size)
            _check_size(self.file.size)
            first = self.file.frame(0)
            self.frame_times = self.file.times() if self.file.frames > 1 else None
        except ImageError as error:
            raise UnreadableInputError(str(error)) from None
        self.frames, self.size = self.file.frames, first.pixels.size
        self.notes = tuple(message for code, message in first.notes if code not in _ABOUT_LENGTHS)
        self._first = to_rgb(first.pixels)

    def frame(self, number: int) -> Image.Image:
        """Decode this frame only."""
        _check_number(number, self.frames)
        if number == 0:
            return self._first
        try:
            return to_rgb(self.file.frame(number).pixels)
        except ImageError as error:
            raise UnreadableInputError(f"frame {number + 1} of {self.frames}: {error}") from None


class SeriesFrames:
    """Single-frame DICOM files of one series as a clip, in the given order; each is read on demand.

    notes: messages on the series as a whole.
    """

    kind: Kind = "dicom"
    labelme_opens = False
    frame_times: tuple[float, ...] | None = None

    def __init__(self, paths: Sequence[Path], notes: tuple[str, ...] = ()) -> None:
        self._paths, self.frames = tuple(paths), len(paths)
        first = DicomFrames(paths[0])
        self.size, self.notes = first.size, (*notes, *first.notes)

    def frame(self, number: int) -> Image.Image:
        """Read this file only; raises UnreadableInputError that names it."""
        _check_number(number, self.frames)
        try:
            return DicomFrames(self._paths[number]).frame(0)
        except UnreadableInputError as error:
            raise UnreadableInputError(f"{printable(self._paths[number].name)}: {error}") from None


class VideoFrames:
    """A video, decoded by FFmpeg. Its frames are counted by a pass over the file, since headers may be wrong."""

    kind: Kind = "video"
    labelme_opens = False

    def __init__(self, content: bytes | Path, suffix: str = "", check_size: SizeCheck = _any_size) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        if isinstance(content, bytes):  # OpenCV reads files only; this one is deleted with the object
            self._copy = tempfile.NamedTemporaryFile(prefix="vesselseg_", suffix=suffix)  # noqa: SIM115
            self._copy.write(content)
            self._copy.flush()
            self._path = Path(self._copy.name)
        else:
            self._path = content
        header, _ = self._inspect(whole=False)
        check_size(header["size"])
        _check_size(header["size"])
        _, times = self._inspect(whole=True)
        self.frames = len(times)
        if not times:
            raise UnreadableInputError("a video without a frame that can be decoded")
        self._next, self._capture = 0, self._open()
        _check_size(self.frame(0).size)
        self.size = self.frame(0).size
        self.frame_times = _plausible_times(times, header["rate"])
        claimed = header["claimed"]
        cut = f"{self.frames} of {claimed} frames can be decoded: the video is truncated, the last may be incomplete"
        self.notes: tuple[str, ...] = (cut,) if claimed - self.frames > 1 else ()

    def _inspect(self, whole: bool) -> tuple[dict[str, Any], list[float]]:
        """FFmpeg sees the file in another process first: what it decodes whole there does not end this one."""
        try:
            header, times = UncheckedFile(self._path).video(whole)
        except ImageError as error:
            raise UnreadableInputError(str(error)) from None
        if not header.get("opened"):
            raise UnreadableInputError(_NO_VIDEO)
        return {**header, "size": tuple(header["size"])}, times

    def frame(self, number: int) -> Image.Image:
        """Forward access decodes each frame once; going back further than the cache decodes from the start again."""
        _check_number(number, self.frames)
        with self._lock:
            if number not in self._kept:
                self._decode(number)
            return Image.fromarray(self._kept[number])

    def _decode(self, number: int) -> None:
        if number < self._next:
            self._capture.release()
            self._next, self._capture = 0, self._open()
        while self._next <= number:
            done, pixels = self._capture.read() if number - self._next < _RECENT else (self._capture.grab(), None)
            if not done:
                raise UnreadableInputError(f"frame {self._next + 1} of {self.frames}: damaged")
            if pixels is not None:
                self._kept[self._next] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
                self._kept.move_to_end(self._next)
            self._next += 1
        while len(self._kept) > _RECENT:
            self._kept.popitem(last=False)

    def _open(self) -> Any:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its log is less informative than the errors raised here
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        # FFmpeg only: other backends of OpenCV interpret digits in a name as an image sequence.
        capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise UnreadableInputError(_NO_VIDEO)
        return capture


@contextmanager
def _decode_errors(content: bytes) -> Iterator[None]:
    """Turn what Pillow raises on an unreadable image into UnreadableInputError."""
    try:
        yield
    except Image.DecompressionBombError:  # raised from the header, before any pixel is decoded
        raise UnreadableInputError(_too_large()) from None
    except DECODE_ERRORS as error:
        raise UnreadableInputError(describe_decode_error(error, content)) from None


def _image_size(content: bytes) -> tuple[int, int]:
    """(width, height) from the header."""
    with suppress_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as image:  # Pillow warns of large images
        return image.size


def frame_rate(times: Sequence[float] | None) -> float | None:
    """Mean frames per second of a clip. times: see `FrameSource.frame_times`; None if they state no rate."""
    if times is None or len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])


def _plausible_times(times: list[float], rate: float) -> tuple[float, ...] | None:
    """The time stamps of the file if they increase, else times computed from `rate` in frames per second, or None."""
    if len(times) > 1 and all(later > earlier for earlier, later in pairwise(times)):
        return tuple(time - times[0] for time in times)
    return tuple(number / rate for number in range(len(times))) if 0 < rate < float("inf") else None


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > 2 * int(Image.MAX_IMAGE_PIXELS or 0):
        raise UnreadableInputError(_too_large())
    if min(size) < LEAST_SIDE:
        raise UnreadableInputError(f"{width}x{height} pixels; expected at least {LEAST_SIDE} per side")


def _too_large() -> str:
    return f"too large: more than {2 * int(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"


def _check_number(number: int, frames: int) -> None:
    if not 0 <= number < frames:
        raise IndexError(f"frame {number} of {frames}, counted from 0")
