"""The one way from a file's bytes to what is segmented: one picture, or the frames of a clip, upright 8-bit RGB.

A file is told by its first bytes. The ending of its name counts only where these say nothing: a DICOM file without a
preamble, a damaged file. Frames are decoded one by one, when they are asked for.
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
from vesselseg.imaging.decode import (
    DECODE_ERRORS,
    DICOM_SUFFIXES,
    HIGH_DEPTH_MODES,
    ImageError,
    decode_image,
    describe_decode_error,
    describe_depth,
)
from vesselseg.imaging.dicom import DicomFile
from vesselseg.imaging.rgb import to_rgb
from vesselseg.imaging.source_files import printable
from vesselseg.imaging.warning_filters import suppress_warnings

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".wmv", ".m4v", ".mpg", ".mpeg", ".webm")
LEAST_SIDE = 8  # pixels; anything smaller is a placeholder, not a picture
_LARGEST_IMAGE = 2 << 30  # bytes; an image is read whole
_RECENT = 32  # frames of a video kept at hand: going back by one does not decode it anew from its start
# The containers that are handed to FFmpeg: (where, what). Playlists and lists of files are not among them: they would
# make it open other files, or the network.
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
SizeCheck = Callable[[tuple[int, int]], None]  # is told (width, height) and raises what its caller knows


class UnreadableInputError(UserError):
    """A file that is no picture that can be segmented; the message is the reason, without the file's name."""


_LABELME_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA")  # LabelMe 6 refuses others: CMYK, 16 bits


class FrameSource(Protocol):
    """One picture, or a clip. frames: at least 1. frame_times: seconds from the start, None where nothing tells.

    notes: what was changed or guessed. size: (width, height). labelme_opens: whether LabelMe shows the file as it is.
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
    """Where nothing but what holds for all pictures is asked, see `_check_size`."""


def open_frames(name: str, content: bytes | Path, check_size: SizeCheck = _any_size) -> FrameSource:
    """Open an image, a DICOM file or a video. content: its bytes, or where it lies: a clip's frames then stay on disk.

    name: the file's, whose ending tells DICOM files without a preamble and damaged videos. check_size: refuses a size
    by raising; it is asked before a pixel is decoded. Raises UnreadableInputError.
    """
    start = _start_of(content)
    if not start:
        raise UnreadableInputError("the file is empty (0 bytes)")
    suffix = Path(name).suffix.lower()
    if start[128:132] == b"DICM":
        return DicomFrames(content, check_size)
    if _starts_as(start, _CONTAINERS):
        return VideoFrames(content, suffix, check_size)
    if not _starts_as(start, _IMAGES) and suffix in DICOM_SUFFIXES:
        return DicomFrames(content, check_size)
    if not _starts_as(start, _IMAGES) and suffix in VIDEO_SUFFIXES:
        raise UnreadableInputError("damaged, or no video that can be read (MP4, MOV, AVI, MKV, WebM, WMV, MPEG)")
    return ImageFrames(content, check_size)


def _starts_as(start: bytes, kinds: Iterable[tuple[int, bytes]]) -> bool:
    return any(start[place:].startswith(magic) for place, magic in kinds)


def _start_of(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:132]
    with content.open("rb") as opened:
        return opened.read(132)


class ImageFrames:
    """What Pillow reads; decoded to its end at once, which is how a cut-off file is found."""

    kind: Kind = "image"
    frames = 1
    frame_times: tuple[float, ...] | None = None

    def __init__(self, content: bytes | Path, check_size: SizeCheck = _any_size) -> None:
        if isinstance(content, Path) and content.stat().st_size > _LARGEST_IMAGE:
            raise UnreadableInputError(f"{content.stat().st_size >> 20} MiB; expected an image of at most 2 GiB")
        data = content if isinstance(content, bytes) else content.read_bytes()
        with _reasons(data):
            size = _image_size(data)
        check_size(size)
        with _reasons(data):
            image, changes = decode_image(data, None)
        _check_size(image.size)
        notes = [reason for _, reason in changes]
        if image.mode in HIGH_DEPTH_MODES:
            notes.append(describe_depth(image))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            notes.append("transparent pixels are taken as black")
        self.notes = tuple(notes)
        self.size = image.size
        self.labelme_opens = image.mode in _LABELME_MODES
        self._image = to_rgb(image)

    def frame(self, number: int) -> Image.Image:
        """The picture."""
        _check_number(number, 1)
        return self._image


class DicomFrames:
    """A DICOM picture or clip. The first frame is decoded at once: it tells whether the others can be."""

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
        self.notes = tuple(message for code, message in first.notes if code == "windowed")
        self._first = to_rgb(first.pixels)

    def frame(self, number: int) -> Image.Image:
        """Decodes this frame only."""
        _check_number(number, self.frames)
        if number == 0:
            return self._first
        try:
            return to_rgb(self.file.frame(number).pixels)
        except ImageError as error:
            raise UnreadableInputError(f"frame {number + 1} of {self.frames}: {error}") from None


class SeriesFrames:
    """Single DICOM pictures that make a run, in the order given; each is read when it is asked for.

    notes: what is known of the run as a whole.
    """

    kind: Kind = "dicom"
    labelme_opens = False
    frame_times: tuple[float, ...] | None = None

    def __init__(self, paths: Sequence[Path], notes: tuple[str, ...] = ()) -> None:
        self._paths, self.frames = tuple(paths), len(paths)
        first = DicomFrames(paths[0])
        self.size, self.notes = first.size, (*notes, *first.notes)

    def frame(self, number: int) -> Image.Image:
        """Raises UnreadableInputError naming the file."""
        _check_number(number, self.frames)
        try:
            return DicomFrames(self._paths[number]).frame(0)
        except UnreadableInputError as error:
            raise UnreadableInputError(f"{printable(self._paths[number].name)}: {error}") from None


class VideoFrames:
    """A video through FFmpeg. Frames are counted by going through it once: what its header says may be wrong."""

    kind: Kind = "video"
    labelme_opens = False

    def __init__(self, content: bytes | Path, suffix: str = "", check_size: SizeCheck = _any_size) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        if isinstance(content, bytes):  # OpenCV reads files only; this one goes with the object
            self._copy = tempfile.NamedTemporaryFile(prefix="vesselseg_", suffix=suffix)  # noqa: SIM115
            self._copy.write(content)
            self._copy.flush()
            self._path = Path(self._copy.name)
        else:
            self._path = content
        self._next, self._capture = 0, self._open()
        claimed = round(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        check_size(_video_size(self._capture))
        times = self._times()
        self.frames = len(times)
        if not times:
            raise UnreadableInputError("a video without a frame that can be decoded")
        _check_size(self.frame(0).size)
        self.size = self.frame(0).size
        self.frame_times = _plausible_times(times, rate)
        cut = f"{self.frames} of {claimed} frames can be decoded: the video is cut off, the last one may be incomplete"
        self.notes: tuple[str, ...] = (cut,) if claimed - self.frames > 1 else ()

    def frame(self, number: int) -> Image.Image:
        """In order, each frame is decoded once; going back by more than some frames starts anew."""
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

    def _times(self) -> list[float]:
        times = []
        while self._capture.grab():
            times.append(float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000)
            self._next += 1
        return times

    def _open(self) -> Any:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its lines say less than the reason given here
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # as OpenCV's own
        # FFmpeg only: other readers of OpenCV take names with digits for a series of images.
        capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise UnreadableInputError("a damaged or cut-off video, or one in a form that OpenCV does not read")
        _check_size(_video_size(capture))
        return capture


@contextmanager
def _reasons(content: bytes) -> Iterator[None]:
    """What Pillow raises on an image that it cannot read, as UnreadableInputError."""
    try:
        yield
    except Image.DecompressionBombError:  # told by the header, before anything is decoded
        raise UnreadableInputError(_too_large()) from None
    except DECODE_ERRORS as error:
        raise UnreadableInputError(describe_decode_error(error, content)) from None


def _image_size(content: bytes) -> tuple[int, int]:
    """(width, height) by the header."""
    with suppress_warnings(), Image.open(io.BytesIO(content)) as image:  # of large pictures
        return image.size


def _video_size(capture: Any) -> tuple[int, int]:
    return round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def _plausible_times(times: list[float], rate: float) -> tuple[float, ...] | None:
    """The times that the file gives, if they rise; else by its rate."""
    if len(times) > 1 and all(later > earlier for earlier, later in pairwise(times)):
        return tuple(time - times[0] for time in times)
    return tuple(number / rate for number in range(len(times))) if 0 < rate < float("inf") else None


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > 2 * int(Image.MAX_IMAGE_PIXELS or 0):
        raise UnreadableInputError(_too_large())
    if min(size) < LEAST_SIDE:
        raise UnreadableInputError(f"{width}x{height} pixels; expected at least {LEAST_SIDE} a side")


def _too_large() -> str:
    return f"too large: more than {2 * int(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"


def _check_number(number: int, frames: int) -> None:
    if not 0 <= number < frames:
        raise IndexError(f"frame {number} of {frames}, counted from 0")
