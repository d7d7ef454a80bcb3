"""DICOM files: number of frames, and single frames as 8-bit images, windowed as the header specifies.

Of the header, only the pixel spacing and the patient leave this module; preparation uses the patient only hashed.
Messages contain fixed words and numbers, never the text of a header element.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, SegmentationStorage

from vesselseg.imaging.codec_process import UncheckedFile
from vesselseg.imaging.decode import ImageError
from vesselseg.imaging.dicom_bits import pixel_bits
from vesselseg.imaging.dicom_content import PIXEL_DATA, check_content, close_pixel_data
from vesselseg.imaging.dicom_display import draw_grey
from vesselseg.imaging.dicom_elements import number, numbers, text
from vesselseg.imaging.dicom_spacing import Plane, read_spacing
from vesselseg.imaging.dicom_subtraction import subtract_mask
from vesselseg.imaging.eight_bits import scale_to_uint8
from vesselseg.imaging.notes import Note
from vesselseg.imaging.warning_filters import suppress_warnings

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote the header

_DEFERRED = 1 << 16  # bytes; larger elements are read from disk on first access
_META = 4096  # bytes; the transfer syntax stands at a file's beginning
_PIECE = 1 << 20
LARGEST_INFLATED = 1 << 29  # bytes; no angiogram is stored deflated and larger
LARGEST_FRAME = 2 * int(Image.MAX_IMAGE_PIXELS or 0)  # pixels, as for other images


@dataclass(frozen=True)
class DicomFrame:
    """One decoded frame.

    pixels: mode L or RGB. notes: conversions that were applied. spacing: (row, column) in mm per pixel, or None.
    patient: identifies the patient: issuer and PatientID, else name and date of birth, else the study; "" if unknown.
    plane: where the spacing is measured, see ``Spacing``.
    """

    pixels: Image.Image
    notes: tuple[Note, ...]
    spacing: tuple[float, float] | None
    patient: str
    plane: Plane = ""


def _read(source: Path | bytes, **arguments: Any) -> Dataset:
    """pydicom's header of a file; raises ImageError (bad_dicom) for a deflated one that grows beyond a limit."""
    if _is_deflated(source):
        arguments.pop("defer_size", None)  # pydicom would look for the element in the deflated file
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    return dcmread(opened, force=True, **arguments)


def _is_deflated(source: Path | bytes) -> bool:
    """pydicom inflates a deflated file as a whole, 1 MB to 1 GB at worst: counts first, in pieces."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as opened:
        if DeflatedExplicitVRLittleEndian.encode() not in opened.read(_META):
            return False
        opened.seek(0)
        read_preamble(opened, force=True)
        if _read_file_meta_info(opened).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return False
        inflater, total, piece = zlib.decompressobj(-zlib.MAX_WBITS), 0, opened.read(_PIECE)
        while piece:
            total += len(inflater.decompress(piece, _PIECE))
            if total > LARGEST_INFLATED:
                raise ImageError("bad_dicom", f"inflates to more than {LARGEST_INFLATED >> 20} MiB")
            piece = inflater.unconsumed_tail or opened.read(_PIECE)
    return True


def _closed(source: Path | bytes) -> bytes:
    """The bytes of a file that may end within its compressed pixel data, so that pydicom reads it; b"" if too large."""
    if isinstance(source, Path):
        if source.stat().st_size > LARGEST_INFLATED:
            return b""
        source = source.read_bytes()
    return close_pixel_data(source) if PIXEL_DATA in source else b""


def _check_bounds(size: tuple[int, int]) -> None:
    """Raise ImageError for a size that no angiogram has, before memory is taken for it."""
    if min(size) < 1:
        raise ImageError("bad_dicom", f"{size[0]}x{size[1]} pixels: expected at least one")
    if size[0] * size[1] > LARGEST_FRAME:
        raise ImageError("bad_dicom", f"too large: more than {LARGEST_FRAME // 10**6} million pixels")


def count_frames(path: Path) -> int:
    """Number of frames that a DICOM file holds; 1 if it cannot be read (reading a frame then reports why)."""
    try:
        return DicomFile(path).frames
    except (ImageError, OSError):
        return 1


def read_patient(path: Path) -> str:
    """The patient of a file, see ``DicomFrame.patient``; "" if it cannot be read."""
    try:
        with suppress_warnings():
            return _patient(_read(path, stop_before_pixels=True))
    except Exception:  # pydicom raises many types on damaged headers
        return ""


def read_frame(path: Path, frame: int | None = None) -> DicomFrame:
    """One frame, counted from 0; None: the only one. Raises ImageError (bad_dicom, no_decoder, which_frame)."""
    opened = DicomFile(path)
    return opened.frame(opened.resolve_frame(frame))


class DicomFile:
    """A DICOM image or clip that is decoded frame by frame.

    source: a path, then pixels stay on disk, or the file's bytes. header: large elements are loaded on access.
    frames: number of frames, 1 for a single image. size: (width, height). Raises ImageError (bad_dicom).
    """

    def __init__(self, source: Path | bytes) -> None:
        self._source = source
        with _dicom_errors():
            self.header = _read(source, defer_size=None if isinstance(source, bytes) else _DEFERRED)
            if "PixelData" not in self.header and (source := _closed(source)):
                self._source, self.header = source, _read(source)
            if "PixelData" not in self.header:
                found = "not a DICOM file" if "SOPClassUID" not in self.header else "a DICOM file without PixelData"
                raise ImageError("bad_dicom", f"{found}: expected an image")
            if self.header.get("SOPClassUID") == SegmentationStorage:
                raise ImageError("bad_dicom", "a DICOM segmentation: expected the image that it refers to")
            self.size = int(self.header.Columns), int(self.header.Rows)
            _check_bounds(self.size)
            has_syntax = "TransferSyntaxUID" in self.header.get("file_meta", {})
            self._content = check_content(self.header, source)
            self.frames, self.size = self._content.frames, (int(self.header.Columns), int(self.header.Rows))
            _check_bounds(self.size)
            self._reads_file = has_syntax and not isinstance(source, bytes) and self._content.readable_in_place

    def resolve_frame(self, frame: int | None) -> int:
        """`frame` if it exists, 0 if it is None and there is only one frame; else raises ImageError (which_frame)."""
        if frame is None and self.frames > 1:
            raise ImageError(
                "which_frame",
                f"a clip of {self.frames} frames, but the name of the label file ends in no frame number",
            )
        if frame is not None and not 0 <= frame < self.frames:
            raise ImageError("which_frame", f"frame {frame + 1} of {self.frames} is labelled")
        return frame or 0

    def frame(self, index: int) -> DicomFrame:
        """One frame, counted from 0. Raises ImageError (bad_dicom, no_decoder).

        Rendered as a viewer shows it first: with its mask subtracted where the header asks for it, else by
        ``draw_grey``.
        """
        with _dicom_errors():
            pixels, notes = self._draw(index)
            spacing = read_spacing(self.header, index)
            notes += [*self._content.notes, *spacing.notes]
            patient = _patient(self.header)
            return DicomFrame(Image.fromarray(pixels), tuple(notes), spacing.lengths, patient, spacing.plane)

    def times(self) -> tuple[float, ...] | None:
        """Seconds from the start of a clip, per frame (PS3.3, C.7.6.5); None if the header has no usable ones."""
        steps = numbers(self.header, "FrameTimeVector")
        if len(steps) == self.frames > 1 and np.isfinite(steps).all():
            return tuple(float(time) / 1000 for time in np.cumsum(steps))
        rate = number(self.header, "RecommendedDisplayFrameRate") or number(self.header, "CineRate") or 0
        step = (number(self.header, "FrameTime") or 0) / 1000 or (1 / rate if rate > 0 else 0)
        return tuple(count * step for count in range(self.frames)) if step > 0 else None

    def _draw(self, index: int) -> tuple[np.ndarray, list[Note]]:
        """The frame as displayed, (height, width) or (height, width, 3) uint8, and notes."""
        header, values = self.header, self._pixels(index)
        photometric = text(header, "PhotometricInterpretation")
        if photometric == "PALETTE COLOR":
            values = apply_color_lut(values, header)
        if values.ndim == 3:
            bits = 8 * values.dtype.itemsize if photometric == "PALETTE COLOR" else header.BitsStored
            return scale_to_uint8(values, 0, 2**bits - 1), []

        def decode(other: int) -> np.ndarray:
            return pixel_bits(self._pixels(other), header, native)[0]

        native = not _by_codec(header.file_meta.TransferSyntaxUID)
        values, bits, notes = pixel_bits(values, header, native)
        shown, changes = subtract_mask(values, header, index, self.frames, decode, photometric)
        if shown is None:
            shown, drawing = draw_grey(values, header, index, photometric, bits)
            changes += drawing
        return shown, changes + notes

    @cached_property
    def _compressed(self) -> UncheckedFile:
        return UncheckedFile(self._content.rewritten or self._source)

    def _pixels(self, index: int) -> np.ndarray:
        _check_decoder(self.header)
        syntax, options = self.header.file_meta.TransferSyntaxUID, self._content.options
        if _by_codec(syntax):
            return self._compressed.frame(index, options)
        if self._reads_file and isinstance(self._source, Path) and not syntax.is_deflated:  # reads only this frame
            return pixel_array(self._source, index=index, **options)
        return pixel_array(self.header, index=index, **options)


@contextmanager
def _dicom_errors() -> Iterator[None]:
    """Turn whatever reading a damaged file raises into ImageError (bad_dicom), without text of the header."""
    try:
        with suppress_warnings():  # pydicom's warnings quote the header
            yield
    except ImageError:
        raise
    except Exception as error:  # pydicom and its decoders raise many types
        raise ImageError("bad_dicom", f"damaged, truncated or not conforming ({type(error).__name__})") from None


def _check_decoder(header: Dataset) -> None:
    syntax = header.file_meta.TransferSyntaxUID if "TransferSyntaxUID" in header.get("file_meta", {}) else None
    if syntax is None:  # a file from before PS3.10: only this default syntax is possible
        header.ensure_file_meta()
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif syntax.is_compressed and not syntax.is_deflated and not _can_decode(syntax):
        raise ImageError(
            "no_decoder",
            f'compressed as {syntax.name}, and no decoder for it is installed: pip install "vesselseg[dicom]"',
        )


def _by_codec(syntax: Any) -> bool:
    """Whether pixels are decoded by a library that a damaged file can end; pydicom itself reads the others."""
    return bool(syntax.is_compressed and not syntax.is_deflated and syntax != RLELossless)


def _can_decode(syntax: Any) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        message = f"compressed as {syntax.name}, which pydicom does not decode; convert it to an uncompressed file"
        raise ImageError("no_decoder", message) from None


def _patient(header: Dataset) -> str:
    fields = [["IssuerOfPatientID", "PatientID"], ["PatientName", "PatientBirthDate"], ["StudyInstanceUID"]]
    for names in fields:
        values = [str(header.get(name) or "").strip() for name in names]
        if values[-1] or (len(names) == 2 and names[0] == "PatientName" and values[0]):
            return "\n".join([names[-1], *values])
    return ""
